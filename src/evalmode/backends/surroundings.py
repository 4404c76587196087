"""What the calling thread has switched on, kept out of an execution: gradients, inference mode, autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

__all__ = ["undisturbed"]

Given = TypeVar("Given")
Answer = TypeVar("Answer")


def undisturbed(device: str, work: Callable[[Given], Answer], given: Given) -> Answer:
    """`work(given)` without gradients, inference mode or autocast, so that its outputs are ordinary tensors.

    Example:
        >>> with torch.inference_mode(), torch.autocast("cpu"):
        ...     undisturbed("cpu", lambda x: (x @ x).dtype, torch.ones(2, 2))
        torch.float32
    """
    if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device):
        with _switched_off(device):
            return work(given)
    if torch.is_grad_enabled():
        with torch.no_grad():
            return work(given)
    return work(given)


@contextlib.contextmanager
def _switched_off(device: str) -> Iterator[None]:
    with torch.inference_mode(mode=False), torch.no_grad(), torch.autocast(device, enabled=False):
        yield
