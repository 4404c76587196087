"""`check`: test the evaluation contract on a model and leave it exactly as it was found."""

from __future__ import annotations

import datetime as dt
import difflib
import fnmatch
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from evalmode.certificate import Certificate, ClauseResult, through_text
from evalmode.checking.catalog import CLAUSE_FILES, COMPARED, WATCHED, WHITE_BOX, examiner
from evalmode.checking.checkable import Checkable, checkable, written_form
from evalmode.checking.examination import Examination
from evalmode.checking.subject import Selection, Subject
from evalmode.clause import CLAUSES, Verdict
from evalmode.errors import (
    BatchError,
    ContractBrokenError,
    EvalmodeError,
    ModelRunError,
    PatternError,
    SwitchError,
    UsageError,
)
from evalmode.finding import Finding, Severity
from evalmode.mode.discover import discover
from evalmode.observe.fingerprint import environment_record
from evalmode.observe.operators import is_exported
from evalmode.observe.state import ModelState, read_state
from evalmode.observe.tree import describe, map_tensors, tensor_leaves
from evalmode.predictor.protocol import Predictor

__all__ = ["CheckReport", "check"]

_PROBES = ("fast", "default", "thorough")
_CLAIMING = frozenset(("EM127", "EM141"))  # what such a module does to the other clauses is the same cause


def check(
    model: nn.Module | torch.export.ExportedProgram | Predictor | Callable[..., Any],
    batch: Any,
    *,
    forward: Callable[[Any, Any], Any] | None = None,
    outputs: Selection = None,
    batch_axis: int | Literal["auto"] = "auto",
    device: torch.device | str | None = None,
    clauses: Iterable[str] | None = None,
    allow: Iterable[str] = (),
    probes: Literal["fast", "default", "thorough"] = "default",
    seed: int = 0,
) -> CheckReport:
    """Test the evaluation contract on `model` with `batch`; the model is left exactly as it was found.

    Parameters:
        model: a module, an exported program, a predictor, or any callable from a batch to outputs. What is no module is
            only called: the clauses that look inside are not tested. A compiled model runs as it was written.
        batch: inputs, called as `model(**batch)` for a mapping, `model(*batch)` for a tuple, else `model(batch)`.
        forward: overrides that rule; called as `forward(model, batch)`.
        outputs: which part of the outputs counts: a key or attribute, a position, or a function; all by default.
        batch_axis: the axis along which the samples lie; found by itself as axis 0 where all tensors agree.
        device: the batch is moved there first; the model has to be there.
        clauses: names of the clauses to test; all by default.
        allow: patterns of module paths ("*.mc_dropout") at which findings are intended.
        probes: how much is tried.
        seed: the start of every random stream in every pass.

    Raises:
        NotAModuleError: `model` is a class, or nothing that can be called.
        BatchError: the batch does not fit the calling rule or the model.
        ModelRunError: the model fails on the batch; its own error is the cause.
        PatternError: an `allow` pattern matches no module.
        UsageError: an unknown clause or number of probes.

    Example:
        >>> report = check(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(8, 4))
        >>> report.ok
        True
    """
    given = checkable(model, batch, forward)
    names = _chosen(clauses)
    patterns = _patterns(given.module, allow)
    _require_probes(probes)
    given = replace(given, batch=_on_device(given.module, given.batch, device))
    started = time.perf_counter()
    found = read_state(given.module)
    try:
        with written_form():
            was_training = _switched(given.module)
            subject = Subject(
                given.module,
                given.batch,
                forward=given.forward,
                outputs=outputs,
                batch_axis=batch_axis,
                probes=probes,
                seed=seed,
                found_training=was_training,
                opaque=given.opaque,
                state=_after_switch(found, given.module) if was_training else found,
            )
            try:
                results = [_tested(name, subject, patterns) for name in names]
            finally:
                subject.put_back_batch()
    finally:
        found.put_back()
    seconds = time.perf_counter() - started
    return CheckReport(_certificate(given, subject, results, _inferred(subject, batch_axis), seconds))


