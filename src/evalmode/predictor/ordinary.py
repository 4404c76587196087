"""Blocks in which what is made are ordinary tensors without a graph, whatever the caller has on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["nothing_on", "ordinary_tensors"]


@contextlib.contextmanager
def _outside_inference_mode() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextlib.contextmanager
def _without_autocast(kinds: Sequence[str]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_outside_inference_mode())
        yield


def nothing_on(device: str, inputs: Sequence[Tensor]) -> bool:
    """Whether what is made of these inputs are ordinary tensors without a graph, with no block around it."""
    if torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if device != "cpu" and torch.is_autocast_enabled(device):
        return False
    for tensor in inputs:  # noqa: SIM110 - this runs for every call, and a generator takes three times as long
        if tensor.requires_grad:
            return False
    return True


def ordinary_tensors(device: str) -> contextlib.AbstractContextManager[object]:
    """A block that gives what `no_grad` gives, whatever the caller has on: inference mode, autocast, gradients.

    What is made inside are ordinary tensors without a graph: they may take part in training afterwards, as the outputs
    of `torch.no_grad()` may.

    Example:
        >>> with torch.inference_mode(), ordinary_tensors("cpu"):
        ...     torch.ones(1).is_inference()
        False
    """
    on_device = device != "cpu" and torch.is_autocast_enabled(device)
    if on_device or torch.is_autocast_enabled("cpu"):
        return _without_autocast(["cpu", device] if on_device else ["cpu"])
    return _outside_inference_mode() if torch.is_inference_mode_enabled() else torch.no_grad()
