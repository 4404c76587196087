"""The optimised plan of a task: searched for on its own data, and evaluated beside the plain model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import torch

from evalmode.certificate import Certificate, ClauseResult
from evalmode.certification.preparation import inputs_of, module_of, on_device, read
from evalmode.clause import Verdict
from evalmode.errors import EvalmodeError, TaskError, UsageError
from evalmode.evaluation.batches import batches_from
from evalmode.evaluation.split import checked_split, default_split
from evalmode.measure.catalog import metric_named
from evalmode.measure.metric import Metric
from evalmode.observe.tree import map_tensors
from evalmode.optimization.optimizer import optimize
from evalmode.optimization.task_data import metric_of_outputs
from evalmode.predictor.optimized import OptimizedPredictor
from evalmode.task import Task

__all__ = ["agreement", "budget_of", "first_inputs", "not_optimized", "optimize_loaded", "task_pairs", "with_plan"]

BUDGET_S = 60.0
ENVIRONMENT = "EVALMODE_BUDGET"


def budget_of(given: float | None) -> float:
    """Seconds for the search for a plan: what was given, else `$EVALMODE_BUDGET`, else a minute. 0 searches for none.

    Raises:
        UsageError: it is no number of seconds.
    """
    text = os.environ.get(ENVIRONMENT)
    if given is None and not text:
        return BUDGET_S
    try:
        seconds = float(given if given is not None else text or 0)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(
            f"the budget for a plan is {given if given is not None else text!r}", expected="seconds, from 0 (no search)"
        )
    return seconds


def optimize_loaded(
    task: Task,
    *,
    device: str | None = None,
    tolerance: str = "fp32",
    objective: Literal["throughput", "latency"] = "throughput",
    batch_sizes: Sequence[int] | None = None,
    batch_size: int = 64,
    on_progress: Callable[[str, int, int | None], object] | None = None,
    **options: Any,
) -> tuple[OptimizedPredictor, list[str]]:
    """A predictor of the task's model, searched for with the first batch of its data, and what is to be said.

    Raises:
        TaskError: the task has no data.
        OptimizationError: the model cannot be optimised.
    """
    module, target = on_device(module_of(task), device)
    inputs, origin = first_inputs(task, max(batch_sizes or (batch_size,)))
    data = metric = None
    notes = [f"built with the first batch of the {origin} data"]
    if tolerance == "task":
        data, metric = task_pairs(task, batch_size)
        named = "" if metric is None else f" and {metric.name}"
        alone = "; the task names no metric that has a value for each sample" if metric is None else ""
        notes.append(f"tolerance task: decisions{named} are held against plain on the test data{alone}")
    inputs = map_tensors(lambda tensor: tensor.to(target), inputs)
    fast = optimize(
        module,
        inputs,
        forward=task.forward,
        tolerance=tolerance,
        data=data,
        metric=metric,
        objective=objective,
        batch_sizes=batch_sizes,
        on_progress=on_progress,
        **options,
    )
    if fast.certificate is not None and task.name:
        fast.attach(msgspec.structs.replace(fast.certificate, subject=task.name))
    return fast, notes


def task_pairs(task: Task, batch_size: int) -> tuple[list[Any], Metric | None]:
    """The pairs (inputs, target) that the tolerance "task" is held against, and the first metric of the task that has a
    value for each sample."""
    batches = batches_from(task.data("test_data"), batch_size)
    pairs = [_pair(task, batch) for batch in read(batches, task, "test_data")]
    return pairs, _metric_of_samples(task.metrics)


def _metric_of_samples(metrics: object) -> Metric | None:
    if metrics is None:
        return None
    if isinstance(metrics, str | Metric) or callable(metrics):
        metrics = (metrics,)
    named: list[tuple[str, Any]]
    if isinstance(metrics, Mapping):
        named = [(str(name), metric) for name, metric in metrics.items()]
    else:
        named = [(getattr(metric, "__name__", "metric"), metric) for metric in metrics]  # type: ignore[attr-defined]
    for name, one in named:
        metric = metric_named(one) if isinstance(one, str) else one
        if isinstance(metric, Metric):
            if metric.statistic is None:
                return metric
        elif callable(metric) and not hasattr(metric, "compute"):  # what torchmetrics has gives one figure in the end
            return metric_of_outputs(metric, name)
    return None


def first_inputs(task: Task, batch_size: int) -> tuple[Any, str]:
    """The model's inputs in the first batch of the task's data, and which data.

    Raises:
        TaskError: there are none.
        BatchError: a sample cannot be read.
    """
    parts: tuple[tuple[Literal["test_data", "train_data"], str], ...] = (
        ("test_data", "test"),
        ("train_data", "training"),
    )
    for part, origin in parts:
        data = task.data(part)
        if data is None:
            continue
        batch = next(read(batches_from(data, batch_size), task, part), None)
        if batch is not None:
            return inputs_of(task, batch), origin
    raise TaskError(
        f"{task.home} has no data to optimise with",
        expected="def test_data() that returns a DataLoader, a Dataset, or a pair (inputs, targets)",
        fix="add it to the task",
    )


def with_plan(certificate: Certificate, fast: OptimizedPredictor) -> Certificate:
    """The certificate with the verdict on the plan, and what the search tried."""
    made = fast.certificate
    if made is None:
        return certificate
    return msgspec.structs.replace(
        certificate, clauses=(*certificate.clauses, *made.clauses), optimization=made.optimization
    )


def not_optimized(certificate: Certificate, reason: EvalmodeError | str) -> Certificate:
    """The certificate with `faithful` not tested, and why."""
    text = str(reason).splitlines()[0]
    clause = ClauseResult(clause="faithful", verdict=Verdict.NOT_TESTED, evidence=text)
    return msgspec.structs.replace(certificate, clauses=(*certificate.clauses, clause))


def without_plan(certificate: Certificate, fast: OptimizedPredictor, error: EvalmodeError) -> Certificate:
    """The certificate after a plan that the test data refuted: it answered with NaN or infinity where plain does not.

    The predictor is closed: nothing may run it.
    """
    reason = f"rejected: on the test data {error.got}, where plain eval() gives finite ones"
    record = certificate.optimization
    if record is not None:
        plans = [
            msgspec.structs.replace(plan, outcome="rejected", reason=reason) if plan.outcome == "chosen" else plan
            for plan in record.plans
        ]
        record = msgspec.structs.replace(record, plans=tuple(plans))
    fast.close()
    clauses = [
        ClauseResult(clause="faithful", verdict=Verdict.NOT_TESTED, evidence=f"the plan was {reason}")
        if result.clause == "faithful"
        else result
        for result in certificate.clauses
    ]
    return msgspec.structs.replace(certificate, clauses=tuple(clauses), optimization=record)


def agreement(plain: torch.Tensor | None, optimized: torch.Tensor | None) -> tuple[int, int] | None:
    """On how many of how many samples both give the same answer; None where answers are not whole numbers.

    Shapes: `(N, ...)`; a sample agrees if all of its answers do.

    Example:
        >>> agreement(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 0]))
        (2, 3)
    """
    if plain is None or optimized is None or plain.shape != optimized.shape or not plain.dim() or not len(plain):
        return None
    if plain.is_floating_point() or plain.is_complex():
        return None
    return int((plain == optimized).reshape(len(plain), -1).all(1).sum()), len(plain)


def _pair(task: Task, batch: Any) -> Iterable[Any]:
    if task.split is not None:
        return checked_split(task.split, batch)
    inputs, target, _ = default_split(batch)
    return inputs, target
