"""What is certified: a task with its model built, a device that can be used, and real inputs to probe with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from evalmode.errors import NotAModuleError, TaskError
from evalmode.evaluation.batches import Batches, batch_length, batches_from
from evalmode.evaluation.devices import model_device, on_device, usable_device
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
    "usable_device",
]

PROBE_SAMPLES = 16


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
    inputs = inputs_of(task, first)
    length = batch_length(inputs)
    if length is None:
        return inputs, f"probes: the first batch of the {origin} data"
    kept = min(length, samples)
    cut = map_tensors(lambda tensor: tensor[:kept] if tensor.dim() and len(tensor) == length else tensor, inputs)
    counted = "first sample" if kept == 1 else f"first {kept} samples"
    return cut, f"probes: the {counted} of the {origin} data"


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
