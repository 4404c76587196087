"""What commands read: certificates, and evaluations as JSON or Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalmode.errors import UsageError

if TYPE_CHECKING:
    from evalmode.certificate import Certificate, Environment, EvaluationRecord, ModelRecord

__all__ = ["ReadEvaluation", "is_report", "read_result", "read_results", "refuse_predictions"]

_REPORT = b'<meta name="generator" content="evalmode">'


@dataclass(frozen=True)
class ReadEvaluation:
    """An evaluation as its JSON or its Parquet has it; `source` names the files that hold it."""

    record: EvaluationRecord
    model: ModelRecord | None
    environment: Environment | None
    subject: str
    source: str = ""


def is_report(path: Path) -> bool:
    """Whether the file begins as `report.html` does."""
    with path.open("rb") as file:
        return _REPORT in file.read(1000)


def read_results(files: Sequence[Path], what: str) -> tuple[Certificate | None, list[ReadEvaluation]]:
    """The certificate among `files`, if there is one, and the evaluations in their order; `what` is made of them.

    Raises:
        UsageError: a file cannot be read or is neither, or there are several certificates.
        CertificateError, PredictionsError: one is damaged, or of a newer format.
    """
    certificates: list[Certificate] = []
    evaluations: list[ReadEvaluation] = []
    for file in files:
        read = read_result(file)
        if isinstance(read, ReadEvaluation):
            evaluations.append(replace(read, source=_shown(file, files)))
        else:
            certificates.append(read)
    if len(certificates) > 1:
        raise UsageError(
            f"{len(certificates)} certificates were given", expected="at most one", fix=f"a {what} of each"
        )
    return certificates[0] if certificates else None, _merged(evaluations)


def _shown(file: Path, files: Sequence[Path]) -> str:
    """What tells a file from the others: nothing, its name, or the path where names repeat."""
    if len(files) == 1:
        return ""
    return str(file) if [other.name for other in files].count(file.name) > 1 else file.name


def refuse_predictions(data: str | None, *, files: bool = False) -> None:
    """Refuse as test data what is the result of an evaluation; `files` says that a Parquet file may be data.

    Raises:
        UsageError: the file holds kept predictions.
    """
    if data is None or not data.endswith(".parquet") or not Path(data).is_file():
        return
    try:
        import pyarrow.parquet

        kept = pyarrow.parquet.read_schema(data).metadata or {}
    except (ImportError, OSError, ValueError):
        return  # what reads the file as data says what is wrong
    if any(key.startswith(b"evalmode") for key in kept):
        raise UsageError(
            f"--data {data} holds kept predictions, which are a result and no test data",
            expected=f"the task whose test data is meant{', or a Parquet file of samples' if files else ''}",
            fix=f"evalmode compare {data} OTHER.parquet compares results",
        )


def _merged(evaluations: Sequence[ReadEvaluation]) -> list[ReadEvaluation]:
    """The evaluations with equal ones, as the JSON and the Parquet of a run, as one that names both files."""
    import msgspec

    found: dict[bytes, ReadEvaluation] = {}
    for each in evaluations:
        weights = "" if each.model is None else each.model.fingerprint
        key = msgspec.json.encode((msgspec.structs.replace(each.record, seconds=0.0), weights, each.subject))
        same = found.get(key)
        found[key] = each if same is None else replace(same, source=f"{same.source} and {each.source}")
    return list(found.values())


def read_result(file: Path) -> Certificate | ReadEvaluation:
    """What a file holds.

    Raises:
        UsageError: it cannot be read, or is neither a certificate nor an evaluation.
        CertificateError, PredictionsError: it is damaged, or of a newer format.
    """
    import msgspec

    from evalmode.certificate import Certificate

    expected = "certificate.json, or what --out or --keep-predictions of `evalmode evaluate` has written"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {str(file)!r}: {error.strerror}", expected=expected) from error
    if data.startswith(b"PAR1"):
        from evalmode.evaluation.predictions import read_predictions

        parts = read_predictions(file)
        return ReadEvaluation(parts["record"], parts["model"], parts["environment"], parts["subject"])
    try:
        tree = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{str(file)!r} is no JSON: {error}", expected=expected) from error
    if isinstance(tree, dict) and "format_version" in tree:
        return Certificate.load(file)
    if not isinstance(tree, dict) or not isinstance(tree.get("evaluation"), dict):
        raise UsageError(f"{str(file)!r} is neither a certificate nor an evaluation", expected=expected)
    return _evaluation(file, tree)


def _evaluation(file: Path, tree: dict[str, Any]) -> ReadEvaluation:
    import msgspec

    from evalmode.certificate import Environment, EvaluationRecord, ModelRecord

    try:
        return ReadEvaluation(
            msgspec.convert(_with_numbers(tree["evaluation"]), EvaluationRecord),
            msgspec.convert(tree.get("model"), ModelRecord | None),
            msgspec.convert(tree.get("environment"), Environment | None),
            msgspec.convert(tree.get("subject", ""), str),
        )
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{str(file)!r} is no evaluation: {error}", expected="JSON of `evalmode evaluate --out`"
        ) from error


def _with_numbers(tree: Any) -> Any:
    """The tree with NaN where a metric's value is null: JSON has neither NaN nor infinity."""
    if isinstance(tree, list):
        return [_with_numbers(part) for part in tree]
    if isinstance(tree, dict):
        found = {name: _with_numbers(part) for name, part in tree.items()}
        return {**found, "value": float("nan")} if "value" in found and found["value"] is None else found
    return tree
