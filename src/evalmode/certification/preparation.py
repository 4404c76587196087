"""What is certified: a task with its model built, a device that can be used, and real inputs to probe with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import nn
from torch.utils.data import DataLoader

from evalmode.errors import BatchError, EvalmodeError, NotAModuleError, TaskError
from evalmode.evaluation.batches import Batches, batch_length, batches_from, loaded_apart
from evalmode.evaluation.devices import model_device, on_device, usable_device
from evalmode.evaluation.loader_checks import worker_deaths_told
from evalmode.evaluation.split import TARGET_KEYS, checked_split, default_split
from evalmode.observe.tree import describe, map_tensors
from evalmode.task import Task

__all__ = [
    "as_task",
    "inputs_as_then",
    "inputs_of",
    "model_device",
    "module_of",
    "on_device",
    "probe_inputs",
    "read",
    "usable_device",
]

PROBE_SAMPLES = 16


def probe_inputs(task: Task, batches: Batches | None, samples: int = PROBE_SAMPLES) -> tuple[Any, str]:
    """The model's inputs for at most `samples` samples of the task's data, and in words where they come from.

    Raises:
        TaskError: the task has neither test nor training data.
        BatchError: a sample cannot be read.
    """
    part: Literal["test_data", "train_data"] = "test_data"
    if batches is None:
        part = "train_data"
        train_data = task.data(part)
        if train_data is None:
            raise TaskError(
                f"{task.home} has no test data, so there is no batch to check with",
                expected="def test_data() that returns a DataLoader, a Dataset, or a pair (inputs, targets)",
                fix="add it to the task, or give the shape of an input: evalmode check TASK --input 8,3,224,224",
            )
        batches = batches_from(train_data, samples, samples)
    origin = "test" if part == "test_data" else "training"
    first = next(read(batches, task, part), None)
    if first is None:
        raise TaskError(f"the {origin} data of {task.home} gave no batch", expected="at least one sample")
    inputs = inputs_of(task, first)
    length = batch_length(inputs)
    if length is None:
        return inputs, f"probes: the first batch of the {origin} data"
    kept = min(length, samples)
    cut = map_tensors(lambda tensor: tensor[:kept] if tensor.dim() and len(tensor) == length else tensor, inputs)
    counted = "first sample" if kept == 1 else f"first {kept} samples"
    return cut, f"probes: the {counted} of the {origin} data"


def read(batches: Batches, task: Task, part: Literal["test_data", "train_data"]) -> Iterator[Any]:
    """The batches of a part of the task's data.

    Raises:
        BatchError: one cannot be read; the message names the sample where the data can be asked for it alone.
        TaskError: a process that reads samples died.
    """
    try:
        with worker_deaths_told():
            yield from batches
    except EvalmodeError:
        raise
    except Exception as error:
        place, cause = _unreadable(task.data(part)) or (None, error)
        where = f"the data of {part}()" if place is None else f"sample {place} of {part}()"
        raise BatchError(
            f"{where} cannot be read: {type(cause).__name__}: {cause}",
            expected="samples that can be read",
            fix="mend it, or leave it out of the data",
        ) from error


def _unreadable(data: Any) -> tuple[int, Exception] | None:
    """The first sample of a dataset, or of a DataLoader's, that cannot be read, and why."""
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        return None
    for place in range(len(dataset)):
        try:
            loaded_apart(lambda place=place: [dataset[place]])  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - a decoder of the user's may raise anything
            return place, error
    return None


def inputs_as_then(task: Task, described: str) -> Any:
    """As many of the first samples of the data as a certificate was tested with, where they look as it says; else None.

    `described` is the certificate's own word on them, such as `float32[8, 6]`.
    """
    counted = re.search(r"\[(\d+)", described)
    data = task.data("test_data")
    if counted is None or data is None or not (count := int(counted[1])):
        return None
    inputs, _ = probe_inputs(task, batches_from(data, count), count)
    return inputs if describe(inputs) == described else None


def as_task(model: nn.Module | Task, given: Mapping[str, Any]) -> Task:
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


def inputs_of(task: Task, batch: Any) -> Any:
    """The model's inputs in a batch of the task's data: without the target, as far as one can tell."""
    if task.split is not None:
        return checked_split(task.split, batch)[0]
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if pair or (isinstance(batch, Mapping) and any(key in batch for key in TARGET_KEYS)):
        return default_split(batch)[0]
    return batch
