"""`evalmode card FILE...`: a model card in Markdown, from a certificate and evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evalmode.certificate import Certificate, Environment, EvaluationRecord, ModelRecord
    from evalmode.terminal.model_card import Evaluated

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@dataclass(frozen=True)
class _Read:
    """An evaluation as its JSON or its Parquet has it."""

    record: EvaluationRecord
    model: ModelRecord | None
    environment: Environment | None
    subject: str


@app.command("card")
def print_card(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="A certificate, and evaluations: JSON of save(), or Parquet of keep_predictions."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write it to this file instead.")
    ] = None,
) -> None:
    """Print a model card: contract, plan, figures with intervals, slices, environment. Nothing is run."""
    from evalmode.cli.printing import print_text, say
    from evalmode.errors import UsageError
    from evalmode.terminal.model_card import card_text

    certificates: list[Certificate] = []
    evaluations: list[Evaluated] = []
    for file in files:
        read = _read(file)
        if isinstance(read, _Read):
            evaluations.append(read)
        else:
            certificates.append(read)
    if len(certificates) > 1:
        raise UsageError(f"{len(certificates)} certificates were given", expected="at most one", fix="a card of each")
    text = card_text(certificates[0] if certificates else None, evaluations)
    if output is None:
        print_text(text.removesuffix("\n"))
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {str(output)!r}: {error.strerror}", fix="name another file") from error
    say(f"card  {output}")


def _read(file: Path) -> Certificate | _Read:
    """What a file holds.

    Raises:
        UsageError: it cannot be read, or is neither a certificate nor an evaluation.
        CertificateError, PredictionsError: it is damaged, or of a newer format.
    """
    import msgspec

    from evalmode.certificate import Certificate
    from evalmode.errors import UsageError

    expected = "certificate.json of `evalmode certify`, JSON of evaluation.save(), or Parquet of keep_predictions="
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {str(file)!r}: {error.strerror}", expected=expected) from error
    if data.startswith(b"PAR1"):
        from evalmode.evaluation.predictions import read_predictions

        parts = read_predictions(file)
        return _Read(parts["record"], parts["model"], parts["environment"], parts["subject"])
    try:
        tree = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{str(file)!r} is no JSON: {error}", expected=expected) from error
    if isinstance(tree, dict) and "format_version" in tree:
        return Certificate.load(file)
    if not isinstance(tree, dict) or not isinstance(tree.get("evaluation"), dict):
        raise UsageError(f"{str(file)!r} is neither a certificate nor an evaluation", expected=expected)
    return _evaluation(file, tree)


def _evaluation(file: Path, tree: dict[str, Any]) -> _Read:
    import msgspec

    from evalmode.certificate import Environment, EvaluationRecord, ModelRecord
    from evalmode.errors import UsageError

    try:
        return _Read(
            msgspec.convert(_with_numbers(tree["evaluation"]), EvaluationRecord),
            msgspec.convert(tree.get("model"), ModelRecord | None),
            msgspec.convert(tree.get("environment"), Environment | None),
            msgspec.convert(tree.get("subject", ""), str),
        )
    except msgspec.ValidationError as error:
        raise UsageError(f"{str(file)!r} is no evaluation: {error}", expected="JSON of evaluation.save()") from error


def _with_numbers(tree: Any) -> Any:
    """The tree with NaN where a metric's value is null: JSON has neither NaN nor infinity."""
    if isinstance(tree, list):
        return [_with_numbers(part) for part in tree]
    if isinstance(tree, dict):
        found = {name: _with_numbers(part) for name, part in tree.items()}
        return {**found, "value": float("nan")} if "value" in found and found["value"] is None else found
    return tree
