"""`--input 8,3,224,224`: random inputs of a given shape, for a model without data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evalmode.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from evalmode.task import Task

__all__ = ["InputShape", "batch_for", "parse_input", "random_input"]

DTYPES = (
    "float32", "float64", "float16", "bfloat16", "complex64", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip
_SHORT = {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32"}
_FORM = re.compile(r"\s*(?P<shape>\d+(\s*,\s*\d+)*)\s*,?\s*(:\s*(?P<dtype>[a-z]+\d*)\s*(:\s*(?P<below>\d+)\s*)?)?")
_SEED = 0


@dataclass(frozen=True, slots=True)
class InputShape:
    """One random input: its shape, its dtype by name, and for whole numbers the bound below which they are drawn."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    below: int | None = None


def parse_input(text: str, origin: str = "--input") -> InputShape:
    """What an `--input` option says; `origin` is who said it, for messages.

    Raises:
        UsageError: it is not of the form SHAPE[:DTYPE[:BOUND]].

    Example:
        >>> parse_input("8,128:int64")
        InputShape(shape=(8, 128), dtype='int64', below=None)
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{origin} {text!r} cannot be read",
            expected="a shape, samples first, with an optional dtype and bound: 8,3,224,224 or 8,128:int64:30000",
        )
    shape = tuple(int(size) for size in match["shape"].split(","))
    dtype = _SHORT.get(match["dtype"] or "float32", match["dtype"] or "float32")
    if dtype not in DTYPES:
        raise UsageError(f"{origin} {text!r} has dtype {dtype!r}", expected=", ".join(DTYPES))
    if 0 in shape:
        raise UsageError(f"{origin} {text!r} has an axis of size 0", expected="sizes of at least 1, samples first")
    below = int(match["below"]) if match["below"] else None
    if below is not None and (not dtype.startswith(("int", "uint")) or below < 1):
        raise UsageError(f"{origin} {text!r} has a bound", expected="a bound of at least 1, and only for whole numbers")
    return InputShape(shape, dtype, below)


def batch_for(task: Task, shapes: Sequence[InputShape], label: str = "--input") -> tuple[Any, tuple[str, ...]]:
    """The batch to check with, on the model's device: random inputs of the shapes, or the task's own data.

    `label` is what the notes call the inputs.
    """
    import torch

    from evalmode.certification import model_device, module_of, probe_inputs
    from evalmode.evaluation.batches import batches_from
    from evalmode.observe.tree import map_tensors

    module = module_of(task)
    device = model_device(module)
    if not shapes:
        test_data = task.data("test_data")
        batch, where = probe_inputs(task, None if test_data is None else batches_from(test_data))
        return map_tensors(lambda tensor: tensor.to(device), batch), (where,)
    generator = torch.Generator().manual_seed(_SEED)
    inputs, notes = [], []
    for shape in shapes:
        tensor, note = random_input(shape, module, generator, label)
        inputs.append(tensor.to(device))
        notes.append(note)
    return inputs[0] if len(inputs) == 1 else tuple(inputs), tuple(notes)


def random_input(
    wanted: InputShape, model: nn.Module, generator: torch.Generator, label: str = "--input"
) -> tuple[torch.Tensor, str]:
    """A random tensor and in words what was drawn. Whole numbers stay below the model's smallest embedding."""
    import torch

    dtype = getattr(torch, wanted.dtype)
    name = f"{label} {','.join(map(str, wanted.shape))}"
    if dtype.is_floating_point or dtype.is_complex:
        kind = torch.float32 if dtype.is_floating_point else dtype
        return torch.randn(wanted.shape, generator=generator, dtype=kind).to(dtype), f"{name}: standard normal numbers"
    below = wanted.below
    if below is None:
        sizes = [module.num_embeddings for module in model.modules() if isinstance(module, torch.nn.Embedding)]
        limit = 2 if dtype is torch.bool else torch.iinfo(dtype).max
        below = min([*sizes, limit, *([] if sizes else [10])])
    tensor = torch.randint(below, wanted.shape, generator=generator, dtype=torch.int64).to(dtype)
    hint = "" if wanted.below or dtype is torch.bool else f" (:{wanted.dtype}:BOUND sets another bound)"
    return tensor, f"{name}: whole numbers from 0 to {below - 1}{hint}"
