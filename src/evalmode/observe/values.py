"""The numbers among what a model gives, as tensors: its tensors, numpy arrays, plain numbers and lists of numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch

from evalmode.observe.tree import dense_leaves, leaves

__all__ = ["value_leaves"]

_LAST_POSITION = re.compile(r"\[\d+\]$")


def value_leaves(tree: object) -> list[tuple[str, torch.Tensor]]:
    """Every number of `tree` in a dense tensor, with its path; a list of numbers is one tensor.

    Example:
        >>> [(path, leaf.tolist()) for path, leaf in value_leaves({"scores": [0.5, 0.25], "count": 2})]
        [("['scores']", [0.5, 0.25]), ("['count']", 2)]
    """
    found = dense_leaves(tree)
    others = [(path, leaf) for path, leaf in leaves(tree) if not isinstance(leaf, torch.Tensor)]
    if not others:
        return found
    numbers: dict[str, list[tuple[str, object]]] = {}
    mixed = {_holder(path) for path, _ in found}
    for path, leaf in others:
        if isinstance(leaf, bool | int | float | complex):
            numbers.setdefault(_holder(path), []).append((path, leaf))
            continue
        mixed.add(_holder(path))
        if isinstance(leaf, np.ndarray | np.generic):
            found += [(path, array) for array in _of_numbers([np.array(leaf)])]
    for holder, members in numbers.items():
        if holder in mixed or not _LAST_POSITION.search(members[0][0]):
            found += [(path, number) for path, leaf in members for number in _of_numbers([leaf])]
        else:
            found += [(holder, together) for together in _of_numbers([[leaf for _, leaf in members]])]
    return found


def _holder(path: str) -> str:
    """The path of the list that holds a leaf, or of the leaf itself."""
    return _LAST_POSITION.sub("", path)


def _of_numbers(values: Sequence[object]) -> list[torch.Tensor]:
    """Each value as a tensor, without those that torch has no dtype for."""
    found = []
    for value in values:
        array = np.asarray(value)
        if array.dtype.kind not in "biufc":
            continue
        try:
            found.append(torch.from_numpy(array))
        except (TypeError, ValueError):  # extended precision, another byte order
            continue
    return found
