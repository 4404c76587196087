"""The record of what was tested on a model: plain data, written as JSON.

A certificate is evidence on the inputs and the machine that it names, never a proof.

JSON has no NaN and no Inf: they are written as null. Read back, null is NaN where only a number can stand (a metric's
value, seconds), and None where the record allows it (an interval's bounds, what was measured).
"""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from evalmode.atomic_file import atomic_file
from evalmode.clause import Verdict
from evalmode.errors import CertificateError
from evalmode.finding import Finding

__all__ = [
    "BadSampleRecord",
    "CalibrationBin",
    "Certificate",
    "ClauseResult",
    "ConfusionRecord",
    "Environment",
    "EvaluationRecord",
    "MetricRecord",
    "ModelRecord",
    "OptimizationRecord",
    "PlanRecord",
    "SampleRecord",
    "SliceRecord",
    "decoded",
    "through_text",
]

FORMAT_VERSION = 1

_Record = TypeVar("_Record")


class ClauseResult(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one clause. `evidence` is one line for people; `measured` holds the numbers behind it.

    `through` are the findings of other clauses that break this one too, as (code, module path).
    """

    clause: str
    verdict: Verdict
    probes: int = 0
    evidence: str = ""
    through: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    measured: dict[str, Any] = {}  # numbers, words and lists of them: msgspec reads no union of two list types


def through_text(code: str, path: str) -> str:
    """How evidence names a finding of another clause.

    Example:
        >>> through_text("EM102", "encoder.drop")
        'through encoder.drop, see EM102'
    """
    return f"through {path or 'the model'}, see {code}"


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Which model it was: class, size, and a digest of every parameter and buffer (SHA-256, hexadecimal)."""

    name: str
    modules: int
    parameters: int
    bytes: int
    fingerprint: str


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was tested."""

    evalmode: str
    python: str
    torch: str
    device: str
    processor: str
    cores: int
    threads: int
    platform: str


class MetricRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One test-set figure with its interval. `low` and `high` are None where no interval could be given; `method` says
    which interval, or why there is none. `count` of `total` is given for proportions."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    method: str = ""
    count: int | None = None
    total: int = 0


class SliceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the test set, with its own figures. `by` says what cut it ("class", a column, a predicate's name) and
    `name` which part it is. `p_value` is the probability of a difference from the rest at least this large by chance,
    adjusted for all the slices that were looked at (Holm); None where it was not tested, and `note` says why."""

    by: str
    name: str
    samples: int
    metrics: tuple[MetricRecord, ...] = ()
    p_value: float | None = None
    note: str = ""


class ConfusionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How often each class was answered with each: `counts[i][j]` samples of class `labels[i]` got `labels[j]`."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class CalibrationBin(msgspec.Struct, frozen=True, kw_only=True):
    """Samples whose confidence lies from `low` to `high`: their number, mean confidence, and share of right answers."""

    low: float
    high: float
    count: int
    confidence: float | None = None
    accuracy: float | None = None


class SampleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One sample that is shown: `loss` ranks it, `image` is a PNG as base64 where its input is an image."""

    id: str
    target: str = ""
    prediction: str = ""
    loss: float | None = None
    image: str = ""


class BadSampleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A sample that was left out of the figures, and why."""

    id: str
    reason: str


class EvaluationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the test data gave. `plan` ran it, plain `eval()` where it is empty; beside a plan, `same_answers` counts
    the samples on which plain gives the same answer.

    `exact` says that the figures do not depend, bit for bit, on batch size, workers, order or resumption, else `notes`
    say why not. `bad` are the first samples that were left out, `skipped` counts all of them. `data` is a digest of
    the sample ids and targets in their order, `execution_sizes` how many samples the plan's executions run.
    """

    samples: int
    batch_size: int
    metrics: tuple[MetricRecord, ...] = ()
    seconds: float = 0.0
    plan: str = ""
    same_answers: int | None = None
    execution_sizes: tuple[int, ...] = ()
    exact: bool = True
    data: str = ""
    skipped: int = 0
    bad: tuple[BadSampleRecord, ...] = ()
    slices: tuple[SliceRecord, ...] = ()
    confusion: ConfusionRecord | None = None
    calibration: tuple[CalibrationBin, ...] = ()
    worst: tuple[SampleRecord, ...] = ()
    notes: tuple[str, ...] = ()


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One way of running the model that was tried. The way that `plain` names is the model's own `eval()`.

    `outcome` is `plain`, `chosen`, `verified` (but not the fastest), `rejected` (by the gate), `unstable`, `failed`,
    `not installed`, `not tried`, or `not judged` (timed, and others were faster); `reason` says why. `error` is the
    largest ratio of its error against fp64 to plain fp32's own. Units: `seconds` of one call at each of the callers'
    batch sizes, `peak_bytes` of weights and working memory.
    """

    name: str
    backend: str = ""
    precision: str = "fp32"
    batch: int = 0
    threads: int = 0
    streams: int = 1
    passes: tuple[str, ...] = ()
    outcome: str
    reason: str = ""
    seconds: dict[str, float] = {}
    samples_per_second: float | None = None
    speedup: float | None = None
    error: float | None = None
    peak_bytes: int | None = None
    build_seconds: float | None = None


class OptimizationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the search tried, beside plain `eval()`, and what it chose."""

    tolerance: str
    objective: str
    batch_sizes: tuple[int, ...]
    execution_sizes: tuple[int, ...]
    stable: bool
    plans: tuple[PlanRecord, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def chosen(self) -> PlanRecord:
        """The plan that runs; plain `eval()` where nothing verified was faster."""
        return next((plan for plan in self.plans if plan.outcome == "chosen"), self.plans[0])


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """What was tested, on which model, inputs and machine, and what was found.

    `inputs` are the dtypes and shapes of the batch, `probes` how much was tried.
    """

    format_version: int = FORMAT_VERSION
    created: str
    subject: str
    model: ModelRecord
    environment: Environment
    inputs: str = ""
    probes: str = ""
    clauses: tuple[ClauseResult, ...] = ()
    findings: tuple[Finding, ...] = ()
    inferred: tuple[str, ...] = ()
    optimization: OptimizationRecord | None = None
    evaluation: EvaluationRecord | None = None
    seconds: float = 0.0
    forward_passes: int = 0

    @property
    def ok(self) -> bool:
        """No clause is broken."""
        return not any(result.verdict is Verdict.BROKEN for result in self.clauses)

    @property
    def verdict(self) -> Verdict:
        """On the whole: broken if a clause is, else kept if one is, else what was found of those that were tested."""
        counts, order = self.counts(), (Verdict.BROKEN, Verdict.KEPT, Verdict.UNDECIDED, Verdict.ALLOWED)
        return next((verdict for verdict in order if counts[verdict]), Verdict.NOT_TESTED)

    def counts(self) -> dict[Verdict, int]:
        """How many clauses got each verdict."""
        return {verdict: sum(result.verdict is verdict for result in self.clauses) for verdict in Verdict}

    def to_json(self) -> bytes:
        """The certificate as indented JSON; NaN and Inf, which JSON lacks, become null. `load` gives the same JSON."""
        return msgspec.json.format(msgspec.json.encode(self, order="deterministic"), indent=2) + b"\n"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the JSON to `path` atomically: a reader sees the old file or the new one, never half of one.

        Raises:
            CertificateError: it cannot be written.
        """
        try:
            with atomic_file(path) as file:
                file.write(self.to_json())
        except OSError as error:
            raise CertificateError(f"cannot write {os.fspath(path)!r}: {error.strerror}") from error
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Certificate:
        """Read a certificate.

        Raises:
            CertificateError: the file is missing, is no certificate, or was written by a newer format.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise CertificateError(f"cannot read {os.fspath(path)!r}: {error.strerror}") from error
        try:
            version = msgspec.json.decode(data, type=_Header).format_version
            if version < 1:
                raise CertificateError(
                    f"{os.fspath(path)!r} has certificate format {version}", expected=f"1 to {FORMAT_VERSION}"
                )
            if version > FORMAT_VERSION:
                raise CertificateError(
                    f"{os.fspath(path)!r} has certificate format {version}",
                    expected=f"at most {FORMAT_VERSION}",
                    fix="pip install --upgrade evalmode",
                )
            return decoded(data, cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CertificateError(f"{os.fspath(path)!r} is no certificate: {error}") from error


def decoded(data: bytes, kind: type[_Record]) -> _Record:
    """JSON as a record of `kind`: null is NaN where only a number can stand, and None where that is allowed.

    Raises:
        msgspec.MsgspecError: it is no JSON, or no such record.

    Example:
        >>> decoded(b'{"name": "loss", "value": null, "low": null}', MetricRecord)
        MetricRecord(name='loss', value=nan, low=None, high=None, confidence=0.95, method='', count=None, total=0)
    """
    wanted: Any = kind
    return msgspec.convert(_with_nan(msgspec.json.decode(data), _form(wanted)), kind)


@functools.cache
def _form(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def _with_nan(value: Any, form: inspect.Type) -> Any:
    """`value`, as JSON gives it, with NaN for null where `form` has a number and no None."""
    kinds = form.types if isinstance(form, inspect.UnionType) else (form,)
    if value is None:
        number = any(isinstance(kind, inspect.FloatType) for kind in kinds)
        return math.nan if number and not any(isinstance(kind, inspect.NoneType) for kind in kinds) else None
    for kind in kinds:
        if isinstance(value, list) and isinstance(kind, inspect.VarTupleType | inspect.ListType):
            return [_with_nan(item, kind.item_type) for item in value]
        if isinstance(value, list) and isinstance(kind, inspect.TupleType) and len(value) == len(kind.item_types):
            return [_with_nan(item, each) for item, each in zip(value, kind.item_types, strict=True)]
        if isinstance(value, dict) and isinstance(kind, inspect.DictType):
            return {key: _with_nan(item, kind.value_type) for key, item in value.items()}
        if isinstance(value, dict) and isinstance(kind, inspect.StructType | inspect.DataclassType):
            if isinstance(kind, inspect.StructType) and kind.tag is not None and value.get(kind.tag_field) != kind.tag:
                continue
            fields = {field.encode_name: field.type for field in kind.fields}
            return {key: _with_nan(item, fields[key]) if key in fields else item for key, item in value.items()}
    return value


class _Header(msgspec.Struct):
    format_version: int
