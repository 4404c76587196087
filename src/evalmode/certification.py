"""The whole way in one call: check what a plain `eval()` leaves, evaluate the test data, and certify both."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec
import torch
from torch import nn

from evalmode.certificate import Certificate
from evalmode.checking.runner import check
from evalmode.clause import Verdict
from evalmode.errors import NonFiniteOutputError, NotAModuleError, TaskError, UsageError
from evalmode.evaluation.batches import Batches, batch_length, batches_from
from evalmode.evaluation.loop import LoopResult, evaluate_batches
from evalmode.evaluation.split import TARGET_KEYS, checked_split, default_split
from evalmode.finding import Finding
from evalmode.fresh_process import FreshProcess, seeded_outputs, with_fresh_process
from evalmode.mode.switch import evaluating
from evalmode.observe.fingerprint import fingerprint
from evalmode.observe.state import read_state
from evalmode.observe.tree import map_tensors
from evalmode.predictor.calling import call
from evalmode.task import Task

__all__ = ["Progress", "certify", "check_task", "model_device", "module_of", "probe_inputs", "usable_device"]

PROBE_SAMPLES = 16
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
    on_progress: Progress | None = None,
) -> Certificate:
    """A certificate of `model` (a module or a `Task`) on `data`: a verdict per clause, and the test data's figures.

    The clauses are tested on what a plain `model.eval()` leaves, with a real batch of the data (or `batch`: the model's
    inputs); a note says what `evaluating` mends beyond it. Then the data is evaluated inside `evaluating`. Without
    data, `batch` alone is checked. The model is left as it was found; with another `device`, a copy is moved there.
    `limit` counts samples of the data; `clauses`, `allow` and `probes` are those of `check`.
    `on_progress(stage, done, total)` is called with the stages "check" and "evaluate".

    Raises:
        NotAModuleError: `model` is neither a module nor a task.
        TaskError: there are neither data nor a batch, or a part of the task does not fit.
        ModelRunError: the model fails on its own data.

    Example:
        >>> data = (torch.rand(40, 4), torch.arange(40) % 3)
        >>> certificate = certify(nn.Linear(4, 3), data)
        >>> certificate.ok, certificate.evaluation.samples
        (True, 40)
    """
    started = time.perf_counter()
    parts = {"split": split, "forward": forward, "prediction": prediction, "metrics": metrics, "loss": loss}
    task = _as_task(model, {"test_data": data, "train_data": train_data, "name": name, **parts})
    module, target = _on_device(module_of(task), device)
    test_data = task.data("test_data")
    batches = None if test_data is None else batches_from(test_data, batch_size, limit)
    said: list[str] = list(task.notes)
    if batch is None:
        batch, where = probe_inputs(task, None if test_data is None else batches_from(test_data, batch_size))
        said.append(where)
    inputs = map_tensors(lambda tensor: tensor.to(target), batch)
    options: dict[str, Any] = {"clauses": _all_of(clauses), "allow": tuple(allow), "probes": probes}
    with _fresh_process(task if forward is None else None, inputs, target, options["clauses"]) as process:
        _tell(on_progress, "check", 0, None)
        weights = fingerprint(module)
        certificate = _checked(module, inputs, {"forward": task.forward, **options}, mended=True)
        outputs = None if process is None else _outputs(module, inputs, task.forward)
        result = _evaluated(task, module, target, batches, limit, on_progress)
        if process is not None and outputs is not None:
            certificate = with_fresh_process(certificate, process.result(weights, outputs))
    if isinstance(result, NonFiniteOutputError):
        certificate, result = _with_non_finite_outputs(certificate, result), None
    nothing = f"{'no test data: ' if batches is None else ''}nothing was evaluated"
    said += [nothing] if result is None else result.inferred
    return msgspec.structs.replace(
        certificate,
        subject=task.name or type(module).__name__,
        inferred=(*certificate.inferred, *said),
        evaluation=None if result is None else result.record,
        seconds=time.perf_counter() - started,
    )


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


def probe_inputs(task: Task, batches: Batches | None, samples: int = PROBE_SAMPLES) -> tuple[Any, str]:
    """The model's inputs for at most `samples` samples of the task's data, and in words where they come from.

    Raises:
        TaskError: the task has neither test nor training data.
    """
    origin = "test"
    if batches is None:
        train_data = task.data("train_data")
        if train_data is None:
            raise TaskError(
                f"{task.home} has no test data, so there is no batch to check with",
                expected="def test_data() that returns a DataLoader, a Dataset, or a pair (inputs, targets)",
                fix="add it to the task, or give the shape of an input: evalmode check TASK --input 8,3,224,224",
            )
        batches, origin = batches_from(train_data, samples, samples), "training"
    first = next(iter(batches), None)
    if first is None:
        raise TaskError(f"the {origin} data of {task.home} gave no batch", expected="at least one sample")
    inputs = _inputs_of(task, first)
    length = batch_length(inputs)
    if length is None:
        return inputs, f"probes: the first batch of the {origin} data"
    kept = min(length, samples)
    cut = map_tensors(lambda tensor: tensor[:kept] if tensor.dim() and len(tensor) == length else tensor, inputs)
    counted = "first sample" if kept == 1 else f"first {kept} samples"
    return cut, f"probes: the {counted} of the {origin} data"


def model_device(module: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives; the CPU if it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def usable_device(device: str | torch.device) -> torch.device:
    """`device`, if tensors can be made there.

    Raises:
        UsageError: there is no such device on this machine.
    """
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise UsageError(
            f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}", expected=" or ".join(there)
        ) from error
    return chosen


def _as_task(model: nn.Module | Task, given: Mapping[str, Any]) -> Task:
    """The task with every part that was given beside it in its place."""
    parts = {part: value for part, value in given.items() if value is not None}
    if isinstance(model, Task):
        return dataclasses.replace(model, **parts).built()
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else f"{type(model).__name__}"
        raise NotAModuleError(
            f"certify got {got}", expected="a torch.nn.Module or an evalmode.Task", fix="evalmode.certify(model, data)"
        )
    return Task(model=model, **{"name": type(model).__name__, **parts})


def module_of(task: Task) -> nn.Module:
    """The task's model, built.

    Raises:
        NotAModuleError: it is still a function; `task.built()` calls it.
    """
    if not isinstance(task.model, nn.Module):
        raise NotAModuleError(f"`model` of {task.home} is a {type(task.model).__name__}", expected="a torch.nn.Module")
    return task.model


def _on_device(module: nn.Module, device: str | torch.device | None) -> tuple[nn.Module, torch.device]:
    """The model on the device: itself if it is there, else a moved copy."""
    here = model_device(module)
    if device is None:
        return module, here
    chosen = usable_device(device)
    if chosen.type == here.type and chosen.index in {None, here.index}:
        return module, here
    return copy.deepcopy(module).to(chosen), chosen


def _inputs_of(task: Task, batch: Any) -> Any:
    if task.split is not None:
        return checked_split(task.split, batch)[0]
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if pair or (isinstance(batch, Mapping) and any(key in batch for key in TARGET_KEYS)):
        return default_split(batch)[0]
    return batch


@contextlib.contextmanager
def _left_as_found(module: nn.Module) -> Iterator[None]:
    """Whatever the block does to the model and the random streams is undone."""
    state = read_state(module)
    try:
        yield
    finally:
        state.put_back()


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
    with _left_as_found(module):
        return seeded_outputs(module, inputs, forward)


def _checked(module: nn.Module, inputs: Any, options: dict[str, Any], *, mended: bool) -> Certificate:
    """What a plain `eval()` leaves; with `mended`, also which broken clauses `evaluating` keeps."""
    with _left_as_found(module):
        module.eval()
        certificate = check(module, inputs, **options).certificate
    broken = tuple(result.clause for result in certificate.clauses if result.verdict is Verdict.BROKEN)
    if not mended or not broken:
        return certificate
    with evaluating(module):
        again = check(module, inputs, **{**options, "clauses": broken})
    return _with_mended(certificate, again.certificate)


def _with_mended(plain: Certificate, inside: Certificate) -> Certificate:
    """Notes on the clauses that a plain `eval()` breaks and `evaluating` keeps."""
    mended = {result.clause: result for result in inside.clauses if result.verdict is Verdict.KEPT}
    clauses = []
    for result in plain.clauses:
        if result.verdict is Verdict.BROKEN and result.clause in mended:
            probes = mended[result.clause].probes
            note = f"mended: by evalmode.evaluating(model): kept there on {probes} probes"
            result = msgspec.structs.replace(result, notes=(*result.notes, note))
        clauses.append(result)
    return msgspec.structs.replace(
        plain, clauses=tuple(clauses), forward_passes=plain.forward_passes + inside.forward_passes
    )


def _with_non_finite_outputs(certificate: Certificate, error: NonFiniteOutputError) -> Certificate:
    """The clause `finite` broken by the test data; where it was not chosen, the error is the caller's."""
    if not any(result.clause == "finite" for result in certificate.clauses):
        raise error
    if any(finding.clause == "finite" for finding in certificate.findings):
        return certificate  # the probes have found the line already
    finding = Finding(
        code="EM192",
        clause="finite",
        summary="a sample of the test data gives outputs that are not finite",
        seen=error.got,
        fix="check with that sample: evalmode.check(model, inputs) names the line",
    )
    broken = {"verdict": Verdict.BROKEN, "evidence": f"{finding.code} {finding.summary}"}
    clauses = tuple(
        msgspec.structs.replace(result, **broken, probes=result.probes + 1) if result.clause == "finite" else result
        for result in certificate.clauses
    )
    return msgspec.structs.replace(certificate, clauses=clauses, findings=(*certificate.findings, finding))


def _evaluated(
    task: Task,
    module: nn.Module,
    device: torch.device,
    batches: Batches | None,
    limit: int | None,
    on_progress: Progress | None,
) -> LoopResult | NonFiniteOutputError | None:
    """The test data's figures; None without data, the error where an output is not finite."""
    if batches is None:
        return None

    def predict(inputs: Any) -> Any:
        outputs = call(module, map_tensors(lambda tensor: tensor.to(device), inputs), task.forward)
        return map_tensors(lambda tensor: tensor.cpu(), outputs)

    _tell(on_progress, "evaluate", 0, batches.samples)
    try:
        with _left_as_found(module), evaluating(module):
            return evaluate_batches(
                predict,
                batches,
                split=task.split,
                prediction=task.prediction,
                metrics=task.metrics,
                loss=task.loss,
                limit=limit,
                on_progress=lambda done: _tell(on_progress, "evaluate", done, batches.samples),
            )
    except NonFiniteOutputError as error:
        return error


def _tell(on_progress: Progress | None, stage: str, done: int, total: int | None) -> None:
    if on_progress is not None:
        on_progress(stage, done, total)
