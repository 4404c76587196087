"""`evalmode.verify`: test a certificate again here, and list what differs."""

from __future__ import annotations

import dataclasses
import glob
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from evalmode.certificate import Certificate, EvaluationRecord
from evalmode.certification.artifact_retest import NO_MODEL, certified_again, loaded_again
from evalmode.certification.differences import DETAILS, differences
from evalmode.certification.optimized import budget_of
from evalmode.certification.preparation import inputs_as_then, model_device, module_of
from evalmode.certification.retested import PARTS, Retested, Verification
from evalmode.certification.whole_way import certified
from evalmode.checking.catalog import CLAUSE_FILES
from evalmode.clause import Verdict
from evalmode.errors import CertificateError, NotAModuleError, UsageError
from evalmode.finding import Severity
from evalmode.observe.fingerprint import environment_record, model_record
from evalmode.predictor.artifact import inspect_artifact
from evalmode.predictor.artifact_file import MAGIC
from evalmode.predictor.module_backed import ModulePredictor
from evalmode.predictor.optimized import OptimizedPredictor
from evalmode.settings.allowed import split_patterns
from evalmode.settings.selection import Wanted, select_clauses
from evalmode.task import Task

__all__ = ["verify"]

_USUAL_BATCH = 64
_NO_DATA = "no data was given: verify(certificate, model, data)"
_NO_METRICS = "the data came without metrics; those of an evalmode.Task(..., metrics=...) are used"
Source = str | os.PathLike[str]


def verify(
    certificate: Certificate | Source,
    model_or_artifact: nn.Module | Task | OptimizedPredictor | ModulePredictor | Source,
    data: object = None,
    *,
    batch: Any = None,
    ignore: str | Iterable[str] = (),
    budget_s: float | None = None,
    allow_native: bool = False,
    on_progress: Callable[[str, int, int | None], object] | None = None,
) -> Verification:
    """`certificate` tested again here: what is the same, what differs, and what cannot be tested, with the reason.

    The model's weights, the environment, every clause (as much is tried, and the same is allowed, as then), the plan,
    and the figures of the test set. Verdicts have to be equal. Figures have to have the same bits where the same plan
    runs on the same machine; elsewhere they have to lie within the intervals that are computed here, and that is said.
    Metrics of your own cannot be read out of a certificate: give a `Task` that has them.

    Parameters:
        certificate: a certificate, its JSON file, or an artifact that carries one.
        model_or_artifact: a module, a `Task`, or the path of an artifact: its golden outputs are run again, and the
            clauses about answers are tested on its plan.
        data: the test data, by default the task's. For an artifact it may be the `Task`: then the plan is held against
            the task's model too (`faithful`).
        batch: the model's inputs that clauses are tested with, by default the first samples of the data.
        ignore: parts ("environment") or single results ("threads") whose differences are shown and do not count.
        budget_s: seconds to search for the plan of a model anew: a minute, or `$EVALMODE_BUDGET`; 0 leaves it out.
        allow_native: whether to load machine code that an artifact brings.

    Raises:
        CertificateError: the certificate cannot be read, or the artifact carries none.
        ArtifactError: the artifact is damaged or foreign.
        NotAModuleError: what was given is neither model, task nor artifact.
        UsageError: `ignore` names nothing that is tested.

    Example:
        >>> import torch, evalmode
        >>> model, data = nn.Linear(4, 3), (torch.rand(40, 4), torch.arange(40) % 3)
        >>> certificate = evalmode.certify(model, data, budget_s=0)
        >>> verify(certificate, model, data).ok
        True
        >>> _ = nn.init.zeros_(model.bias)
        >>> [result.name for result in verify(certificate, model, data).differing][0]
        'weights'
    """
    started = time.perf_counter()
    then = _read(certificate)
    ignored = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    if then.evaluation is None and then.optimization is None:  # else results of other names may come
        _require_tested(ignored, _names(then))
    given = model_or_artifact.model if isinstance(model_or_artifact, ModulePredictor) else model_or_artifact
    options: dict[str, Any] = {
        "batch": batch,
        "batch_size": _batch_size(then.evaluation),
        "limit": _limit(then.evaluation),
    }
    if isinstance(given, nn.Module | Task):
        here, results = _of_model(then, _task(given, data), budget_s, on_progress, options)
    elif isinstance(given, OptimizedPredictor | str | os.PathLike):
        here, results = _of_artifact(then, given, data, allow_native, options)
    else:
        kind = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
        raise NotAModuleError(
            f"verify got {kind}",
            expected="a torch.nn.Module, an evalmode.Task, or the path of an artifact",
            fix="evalmode.verify(certificate, model, data)",
        )
    _require_tested(ignored, [*_names(then), *(result.name for result in results)])
    return Verification(then, here, results, ignored, time.perf_counter() - started)


def _read(source: Certificate | Source) -> Certificate:
    if isinstance(source, Certificate):
        return source
    if not isinstance(source, str | os.PathLike):
        raise UsageError(
            f"the certificate is {source!r:.60}, of type {type(source).__name__}",
            expected="an evalmode.Certificate, or the path of one",
            fix='evalmode.verify("certificate.json", model, data)',
        )
    path = Path(source)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                carried = inspect_artifact(path).certificate
                if carried is None:
                    raise CertificateError(f"{os.fspath(source)!r} is an artifact that carries no certificate")
                return carried
    return Certificate.load(path)


