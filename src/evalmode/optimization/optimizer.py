"""`evalmode.optimize`: the fastest way to run a model that gives the same answers; and `evalmode.refresh`."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from evalmode.backends.backend import Backend
from evalmode.backends.catalog import BACKEND_NAMES, backend_named
from evalmode.backends.catalog import backends as all_backends
from evalmode.errors import BatchError, OptimizationError, UsageError
from evalmode.mode.derived import staleness_unchecked
from evalmode.mode.discover import require_modules
from evalmode.mode.streams import StreamHold, hold_streams, release_streams
from evalmode.observe.batching import find_batch_axis
from evalmode.observe.fingerprint import environment_record, fingerprint
from evalmode.observe.state import left_as_found
from evalmode.observe.tree import describe
from evalmode.observe.weights import require_weights
from evalmode.optimization.code_digest import code_digest
from evalmode.optimization.exporting import Exported, program_of
from evalmode.optimization.judge import Judge, judge_of
from evalmode.optimization.options import (
    Objective,
    budget_of,
    device_of,
    memory_of,
    names_of,
    objective_of,
    require_functions,
    require_task,
    sizes_of,
    truth_of,
)
from evalmode.optimization.outcome import cached_plan, predictor_of, resume
from evalmode.optimization.padded_axis import padded_axis
from evalmode.optimization.plan_cache import CachedPlan, cache_key, read_plan, write_plan
from evalmode.optimization.search import Progress, Search, SearchSettings
from evalmode.optimization.subject import Subject
from evalmode.optimization.task_data import TaskData, task_data
from evalmode.optimization.task_margin import samples_needed
from evalmode.optimization.tolerance import Tolerance
from evalmode.predictor.calling import call
from evalmode.predictor.optimized import OptimizedPredictor
from evalmode.predictor.structure import Structure

__all__ = ["optimize", "refresh"]

_DATA_SHARE = 0.15  # of the budget, for plain's own answers to the user's data
_PADDING_SHARE = 0.1  # of the budget, for the test whether padding under a mask is inert


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What the user asked for, in the words of `optimize`; `refresh` asks for the same again."""

    forward: Callable[[Any, Any], Any] | None
    tolerance: Tolerance
    data: Any
    metric: Any
    objective: Objective
    sizes: tuple[int, ...] | None
    backends: tuple[Backend, ...]
    passes: tuple[str, ...] | None
    stable: bool
    device: torch.device
    budget: float
    memory: float | None


_requests: weakref.WeakKeyDictionary[OptimizedPredictor, _Request] = weakref.WeakKeyDictionary()


def optimize(
    model: nn.Module,
    batch: Any,
    *,
    forward: Callable[[Any, Any], Any] | None = None,
    tolerance: str | Tolerance = "fp32",
    data: Any = None,
    metric: Any = None,
    objective: Objective = "throughput",
    batch_sizes: Sequence[int] | None = None,
    backends: Iterable[str] | None = None,
    passes: Iterable[str] | None = None,
    stable: bool = True,
    device: str | torch.device | None = None,
    budget_s: float = 60,
    memory: float | None = 1.0,
    on_progress: Progress | None = None,
) -> OptimizedPredictor:
    """The fastest way to run `model` that gives the same answers, as a predictor; the model itself is not changed.

    Every back end that is installed is tried, in several execution shapes, beside plain `eval()`. What is fastest must
    pass the gate: with `tolerance="fp32"` its error against fp64 is at most a small multiple of the error that plain
    fp32 makes itself; with `"task"`, on `data`, few answers change and `metric` loses little. If nothing that passes is
    surely faster, plain eager runs. With `stable`, each sample gets the same bits in any batch.

    Parameters:
        batch: inputs like those that will come, in the form of the model's `forward`; `forward(model, batch)` replaces
            the calling rule.
        data, metric: for `tolerance="task"`: a pair or an iterable of pairs (inputs, target), and a metric's name or
            function.
        objective: "throughput" weighs the batch sizes of the callers alike, by default that of `batch`; so does
            "latency", by default for one sample.
        backends, passes: names, to try only these; an empty `passes` applies none.
        device: where the model is; to run elsewhere, move it first.
        budget_s: seconds for everything.
        memory: how many times plain's peak memory a plan may need; None for no limit.

    Raises:
        NotAModuleError, BatchError, UsageError: an argument is wrong.
        ModelRunError: the model fails on the batch.
        OptimizationError: the outputs of the model cannot be cut into samples.
        UnstableModelError: the same input gives other bits each time, even alone.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        >>> fast = optimize(model, torch.randn(4, 8), backends=["eager"], budget_s=5)
        >>> fast(torch.randn(19, 8)).shape
        torch.Size([19, 8])
    """
    (model,) = require_modules((model,), "optimize")
    require_weights((*model.named_parameters(), *model.named_buffers()))
    judged = Tolerance.of(tolerance)
    require_task(judged, data, metric)
    require_functions(forward=forward, on_progress=on_progress)
    request = _Request(
        forward=forward,
        tolerance=judged,
        data=data,
        metric=metric,
        objective=objective_of(objective),
        sizes=sizes_of(batch_sizes),
        backends=_backends(backends),
        passes=names_of(passes),
        stable=truth_of("stable", stable),
        device=device_of(model, device),
        budget=budget_of(budget_s),
        memory=memory_of(memory),
    )
    return _with_own_streams(model, batch, request, on_progress or _silent)


