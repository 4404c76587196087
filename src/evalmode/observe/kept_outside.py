"""Find tensors that a forward pass made and that live on after it, held by something outside the model."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from evalmode.finding import Place
from evalmode.mode.dispatch_mode import DispatchMode
from evalmode.observe.attribution import ModuleStack, place_of
from evalmode.observe.higher_order import run_inside

__all__ = ["KeptOutside", "Made", "made_tensors"]


@dataclass(frozen=True, slots=True)
class KeptOutside:
    """A tensor that is still held: the operator that made it, where, its bytes, and whether it has a graph."""

    operator: str
    place: Place
    size: int
    with_graph: bool


class Made:
    """What one pass made, without keeping it alive."""

    def __init__(self, seen: Sequence[tuple[weakref.ref[torch.Tensor], str, Place]]) -> None:
        self._seen = seen

    def alive(self) -> list[KeptOutside]:
        """What is still held by anyone; cycles that nobody reaches are collected first."""
        if not self._living():
            return []
        gc.collect()
        return [
            KeptOutside(name, place, tensor.numel() * tensor.element_size(), tensor.grad_fn is not None)
            for tensor, name, place in self._living()
        ]

    def _living(self) -> list[tuple[torch.Tensor, str, Place]]:
        held = [(reference(), name, place) for reference, name, place in self._seen]
        return [(tensor, name, place) for tensor, name, place in held if tensor is not None]


def made_tensors(run: Callable[[], Any], model: nn.Module | None) -> Made:
    """The floating tensors that `run()`, one forward pass, makes.

    Example:
        >>> memory = []
        >>> made = made_tensors(lambda: memory.append(torch.ones(2) * 3), None)
        >>> [kept.operator for kept in made.alive()]
        ['aten.mul.Tensor']
    """
    with ModuleStack(model) as stack:
        watch = _Watch(stack)
        with watch:
            run()
    return Made(watch.seen)


class _Watch(DispatchMode):
    supports_higher_order_operators = True

    def __init__(self, stack: ModuleStack) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[weakref.ref[torch.Tensor], str, Place]] = []
        self._stack = stack

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(func, torch._ops.HigherOrderOperator):  # noqa: SLF001 - cond, while_loop, flex_attention
            return run_inside(self, func, args, kwargs or {})
        outputs = func(*args, **(kwargs or {}))
        before = {id(leaf) for leaf in pytree.tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)}
        for leaf in pytree.tree_leaves(outputs):
            if isinstance(leaf, torch.Tensor) and id(leaf) not in before and leaf.is_floating_point():
                self.seen.append((weakref.ref(leaf), str(func), place_of(self._stack.top)))
        return outputs