def _names(then: Certificate) -> list[str]:
    """The parts, and what is tested of them whatever is found."""
    known = [*PARTS, "weights", "class", *msgspec.structs.asdict(then.environment), "inputs"]
    known += [result.clause for result in then.clauses]
    known += ["golden outputs", "samples", "answers as plain", *DETAILS]
    known += [metric.name for metric in then.evaluation.metrics] if then.evaluation is not None else []
    return known


def _require_tested(ignored: Iterable[str], known: Iterable[str]) -> None:
    results = [name for name in dict.fromkeys(known) if name not in PARTS]
    for name in ignored:
        if name not in (*PARTS, *results):
            expected = f"a part ({', '.join(PARTS)}), or one result ({', '.join(results)})"
            raise UsageError(f"ignore names {name!r}, which is nothing that is tested", expected=expected)


def _batch_size(record: EvaluationRecord | None) -> int:
    """The batches of then, where the figures may depend on them."""
    return _USUAL_BATCH if record is None or record.exact else max(1, record.batch_size)


def _limit(record: EvaluationRecord | None) -> int | None:
    """As many samples as were evaluated then; more data than that is no difference."""
    return None if record is None else record.samples + record.skipped or None


def _task(given: nn.Module | Task, data: object) -> Task:
    if isinstance(data, Task) and isinstance(given, nn.Module):
        return dataclasses.replace(data, model=given)
    if isinstance(given, Task):
        return (given if data is None else dataclasses.replace(given, test_data=data)).built()
    return Task(model=given, test_data=data, name=type(given).__name__)


def _data_task(data: object) -> Task | None:
    """A task around the data of an artifact; its model is not asked."""
    if data is None or isinstance(data, Task):
        return None if data is None else data.built()
    return Task(model=nn.Identity(), test_data=data)


def _of_model(
    then: Certificate,
    task: Task,
    budget_s: float | None,
    on_progress: Callable[[str, int, int | None], object] | None,
    options: dict[str, Any],
) -> tuple[Certificate, tuple[Retested, ...]]:
    """The certificate that the model gets here, beside the one of then."""
    module = module_of(task)
    if task.test_data is None and task.train_data is None and options["batch"] is None:
        bare = Certificate(
            created="",
            subject=then.subject,
            model=model_record(module),
            environment=environment_record(model_device(module)),
        )
        return bare, differences(then, bare, no_clauses=_NO_DATA, no_plan=_NO_DATA, no_figures=_NO_DATA)
    options = {**options, "batch": _inputs(then, task, options["batch"])}
    searched = then.optimization is not None
    budget = budget_of(budget_s) if searched else 0.0
    known = [*CLAUSE_FILES, *(["faithful"] if searched else [])]
    tested = [result.clause for result in then.clauses if result.verdict is not Verdict.NOT_TESTED]
    here, fast = certified(
        task,
        clauses=[name for name in tested if name in known],
        allow=_allowed_then(then, module),
        probes=then.probes if then.probes in {"fast", "default", "thorough"} else "default",  # type: ignore[arg-type]
        budget_s=budget,
        on_progress=on_progress,
        **options,
    )
    if fast is not None:
        fast.close()
    why = "a budget of 0 seconds leaves the search for a plan out" if searched else "the certificate names no plan"
    here = _ignoring_as_then(then, here)
    no_metrics = _NO_METRICS if task.metrics is None else ""
    return here, differences(then, here, no_clauses=why, no_plan=why, no_figures=_NO_DATA, no_metrics=no_metrics)


def _of_artifact(
    then: Certificate, given: OptimizedPredictor | Source, data: object, allow_native: bool, options: dict[str, Any]
) -> tuple[Certificate, tuple[Retested, ...]]:
    """What an artifact, or a predictor, shows here, beside the certificate of then."""
    loaded = loaded_again(then, given, allow_native=allow_native)
    task = _data_task(data)
    try:
        here = certified_again(then, loaded, task, own_model=isinstance(data, Task), **options)
    finally:
        if loaded.predictor is not None and loaded.predictor is not given:
            loaded.predictor.close()
    why = loaded.reason or NO_MODEL
    no_figures = loaded.reason or ("" if task is not None else _NO_DATA)
    no_metrics = _NO_METRICS if task is None or task.metrics is None else ""
    return here, differences(
        then, here, plan=loaded.results, no_clauses=why, no_figures=no_figures, no_metrics=no_metrics
    )


def _inputs(then: Certificate, task: Task, batch: Any) -> Any:
    """What was given, else the samples of the data that the certificate was tested with, else the usual ones: None."""
    return inputs_as_then(task, then.inputs) if batch is None and task.test_data is not None else batch


def _allowed_then(then: Certificate, module: nn.Module) -> tuple[str, ...]:
    """The module paths at which findings were allowed, as patterns that this model has."""
    paths = {finding.place.module for finding in then.findings if finding.severity is Severity.ALLOWED}
    for result in then.clauses:
        if result.verdict is Verdict.ALLOWED:
            paths |= {path for _, path in result.through}
    patterns = [glob.escape(path) for path in sorted(paths)]
    return (*split_patterns(patterns, module)[0], *(pattern for pattern in patterns if "<" in pattern))


def _ignoring_as_then(then: Certificate, here: Certificate) -> Certificate:
    """The certificate with the codes left out of its verdicts that were left out then."""
    codes = sorted({finding.code for finding in then.findings if finding.severity is Severity.IGNORED})
    return select_clauses((), [Wanted(code, "the certificate") for code in codes]).applied(here) if codes else here