def _certificate(
    given: Checkable, subject: Subject, results: Sequence[ClauseResult], inferred: tuple[str, ...], seconds: float
) -> Certificate:
    place = next((tensor.device for tensor in given.module.parameters()), torch.device("cpu"))
    return Certificate(
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        subject=given.name,
        model=given.record(),
        environment=environment_record(place),
        inputs=describe(given.batch),
        probes=subject.probes,
        clauses=tuple(results),
        findings=tuple(subject.findings),
        inferred=(*given.notes, *inferred),
        seconds=seconds,
        forward_passes=subject.passes,
    )


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` found. `print(report)` shows it; `certificate` is the whole record."""

    certificate: Certificate

    @property
    def ok(self) -> bool:
        """No clause is broken."""
        return self.certificate.ok

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Everything that was found, allowed findings included."""
        return self.certificate.findings

    def raise_if_broken(self) -> None:
        """Raise if a clause is broken.

        Raises:
            ContractBrokenError: its message is the report.
        """
        if not self.ok:
            raise ContractBrokenError(str(self))

    def __str__(self) -> str:
        from evalmode.terminal import check_text  # needs rich, which a check alone does not

        return check_text(self.certificate)


def _tested(clause: str, subject: Subject, patterns: Sequence[str]) -> ClauseResult:
    try:
        untested = _out_of_sight(clause, subject)
        if untested:
            return ClauseResult(clause=clause, verdict=Verdict.NOT_TESTED, evidence=untested)
        examined: Examination = examiner(clause)(subject)
    except SwitchError as error:
        return ClauseResult(clause=clause, verdict=Verdict.NOT_TESTED, evidence=error.got)
    except EvalmodeError as error:
        error.add_note(f"while testing the clause {clause!r}")
        raise
    told_before = {finding: _told_before(subject, finding) for finding in examined.findings}
    fresh = [finding for finding in examined.findings if clause == "mode-complete" or told_before[finding] is None]
    repeated = [told for finding, told in told_before.items() if finding not in fresh and told is not None]
    judged = [
        replace(finding, severity=Severity.ALLOWED) if _allowed(finding.place.module, patterns) else finding
        for finding in fresh
    ]
    subject.findings.extend(judged)
    errors = [finding for finding in judged if finding.severity is Severity.ERROR]
    causes = sorted({*repeated, *examined.through})
    evidence = examined.evidence
    if errors or causes:
        verdict = Verdict.BROKEN
        parts = [f"{finding.code} {finding.summary}" for finding in errors]
        evidence = "; ".join([*parts, *(through_text(code, path) for code, path in causes)])
        if not errors and all(_allowed(path, patterns) for _, path in causes):
            verdict = Verdict.ALLOWED
    elif judged:
        verdict = Verdict.ALLOWED
        evidence = "; ".join(f"{finding.code} at {finding.place.module}" for finding in judged)
    else:
        verdict = examined.verdict or Verdict.KEPT
    if clause == "mode-complete":
        subject.claimed = {
            finding.place.module: finding.code
            for finding in judged
            if finding.code != "EM104" and (finding.place.module or finding.code == "EM105")
        }
    subject.claimed |= {finding.place.module: finding.code for finding in judged if finding.code in _CLAIMING}
    return ClauseResult(
        clause=clause,
        verdict=verdict,
        probes=examined.probes,
        evidence=evidence,
        through=tuple(causes),
        notes=examined.notes,
        measured=examined.measured,
    )


def _told_before(subject: Subject, finding: Finding) -> tuple[str, str] | None:
    """The code and module path of a cause, found already, of which `finding` is another effect."""
    claimed = subject.claimed_path(finding)
    if claimed is not None:
        return subject.claimed[claimed], claimed
    here = finding.place
    for other in subject.findings:
        same_line = here.file and (here.file, here.line) == (other.place.file, other.place.line)
        if other.code == "EM142" and (same_line or (not here.file and here.module == other.place.module)):
            return other.code, here.module
    return None


def _out_of_sight(clause: str, subject: Subject) -> str:
    """Why `clause` can say nothing about the subject; empty where it can be tested."""
    if clause in COMPARED and not subject.first_pass().outputs:
        return "no tensor among the outputs, so nothing can be compared"
    if not subject.opaque:
        return ""
    if clause in WHITE_BOX:
        return subject.opaque
    if clause in WATCHED and not subject.observation().operators:
        return "no torch operator ran in this process: what runs elsewhere cannot be watched"
    return ""


def _after_switch(found: ModelState, model: nn.Module) -> ModelState:
    """The state after `eval()`. It shares the copies of tensors with `found`, unless an override of `eval()` wrote."""
    if any(change.kind != "flag" for change in found.changes()):
        return read_state(model)
    return replace(found, attributes=[(path, module, dict(module.__dict__)) for path, module, _ in found.attributes])


def _switched(model: nn.Module) -> bool:
    """Whether the model was in training; it is in evaluation afterwards, as far as its own `eval()` reaches.

    An exported program's module says `training=True` whatever it was exported in, and refuses `eval()`.
    """
    if not getattr(model, "training", False) or is_exported(model):  # a frozen TorchScript module has no flag
        return False
    try:
        model.eval()
    except EvalmodeError:
        raise
    except Exception as error:
        raise ModelRunError(
            f"{type(model).__name__}.eval() failed: {type(error).__name__}: {error}", expected="a model that can switch"
        ) from error
    return True


def _allowed(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _require_probes(probes: str) -> None:
    if probes not in _PROBES:
        raise UsageError(f"check got probes={probes!r}", expected=" or ".join(map(repr, _PROBES)))


def _chosen(clauses: Iterable[str] | None) -> list[str]:
    if clauses is None:
        return list(CLAUSE_FILES)
    wanted = [clauses] if isinstance(clauses, str) else list(clauses)
    for name in wanted:
        if name not in CLAUSE_FILES:
            near = difflib.get_close_matches(str(name), CLAUSES, n=1)
            known = "is a clause, but check does not test it yet" if name in CLAUSES else "is no clause"
            raise UsageError(
                f"{name!r} {known}",
                expected=", ".join(CLAUSE_FILES),
                fix=f"did you mean {near[0]!r}?" if near and near[0] != name else None,
            )
    return [name for name in CLAUSE_FILES if name in wanted]


def _patterns(model: nn.Module, allow: Iterable[str]) -> list[str]:
    patterns = [allow] if isinstance(allow, str) else list(allow)
    if not patterns:
        return []
    paths = list(discover(model).paths().values())
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise PatternError(f"allow got {pattern!r}", expected='patterns of module paths, as in ["*.mc_dropout"]')
        if "<" in pattern or any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            continue
        near = difflib.get_close_matches(pattern.strip("*."), paths, n=3, cutoff=0.4)
        raise PatternError(
            f"allow={pattern!r} matches no module of the model",
            expected="a pattern of module paths",
            fix=f"did you mean {' or '.join(map(repr, near))}?" if near else None,
        )
    return patterns


def _on_device(model: nn.Module, batch: Any, device: torch.device | str | None) -> Any:
    places = {tensor.device for tensor in model.parameters()}
    if device is not None:
        wanted = torch.empty(0, device=device).device
        if places and wanted not in places:
            here = ", ".join(sorted(map(str, places)))
            raise UsageError(
                f"check got device={str(device)!r}, but the model is on {here}", fix=f"model.to({str(device)!r})"
            )
        return map_tensors(lambda tensor: tensor.to(wanted), batch)
    given = {leaf.device for _, leaf in tensor_leaves(batch)}
    if len(places) == 1 and given and not given & places and not {"meta"} & {place.type for place in places}:
        here, there = str(next(iter(places))), ", ".join(sorted(map(str, given)))
        raise BatchError(
            f"the batch is on {there}, the model on {here}",
            expected="both on one device",
            fix=f"check(..., device={here!r})",
        )
    return batch


def _inferred(subject: Subject, batch_axis: int | str) -> tuple[str, ...]:
    if isinstance(subject.axis, str) or batch_axis != "auto":
        return ()
    if subject.axis.listed:
        return (f"the batch is a list of {subject.axis.size} samples",)
    return (f"the batch holds {subject.axis.size} samples along axis 0",)
