"""How far rounding alone can move a model's outputs: each module's inputs are moved by one unit in the last place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from evalmode.observe.layouts import is_plain
from evalmode.observe.tree import map_tensors

__all__ = ["nudged", "nudging"]


def nudged(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with every second value one unit in the last place larger, and the others smaller.

    Example:
        >>> values = torch.tensor([1.0, 1.0, float("inf")])
        >>> (nudged(values) - values).tolist()
        [1.1920928955078125e-07, -1.1920928955078125e-07, nan]
    """
    if not tensor.is_floating_point() or not is_plain(tensor) or not tensor.numel():
        return tensor
    order = torch.arange(tensor.numel(), device=tensor.device).reshape(tensor.shape)
    signs = (1 - 2 * (order % 2)).to(tensor.dtype)
    return torch.addcmul(tensor, tensor, signs, value=torch.finfo(tensor.dtype).eps)


@contextmanager
def nudging() -> Iterator[None]:
    """Inside this context every module that is called gets nudged tensors."""

    def nudge(module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        return map_tensors(nudged, arguments)

    handle = register_module_forward_pre_hook(nudge)
    try:
        yield
    finally:
        handle.remove()
