"""The rows of a group: what counts its samples where no tensor does, and what answers each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalmode.evaluation.outputs import main_output
from evalmode.observe.batching import BatchAxis, find_batch_axis, lists_of
from evalmode.observe.layouts import is_plain
from evalmode.observe.tree import leaves, same_bits, tensor_leaves

__all__ = ["alike", "answers_of", "rows_axis"]


def rows_axis(inputs: Any) -> BatchAxis | str:
    """The batch axis of a group, or why there is none. Without tensors, lists of texts of one length count samples.

    Example:
        >>> rows_axis({"text": ["a", "b", "c"]}).size
        3
    """
    found = find_batch_axis(inputs)
    if not isinstance(found, str) or tensor_leaves(inputs):
        return found
    lengths = {len(part) for part in lists_of(inputs)}
    return BatchAxis(0, lengths.pop(), frozenset()) if len(lengths) == 1 else found


def answers_of(outputs: Any, size: int) -> tuple[Tensor, ...]:
    """The tensors with a row for each of `size` samples: the one that answers first, then all others.

    Example:
        >>> answers_of({"features": torch.zeros(2, 3), "logits": torch.ones(2), "loss": torch.zeros(())}, 2)[0]
        tensor([1., 1.])
    """
    main, _ = main_output(outputs)
    found = [] if main is None else [main]
    found += [leaf for _, leaf in tensor_leaves(outputs) if leaf is not main]
    found += [torch.as_tensor(leaf) for _, leaf in leaves(outputs) if _is_numbers(leaf)]
    return tuple(leaf for leaf in found if is_plain(leaf) and leaf.ndim and len(leaf) == size)


def alike(first: object, second: object) -> bool:
    """Whether two leaves are the same, bit for bit."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return same_bits(first, second)
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    return first is second or (type(first) is type(second) and bool(first == second))


def _is_numbers(leaf: object) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf"