def refresh(predictor: OptimizedPredictor, model: nn.Module) -> OptimizedPredictor:
    """`predictor` anew, from the weights that `model` has now: the same plan, which has to pass the gate again.

    Where it no longer passes, or is no longer faster, a new search is made with the settings of the first. The old
    predictor is closed.

    Raises:
        UsageError: the predictor was loaded from a file: make one with `optimize`.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> fast = optimize(model, torch.randn(2, 4), backends=["eager"], budget_s=5)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> fast.matches(model)
        False
        >>> refresh(fast, model).matches(model)
        True
    """
    request = _requests.get(predictor)
    if request is None or predictor.probes is None:
        raise UsageError(
            f"{predictor!r} was not made by `optimize` in this process",
            expected="a predictor that evalmode.optimize returned",
            fix="fast = evalmode.optimize(model, batch)",
        )
    (model,) = require_modules((model,), "refresh")
    batch = Structure(predictor.plan.input_form).rebuild(predictor.probes)
    anew = _with_own_streams(model, batch, request, _silent, start=cached_plan(predictor))
    predictor.close()
    return anew


def _with_own_streams(
    model: nn.Module, batch: Any, request: _Request, say: Progress, start: CachedPlan | None = None
) -> OptimizedPredictor:
    """The search leaves the process's random streams and the model as they were, whatever the model does."""
    begin = time.perf_counter()
    hold = StreamHold()
    hold_streams(hold)
    try:
        say("exporting", 0, None)
        with staleness_unchecked():  # an older predictor of this model may be the very reason for the call
            exported = program_of(model, batch, request.forward)
        untouched = left_as_found(model, parameters=False, streams=False)
        with contextlib.nullcontext() if exported.copied else untouched:
            return _optimized(model, exported, request, say, begin, start)
    finally:
        release_streams(hold)


