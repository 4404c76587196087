"""The whole way in one call: check what a plain `eval()` leaves, find a plan, evaluate the data, certify all of it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import msgspec
import torch
from torch import nn

from evalmode.certificate import Certificate, EvaluationRecord
from evalmode.certification.optimized import (
    agreement,
    budget_of,
    not_optimized,
    optimize_loaded,
    with_plan,
    without_plan,
)
from evalmode.certification.preparation import as_task, model_device, module_of, on_device, probe_inputs
from evalmode.certification.verdicts import with_mended, with_non_finite_outputs
from evalmode.checking.runner import check
from evalmode.clause import Verdict
from evalmode.errors import BatchError, NonFiniteOutputError, OptimizationError, TaskError
from evalmode.evaluation.batches import batches_from
from evalmode.evaluation.evaluator import evaluate
from evalmode.evaluation.result import Evaluation
from evalmode.evaluation.source import source_of
from evalmode.fresh_process import FreshProcess, seeded_outputs, with_fresh_process
from evalmode.mode.derived import staleness_unchecked
from evalmode.mode.switch import evaluating
from evalmode.observe.fingerprint import fingerprint
from evalmode.observe.state import left_as_found
from evalmode.observe.tree import map_tensors
from evalmode.predictor.optimized import OptimizedPredictor
from evalmode.task import Task

__all__ = ["Progress", "certified", "certify", "check_task", "evaluated", "record_beside_plain"]

Progress = Callable[[str, int, int | None], object]


def certify(
    model: nn.Module | Task,
    data: object = None,
    *,
    train_data: object = None,
    batch: Any = None,
    split: Callable[[Any], tuple[Any, Any]] | None = None,
    forward: Callable[[Any, Any], Any] | None = None,
    prediction: Callable[[Any], Any] | None = None,
    metrics: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    device: str | torch.device | None = None,
    limit: int | None = None,
    clauses: Iterable[str] | None = None,
    allow: Iterable[str] = (),
    probes: Literal["fast", "default", "thorough"] = "default",
    batch_size: int = 64,
    name: str | None = None,
    budget_s: float | None = None,
    on_progress: Progress | None = None,
) -> Certificate:
    """A certificate of `model` (a module or a `Task`) on `data`: a verdict per clause, and the test data's figures.

    The clauses are tested on what a plain `model.eval()` leaves, with a real batch of the data (or `batch`: the model's
    inputs); a note says what `evaluating` mends beyond it. Then the fastest plan that gives the same answers is sought,
    and the data is evaluated with that plan and with the plain model inside `evaluating`. Without data, `batch` alone
    is checked. The model is left as it was found; with another `device`, a copy is moved there.
    `limit` counts samples of the data; `clauses`, `allow` and `probes` are those of `check`. `budget_s` are seconds for
    the search: a minute, or `$EVALMODE_BUDGET`; 0 leaves it out, and so do `clauses` without `faithful`.
    `on_progress(stage, done, total)` is called with the stages "check" and "evaluate", and those of the search.

    Raises:
        NotAModuleError: `model` is neither a module nor a task.
        TaskError: there are neither data nor a batch, or a part of the task does not fit.
        ModelRunError: the model fails on its own data.

    Example:
        >>> data = (torch.rand(40, 4), torch.arange(40) % 3)
        >>> certificate = certify(nn.Linear(4, 3), data, budget_s=0)
        >>> certificate.ok, certificate.evaluation.samples
        (True, 40)
    """
    parts = {"split": split, "forward": forward, "prediction": prediction, "metrics": metrics, "loss": loss}
    task = as_task(model, {"test_data": data, "train_data": train_data, "name": name, **parts})
    return certified(
        task,
        own_forward=forward is not None,
        batch=batch,
        device=device,
        limit=limit,
        clauses=clauses,
        allow=allow,
        probes=probes,
        batch_size=batch_size,
        budget_s=budget_s,
        on_progress=on_progress,
    )[0]


def certified(
    task: Task,
    *,
    own_forward: bool = False,
    batch: Any = None,
    device: str | torch.device | None = None,
    limit: int | None = None,
    clauses: Iterable[str] | None = None,
    allow: Iterable[str] = (),
    probes: Literal["fast", "default", "thorough"] = "default",
    batch_size: int = 64,
    budget_s: float | None = None,
    on_progress: Progress | None = None,
) -> tuple[Certificate, OptimizedPredictor | None]:
    """What `certify` does, with the predictor of the plan beside the certificate; None where there is none.

    With `own_forward` the task's `forward` is not the one that its reference would load, so no fresh process is asked.
    """
    started, budget = time.perf_counter(), budget_of(budget_s)
    module, target = on_device(module_of(task), device)
    test_data = task.data("test_data")
    batches = None if test_data is None else batches_from(test_data, batch_size, limit)
    said: list[str] = list(task.notes)
    if batch is None:
        batch, where = probe_inputs(task, None if test_data is None else batches_from(test_data, batch_size))
        said.append(where)
    inputs = map_tensors(lambda tensor: tensor.to(target), batch)
    chosen = _all_of(clauses)
    checked = chosen if chosen is None else tuple(name for name in chosen if name != "faithful")
    options: dict[str, Any] = {"clauses": checked, "allow": tuple(allow), "probes": probes}
    fast: OptimizedPredictor | None = None
    with staleness_unchecked(), _fresh_process(None if own_forward else task, inputs, target, checked) as process:
        _tell(on_progress, "check", 0, None)
        weights = fingerprint(module)
        certificate = _checked(module, inputs, {"forward": task.forward, **options}, mended=True)
        outputs = None if process is None else _outputs(module, inputs, task.forward)
        if process is not None and outputs is not None:
            certificate = with_fresh_process(certificate, process.result(weights, outputs))
        if budget and (chosen is None or "faithful" in chosen):
            certificate, fast = _planned(certificate, task, module, batch_size, budget, on_progress)
        figures = (task, test_data, batch_size, limit, on_progress)
        with left_as_found(module):
            result = evaluated(module, *figures)
        answers = None if fast is None else evaluated(fast, *figures)
    if fast is not None and isinstance(answers, NonFiniteOutputError) and not isinstance(result, NonFiniteOutputError):
        certificate, fast = without_plan(certificate, fast, answers), None
    if isinstance(result, NonFiniteOutputError):
        certificate, result = with_non_finite_outputs(certificate, result), None
    nothing = f"{'no test data: ' if batches is None else ''}nothing was evaluated"
    said += [nothing] if result is None else (*result.inferred, *result.record.notes)
    certificate = msgspec.structs.replace(
        certificate,
        subject=task.name or type(module).__name__,
        inferred=(*certificate.inferred, *said),
        evaluation=None if result is None else record_beside_plain(result, answers, fast),
        seconds=time.perf_counter() - started,
    )
    if fast is not None:
        fast.attach(certificate)
    return certificate, fast


def _planned(
    certificate: Certificate,
    task: Task,
    module: nn.Module,
    batch_size: int,
    budget: float,
    on_progress: Progress | None,
) -> tuple[Certificate, OptimizedPredictor | None]:
    """The certificate with `faithful`, and the predictor of the plan."""
    broken = {result.clause for result in certificate.clauses if result.verdict is Verdict.BROKEN}
    if in_the_way := broken & {"batch-independent", "deterministic", "no-randomness", "finite"}:
        return not_optimized(certificate, f"no plan is searched for while {min(in_the_way)} is broken"), None
    if task.data("test_data") is None and task.data("train_data") is None:
        return not_optimized(certificate, "no data to optimise with"), None
    options: dict[str, Any] = {"budget_s": budget, "on_progress": on_progress, "batch_size": batch_size}
    try:
        with left_as_found(module):  # which may be a copy on another device
            fast, _ = optimize_loaded(dataclasses.replace(task, model=module), **options)
    except (OptimizationError, BatchError) as error:
        return not_optimized(certificate, error), None
    return with_plan(certificate, fast), fast


def record_beside_plain(
    result: Evaluation, optimized: Evaluation | NonFiniteOutputError | None, fast: OptimizedPredictor | None
) -> EvaluationRecord:
    """The figures of the plan that runs, and on how many samples the plain model gives the same answer."""
    if fast is None or not isinstance(optimized, Evaluation):
        return result.record
    plain, planned = (
        None if one.samples.prediction is None else torch.from_numpy(one.samples.prediction)
        for one in (result, optimized)
    )
    same = agreement(plain, planned)
    return msgspec.structs.replace(optimized.record, same_answers=same[0] if same else None)


def check_task(
    task: Task,
    batch: Any,
    *,
    clauses: Iterable[str] | None = None,
    allow: Iterable[str] = (),
    probes: Literal["fast", "default", "thorough"] = "default",
) -> Certificate:
    """What a plain `eval()` leaves of the task's model on `batch`, compared with a fresh process too; no data is read.

    Raises:
        NotAModuleError: the task's model is not built.
        ModelRunError: the model fails on the batch.
    """
    module = module_of(task)
    target = model_device(module)
    options: dict[str, Any] = {"clauses": _all_of(clauses), "allow": tuple(allow), "probes": probes}
    with _fresh_process(task, batch, target, options["clauses"]) as process:
        weights = fingerprint(module)
        certificate = _checked(module, batch, {"forward": task.forward, **options}, mended=False)
        if process is not None:
            outputs = _outputs(module, batch, task.forward)
            certificate = with_fresh_process(certificate, process.result(weights, outputs))
    return msgspec.structs.replace(certificate, subject=task.name or certificate.subject)


@contextlib.contextmanager
def _fresh_process(
    task: Task | None, inputs: Any, device: torch.device, clauses: tuple[str, ...] | None
) -> Iterator[FreshProcess | None]:
    """The same inputs through the task in another process; None where no reference names it, or nobody asked."""
    if task is None or not task.reference or (clauses is not None and "deterministic" not in clauses):
        yield None
    else:
        with FreshProcess(task.reference, task.weights, inputs, str(device)) as process:
            yield process


def _all_of(clauses: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if clauses is None else (clauses,) if isinstance(clauses, str) else tuple(clauses)


def _outputs(module: nn.Module, inputs: Any, forward: Callable[[Any, Any], Any] | None) -> list[torch.Tensor]:
    with left_as_found(module):
        return seeded_outputs(module, inputs, forward)


def _checked(module: nn.Module, inputs: Any, options: dict[str, Any], *, mended: bool) -> Certificate:
    """What a plain `eval()` leaves; with `mended`, also which broken clauses `evaluating` keeps."""
    with left_as_found(module):
        module.eval()
        certificate = check(module, inputs, **options).certificate
    broken = tuple(result.clause for result in certificate.clauses if result.verdict is Verdict.BROKEN)
    if not mended or not broken:
        return certificate
    with evaluating(module):
        again = check(module, inputs, **{**options, "clauses": broken})
    return with_mended(certificate, again.certificate)


def evaluated(
    model: nn.Module | OptimizedPredictor,
    task: Task,
    data: Any,
    batch_size: int,
    limit: int | None,
    on_progress: Progress | None,
) -> Evaluation | NonFiniteOutputError | None:
    """The test data's figures; None without data, the error where an output is not finite.

    A loader whose batches cannot be taken apart runs as it comes, which the record says.
    """
    if data is None:
        return None
    try:
        exact = bool(source_of(data))
    except TaskError:
        exact = False
    try:
        return evaluate(
            model,
            data,
            split=task.split,
            forward=task.forward if isinstance(model, nn.Module) else None,
            prediction=task.prediction,
            metrics=task.metrics,
            loss=task.loss,
            batch_size=batch_size,
            limit=math.inf if limit is None else limit,
            progress=lambda state: _tell(on_progress, "evaluate", state.done, state.total),
            exact=exact,
        )
    except NonFiniteOutputError as error:
        return error


def _tell(on_progress: Progress | None, stage: str, done: int, total: int | None) -> None:
    if on_progress is not None:
        on_progress(stage, done, total)
