"""What `optimize` was asked for, checked: each function gives one option as the search wants it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from evalmode.errors import UsageError
from evalmode.optimization.task_margin import demand_data
from evalmode.optimization.tolerance import Tolerance

__all__ = [
    "Objective",
    "budget_of",
    "device_of",
    "memory_of",
    "names_of",
    "objective_of",
    "require_functions",
    "require_task",
    "sizes_of",
    "truth_of",
]

Objective = Literal["throughput", "latency"]
_LARGEST = 2**20  # samples of a batch that is tried


def require_task(tolerance: Tolerance, data: Any, metric: Any) -> None:
    """Nothing where data and a metric are there for the tolerance `task`, and only for it.

    Raises:
        UsageError: the data are missing, or would not be looked at.
    """
    if tolerance.kind == "task":
        demand_data(data)
        return
    given = [name for name, value in (("data", data), ("metric", metric)) if value is not None]
    if given:
        raise UsageError(
            f"{' and '.join(given)} would not be looked at: the tolerance is {tolerance.kind!r}",
            expected="data and a metric with the tolerance 'task' alone: 'fp32' measures against fp64",
            fix=f"tolerance='task', or leave {' and '.join(given)} out",
        )


def require_functions(**given: Any) -> None:
    """Nothing where each of these options is a function or None.

    Raises:
        UsageError: one is something else.

    Example:
        >>> require_functions(forward=len, on_progress=None)
    """
    for name, value in given.items():
        if value is not None and not callable(value):
            raise UsageError(f"{name} is {value!r}", expected="a function, or None")


def truth_of(name: str, value: bool) -> bool:
    """A truth value.

    Raises:
        UsageError: it is something else: any text would count as true.
    """
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}", expected="True or False")
    return value


def names_of(passes: Iterable[str] | None) -> tuple[str, ...] | None:
    """Names of passes; None for the usual ones."""
    if passes is None or isinstance(passes, str):
        return None if passes is None else (passes,)
    names = tuple(passes) if isinstance(passes, Iterable) else (passes,)
    if any(not isinstance(name, str) for name in names):
        raise UsageError(f"passes is {passes!r}", expected="names of passes", fix="evalmode explain lists them")
    return names


def objective_of(objective: Objective) -> Objective:
    """What is to be fast."""
    if objective not in ("throughput", "latency"):
        raise UsageError(f"objective is {objective!r}", expected="'throughput' or 'latency'")
    return objective


def sizes_of(sizes: Sequence[int] | None) -> tuple[int, ...] | None:
    """The batch sizes of the callers, in order; None where they are not given."""
    if sizes is None:
        return None
    given = tuple(sizes) if isinstance(sizes, Iterable) else (sizes,)
    if not given or any(not isinstance(size, int) or isinstance(size, bool) or size < 1 for size in given):
        raise UsageError(f"batch_sizes is {sizes!r}", expected="whole numbers of samples from 1, such as (1, 8)")
    if max(given) > _LARGEST:
        raise UsageError(f"a batch size is {max(given):,}", expected=f"at most {_LARGEST:,} samples in a call")
    return tuple(sorted(set(given)))


def budget_of(seconds: float) -> float:
    """Seconds for everything."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise UsageError(f"budget_s is {seconds!r}", expected="a positive number of seconds")
    return float(seconds)


def memory_of(limit: float | None) -> float | None:
    """How many times plain's peak memory a plan may need."""
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < float("inf"):
        raise UsageError(
            f"memory is {limit!r}", expected="how many times plain's peak memory a plan may need, or None for no limit"
        )
    return float(limit)


def device_of(model: nn.Module, device: str | torch.device | None) -> torch.device:
    """Where the model is; a wish for another place is refused, because a plan is made for where it runs.

    Raises:
        UsageError: the model is elsewhere, or in several places.
    """
    places = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(places) > 1:
        raise UsageError(
            f"the model lies on {', '.join(sorted(map(str, places)))}", expected="one device", fix="model.to(device)"
        )
    here = places.pop() if places else torch.device("cpu")
    if device is None:
        return here
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device is {device!r}", expected=f"a device of torch, such as {str(here)!r}") from error
    if wanted.type != here.type or wanted.index not in {None, here.index}:
        raise UsageError(
            f"device is {str(wanted)!r}, but the model is on {str(here)!r}",
            expected="the device that the model is on",
            fix=f"evalmode.optimize(copy.deepcopy(model).to({str(wanted)!r}), batch)",
        )
    return here