def _optimized(
    model: nn.Module, exported: Exported, request: _Request, say: Progress, begin: float, start: CachedPlan | None
) -> OptimizedPredictor:
    if exported.uncut:
        _require_samples(exported)
        raise OptimizationError(
            f"an answer cannot be cut into samples: {exported.uncut[0]}",
            expected="outputs with one entry for each sample",
            fix='forward=lambda model, batch: model(**batch)["logits"]   # leave the others out',
        )
    if not exported.output_structure.paths:
        raise OptimizationError(
            f"the outputs of {type(model).__name__} hold no tensor",
            expected="a tensor, or a tuple, list or mapping with tensors",
            fix="forward=lambda model, batch: ...   # return what is to be computed",
        )
    usual = exported.program.batch if request.objective == "throughput" else 1
    subject = Subject(exported, request.sizes or (usual,), fingerprint(model), request.forward)
    notes = [*exported.notes, *subject.rewrite(request.passes)]
    if exported.program.exported is None:
        notes.append(f"only back ends that need no graph: {exported.program.export_error}")
    subject.padded, lengths = padded_axis(subject, _PADDING_SHARE * request.budget)
    notes += lengths
    task = _task(subject, request)
    notes += [] if task is None or not task.note else [task.note]
    settings = SearchSettings(
        backends=request.backends,
        precisions=("fp32",) if request.tolerance.kind == "fp32" else None,
        threads=torch.get_num_threads() if request.device.type == "cpu" else 1,
        device=str(request.device),
        stable=request.stable,
        budget=request.budget,
        memory=request.memory,
        answers=0 if task is None else task.count,
    )

    def judge_within(seconds: float) -> Judge:
        return judge_of(subject, request.tolerance, task=task, candidates=_candidates(request), seconds=seconds)

    search = Search(subject, settings, judge_within, say, started_at=begin, notes=notes)
    key = _key(model, subject, request, settings)
    known = start or (read_plan(key) if key is not None else None)
    if known is not start and known is not None and task is not None and not known.configurations:
        known = None  # that nothing passed was said of other data
    if known is None or not resume(search, known):
        search.run()
        known = None
    predictor = predictor_of(search, model, request.objective, known)
    _requests[predictor] = request
    if known is None and key is not None:
        write_plan(key, cached_plan(predictor))
    return predictor


def _require_samples(exported: Exported) -> None:
    """Nothing where it is known which axes of the inputs count samples.

    Raises:
        BatchError: it is not.
    """
    found = find_batch_axis(exported.input_structure.rebuild(exported.program.inputs))
    if not isinstance(found, str):
        return
    given = zip(exported.program.input_names, exported.program.inputs, strict=True)
    raise BatchError(
        f"the batch cannot be cut into samples: {found.removesuffix(': declare batch_axis=')}: "
        + ", ".join(f"{name} {describe(tensor)}" for name, tensor in given),
        expected="inputs whose first axis counts samples, as many in each",
        fix="an input that all samples share: repeat it for each, as shared.expand(len(batch), ...), or make it inside "
        "forward=lambda model, batch: ...",
    )


def _task(subject: Subject, request: _Request) -> TaskData | None:
    """The user's data, where the tolerance asks for them."""
    if request.tolerance.kind != "task":
        return None
    model: Any = subject.flat.model
    return task_data(
        request.data,
        request.metric,
        lambda inputs: call(model, inputs, request.forward),
        seconds=_DATA_SHARE * request.budget,
        least=samples_needed(request.tolerance, _candidates(request)),
    )


def _candidates(request: _Request) -> int:
    """How many plans may be held against the data: the bounds are corrected for all of them."""
    return sum(len(backend.precisions(str(request.device))) for backend in request.backends)


def _key(model: nn.Module, subject: Subject, request: _Request, settings: SearchSettings) -> str | None:
    """Everything that decides which plan wins; None where not all of it can be told."""
    code = code_digest(model, request.forward, subject.program.exported)
    if code is None:
        return None
    return cache_key(
        subject.weights,
        code,
        [(str(x.dtype), tuple(x.shape)) for x in subject.program.inputs],
        str(subject.exported.input_structure.root),
        subject.sizes,
        request.tolerance,
        request.objective,
        request.passes,
        request.stable,
        request.memory,
        request.budget,
        settings.threads,
        [(backend.name, backend.missing() or backend.version()) for backend in request.backends],
        environment_record(request.device),
    )


def _backends(names: Iterable[str] | None) -> tuple[Backend, ...]:
    if names is None:
        return all_backends()
    if isinstance(names, str):
        names = (names,)
    given = tuple(names) if isinstance(names, Iterable) else (names,)
    if any(not isinstance(name, str) for name in given):
        raise UsageError(f"backends is {names!r}", expected=f"names among {', '.join(BACKEND_NAMES)}")
    chosen = tuple(backend_named(name) for name in dict.fromkeys(given))
    if not chosen:
        raise UsageError("no back end is left to try", expected=", ".join(BACKEND_NAMES))
    return chosen


def _silent(stage: str, done: int, total: int | None) -> None:
    """No progress is wanted."""
