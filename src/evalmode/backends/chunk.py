"""What goes into an execution and comes out of it."""

from __future__ import annotations

from torch import Tensor

__all__ = ["Chunk"]

Chunk = tuple[Tensor, ...]
"""The inputs, or the outputs, of one execution: every tensor has the execution's own shape."""
