"""What a model's outputs are, for metrics: the one tensor with a row per sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalmode.errors import BatchError, ModelRunError, NonFiniteOutputError, TaskError
from evalmode.observe.tree import describe, leaves, map_leaves

__all__ = ["as_tensor", "is_listed", "joined", "main_output", "refuse_non_finite", "rows_of", "unreadable"]

_VALUES = (str, bytes, bool, int, float, type(None), np.generic)


def main_output(outputs: Any) -> tuple[Tensor | None, str]:
    """The tensor that answers, and in words what was inferred (empty where nothing had to be).

    A tensor is itself; of a mapping or Hugging Face output it is `logits`, or its only tensor; of a tuple or list it is
    the first entry, if that is a tensor. None where no tensor answers.
    """
    if isinstance(outputs, Tensor):
        return outputs, ""
    kind = type(outputs).__name__
    if isinstance(outputs, Mapping):
        tensors = [name for name, value in outputs.items() if isinstance(value, Tensor)]
        name = "logits" if "logits" in tensors else tensors[0] if len(tensors) == 1 else None
        return (None, "") if name is None else (outputs[name], f"outputs: {name!r} of the model's {kind}")
    if isinstance(logits := getattr(outputs, "logits", None), Tensor):
        return logits, f"outputs: 'logits' of the model's {kind}"
    if isinstance(outputs, tuple | list) and outputs and isinstance(outputs[0], Tensor) and outputs[0].ndim:
        return outputs[0], f"outputs: the first of the model's {len(outputs)} outputs"
    return None, ""


def as_tensor(values: Any) -> Tensor | None:
    """A tensor, array, number list or number array as a tensor; None for anything else."""
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, np.ndarray | np.generic) and values.dtype.kind in "biuf":
        return torch.as_tensor(np.asarray(values))
    if isinstance(values, list | tuple) and values and all(isinstance(v, bool | int | float) for v in values):
        return torch.tensor(values)
    if isinstance(values, list | tuple) and values and all(isinstance(v, Tensor) and not v.ndim for v in values):
        return torch.stack([value.detach() for value in values])
    return None


def refuse_non_finite(outputs: Tensor) -> None:
    """Raises `NonFiniteOutputError` where outputs are NaN or Inf.

    Minus infinity beside finite scores of the same sample is a class or token ruled out on purpose, and accepted.
    """
    if not outputs.is_floating_point() and not outputs.is_complex():
        return
    finite = outputs.isfinite()
    if bool(finite.all()):
        return
    bad = ~finite
    if outputs.ndim > 1 and outputs.is_floating_point():
        ruled_out = (outputs == -torch.inf) & outputs.isfinite().any(-1, keepdim=True)
        bad &= ~ruled_out
    if not bool(bad.any()):
        return
    rows = bad.reshape(len(bad), -1).any(1)
    raise NonFiniteOutputError(
        f"the model's outputs are NaN or Inf in {int(rows.sum())} of {len(rows)} samples of a batch",
        expected="finite outputs",
        fix="evalmode check TASK   # its clause `finite` points at the line",
        explain="finite",
    )


def joined(parts: list[Any], size: int) -> Any:
    """The outputs of equal executions as those of one: tensors, arrays, and lists of texts or numbers.

    Example:
        >>> joined([{"scores": torch.zeros(1), "words": ["a"]}, {"scores": torch.ones(1), "words": ["b"]}], 1)
        {'scores': tensor([0., 1.]), 'words': ['a', 'b']}
    """
    first = parts[0]
    if type(first) is list and is_listed(first, size) and all(isinstance(value, _VALUES) for value in first):
        return [value for part in parts for value in part]
    if type(first) is dict:
        return {name: joined([part[name] for part in parts], size) for name in first}
    if type(first) in {tuple, list}:
        return type(first)(joined([*entries], size) for entries in zip(*parts, strict=True))
    others = [dict(leaves(part)) for part in parts[1:]]

    def at(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor | np.ndarray) or not leaf.ndim or len(leaf) != size:
            return leaf
        pieces: list[Any] = [leaf, *(other[path] for other in others)]
        shapes = [tuple(piece.shape[1:]) for piece in pieces]
        if odd := [shape for shape in shapes if shape != shapes[0]]:
            raise ModelRunError(
                f"the model's outputs{f' at {path}' if path else ''} have rows of shape {shapes[0]} in one execution "
                f"and {odd[0]} in another",
                expected="rows of one shape, whatever samples run together",
                fix="pad the outputs to one length in forward(), or exact=False with a DataLoader",
            )
        return torch.cat(pieces) if isinstance(leaf, torch.Tensor) else np.concatenate(pieces)

    return map_leaves(at, first)


def is_listed(tree: object, size: int) -> bool:
    """Whether it is a list with an entry for each of the rows, as of texts.

    Example:
        >>> is_listed(["a", "b"], 2), is_listed([torch.zeros(2), torch.zeros(2)], 2)
        (True, False)
    """
    return isinstance(tree, list) and len(tree) == size and not any(isinstance(part, Tensor) for part in tree)


def rows_of(values: Tensor, *, what: str) -> int:
    """The number of samples along axis 0; `what` is the subject of the message.

    Raises:
        BatchError: there is no axis 0, or no sample on it.
    """
    if not values.ndim:
        raise BatchError(
            f"{what} one number for the whole batch",
            expected="one row per sample, shape (N, ...)",
            fix="return what belongs to each sample, e.g. the logits instead of a loss",
        )
    if not len(values):
        raise BatchError(f"{what} {describe(values)}: no samples", expected="at least one sample")
    return len(values)


def unreadable(outputs: Any) -> TaskError:
    """The error for outputs of which nobody can tell which tensor answers."""
    return TaskError(
        f"cannot tell which tensor of the model's outputs is the answer: {describe(outputs)}",
        expected="a tensor, a mapping with 'logits', or a tuple whose first entry answers",
        fix='def prediction(outputs): return outputs["scores"]   # in the task file',
    )
