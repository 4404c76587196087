"""What a predictor takes and gives: names, dtypes, shapes, and the axes that may have any length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from evalmode.errors import BatchError
from evalmode.observe.batching import BatchAxis, find_batch_axis
from evalmode.observe.tree import tensor_leaves

__all__ = ["Signature", "TensorSpec", "signature_of"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: its path in the batch, dtype and shape; None in the shape is a free axis.

    `most` are the lengths that free axes may have at most, by axis.

    Example:
        >>> print(TensorSpec("ids", torch.int64, (None, None), {1: 12}))
        ids: int64[*, <=12]
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]
    most: Mapping[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        free = {axis: f"<={length}" for axis, length in self.most.items()}
        sizes = ", ".join(free.get(axis, "*") if size is None else str(size) for axis, size in enumerate(self.shape))
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')}[{sizes}]"

    def accepts(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` has this dtype and shape, free axes aside."""
        if tensor.dtype != self.dtype or tensor.dim() != len(self.shape):
            return False
        free = self.most.get
        wanted = enumerate(zip(self.shape, tensor.shape, strict=True))
        return all(given <= free(axis, given) if size is None else size == given for axis, (size, given) in wanted)


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs of a predictor, and how a batch of them is called: `mapping`, `tuple` or `single`."""

    inputs: tuple[TensorSpec, ...]
    call: str

    def __str__(self) -> str:
        return f"{self.call}({', '.join(map(str, self.inputs))})"

    def require(self, batch: Any) -> None:
        """Refuse a batch that does not fit.

        Raises:
            BatchError: a tensor is missing, unknown, or of another dtype or shape.
        """
        given = {_name(path): tensor for path, tensor in tensor_leaves(batch)}
        wanted = {spec.name: spec for spec in self.inputs}
        if given.keys() != wanted.keys():
            raise BatchError(
                f"the batch holds {', '.join(given) or 'no tensors'}", expected=", ".join(wanted) or "no tensors"
            )
        for name, tensor in given.items():
            if not wanted[name].accepts(tensor):
                got = TensorSpec(name, tensor.dtype, tuple(tensor.shape))
                raise BatchError(f"got {got}", expected=str(wanted[name]))


def signature_of(batch: Any, batch_axis: int | str = "auto") -> Signature:
    """The signature that `batch` shows: its batch axis is free, every other axis is as long as here.

    Example:
        >>> str(signature_of({"ids": torch.zeros(4, 7, dtype=torch.long)}))
        'mapping(ids: int64[*, 7])'
    """
    axis = find_batch_axis(batch, batch_axis)
    inputs = tuple(
        TensorSpec(_name(path), leaf.dtype, _free_shape(path, leaf, axis)) for path, leaf in tensor_leaves(batch)
    )
    return Signature(
        inputs, "mapping" if isinstance(batch, Mapping) else "tuple" if isinstance(batch, tuple) else "single"
    )


def _free_shape(path: str, leaf: torch.Tensor, axis: BatchAxis | str) -> tuple[int | None, ...]:
    sizes: list[int | None] = list(leaf.shape)
    if isinstance(axis, BatchAxis) and path in axis.paths:
        sizes[axis.axis] = None
    return tuple(sizes)


def _name(path: str) -> str:
    """`['ids']` is `ids`, a lone tensor is `input`; a nested path stays as it is."""
    if not path:
        return "input"
    inner = path.removeprefix("['").removesuffix("']")
    return inner if inner.isidentifier() else path
