"""Take a known dependence out of the passes, so that a second one elsewhere shows in the same check.

The modules that were found to mix samples are run sample by sample; every module counts as in evaluation mode, and a
batch norm that would use the batch's own statistics uses fixed ones. All of it lasts for one pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from evalmode.mode.discover import discover
from evalmode.observe.still import steady
from evalmode.observe.tree import leaves, map_leaves, tensor_leaves

__all__ = ["mended"]


@contextmanager
def mended(model: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """Inside this context the modules of `model` at `paths` see one sample at a time, and batch norms are fixed."""
    found = discover(model)
    named = {path: module for module in found.modules for path in [found.paths().get(id(module))] if path is not None}
    flags = [module for module in found.modules if not isinstance(module, torch.jit.ScriptModule) and module.training]
    forwards: list[tuple[nn.Module, Any]] = []
    for module in flags:
        module.training = False
    for path in paths:
        if path in named:
            module = named[path]
            forwards.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = _by_sample(module.forward)
    try:
        with steady():  # type: ignore[no-untyped-call]
            yield
    finally:
        for module, own in reversed(forwards):
            if own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = own
        for module in flags:
            module.training = True


def _by_sample(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` for each row of the first axis by itself, twice over, so that a batch of one is not met."""

    def each(*args: Any, **kwargs: Any) -> Any:
        tensors = [leaf for _, leaf in tensor_leaves((args, kwargs)) if leaf.dim() > 0]
        size = len(tensors[0]) if tensors else 0
        if size < 1:
            return forward(*args, **kwargs)
        parts = []
        for row in range(size):
            given, named = map_leaves(functools.partial(_twice, row, size), (args, kwargs))
            parts.append(forward(*given, **named))
        columns = [dict(leaves(part)) for part in parts]
        return map_leaves(lambda path, leaf: _joined([column.get(path, leaf) for column in columns]), parts[0])

    return each


def _twice(row: int, size: int, _: str, leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor) or leaf.dim() == 0 or len(leaf) != size:
        return leaf
    return torch.cat([leaf[row : row + 1]] * 2)


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    if not isinstance(first, torch.Tensor) or first.dim() == 0 or len(first) % 2:
        return first
    return torch.cat([part[: len(part) // 2] for part in parts])
