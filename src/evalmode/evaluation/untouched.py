"""Functions of the user's that may write into what they are given: found out, and from then on given copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from evalmode.errors import TaskError
from evalmode.observe.layouts import is_plain
from evalmode.observe.tree import leaves, map_leaves, same_bits

__all__ = ["Untouched"]


class Untouched:
    """Calls a function so that what it is given keeps its values.

    The first call is made with copies, and shows whether they are written into. If so, `tell` is told once, and every
    later call is made with copies too. Otherwise later calls are given the things themselves, and torch's counts of
    writes are compared; the first write that is found then is told, and copies are given from there on. What it changed
    is lost: where others read it afterwards (`shared`), it is an error.

    Writes that torch does not count, as through `.data` or a numpy view, are seen only if they change a value in the
    first call.

    Raises:
        TaskError: a later call changed what others read.

    Example:
        >>> held = torch.ones(2)
        >>> Untouched(lambda given: given.add_(1), "it", print)(held), held
        it writes into what it is given: it was given copies
        (tensor([2., 2.]), tensor([1., 1.]))
    """

    def __init__(
        self, function: Callable[..., Any], name: str, tell: Callable[[str], object], *, shared: bool = False
    ) -> None:
        self.function, self.name, self.tell, self.shared = function, name, tell, shared
        self.writes: bool | None = None

    def __call__(self, *given: Any) -> Any:
        if self.writes is False:
            return self._watched(given)
        copies = map_leaves(lambda _, leaf: _copied(leaf), given)
        if self.writes:
            return self.function(*copies)
        held = [leaf for _, leaf in leaves(copies)]
        before = [_version(leaf) for leaf in held]
        found = self.function(*copies)
        self.writes = [_version(leaf) for leaf in held] != before or not all(
            map(_same, held, (leaf for _, leaf in leaves(given)))
        )
        if self.writes:
            self.tell(f"{self.name} writes into what it is given: it was given copies")
        return found

    def _watched(self, given: tuple[Any, ...]) -> Any:
        held = _tensors(given)
        before = [_version(leaf) for leaf in held]
        found = self.function(*given)
        if [_version(leaf) for leaf in held] == before:
            return found
        self.writes = True
        said = f"{self.name} wrote into what it was given, though not in its first call"
        if self.shared:
            raise TaskError(
                f"{said}: what reads it afterwards would read other values",
                expected="a function that changes none of its arguments",
                fix="operations without an underscore, or .clone() of what is written into",
            )
        self.tell(f"{said}: data in memory has changed there; from then on it was given copies")
        return found


def _tensors(given: tuple[Any, ...]) -> list[Any]:
    if all(isinstance(part, torch.Tensor) for part in given):
        return list(given)
    return [leaf for _, leaf in leaves(given) if isinstance(leaf, torch.Tensor)]


def _copied(leaf: Any) -> Any:
    """A copy of an array with the same strides, which keeps a version wherever the function runs."""
    if isinstance(leaf, np.ndarray):
        return leaf.copy(order="K")
    if not isinstance(leaf, torch.Tensor):
        return leaf
    with torch.inference_mode(mode=False), torch.no_grad():
        if type(leaf) is not torch.Tensor or not is_plain(leaf) or leaf.is_inference() or 0 in leaf.stride():
            copy = leaf.detach().clone()
        else:
            copy = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device).copy_(leaf)
    return copy.requires_grad_(leaf.requires_grad)


def _version(leaf: Any) -> int:
    """How often a tensor was written to, so far: also by writes that changed no value this time."""
    return leaf._version if isinstance(leaf, torch.Tensor) and not leaf.is_inference() else 0  # noqa: SLF001


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return same_bits(first, second)
    return not isinstance(first, np.ndarray) or first.tobytes() == second.tobytes()
