"""See each backward pass that fills `.grad`, however it is called.

`Tensor.backward` and `torch.autograd.backward` end in one function of `torch.autograd`; `torch.autograd.grad`, which
fills no `.grad`, ends there too and is told apart by its argument.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["seeing_backward"]

_NAME = "_engine_run_backward"


@contextmanager
def seeing_backward(note: Callable[[], None]) -> Iterator[None]:
    """Call `note` before each backward pass inside this context.

    Example:
        >>> seen = []
        >>> leaf = torch.ones(1, requires_grad=True)
        >>> with seeing_backward(lambda: seen.append("backward")):
        ...     torch.autograd.backward(leaf * 2)
        ...     _ = torch.autograd.grad(leaf * 2, leaf)
        >>> seen
        ['backward']
    """
    engine = getattr(torch.autograd, _NAME)

    @functools.wraps(engine)
    def noted(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("accumulate_grad", False):
            note()
        return engine(*args, **kwargs)

    setattr(torch.autograd, _NAME, noted)
    try:
        yield
    finally:
        if getattr(torch.autograd, _NAME) is noted:
            setattr(torch.autograd, _NAME, engine)
