"""Tensors that are not plain (nested, sparse, quantised, MKL-DNN): their dense parts, and the way back.

Everything that compares or changes values works on dense tensors. A nested tensor is one dense tensor a sample; what
holds no numbers (the meta device) has no parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch

__all__ = ["dense_parts", "divisible", "is_plain", "picked_rows", "replaced_rows", "through_dense"]

Change = Callable[[torch.Tensor], torch.Tensor]

_SAME_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FEW_OPERATORS = re.compile(r"torch\.(uint(16|32|64)|float8_\w+)")
_BLOCKED = (torch.sparse_bsr, torch.sparse_bsc)
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, *_BLOCKED)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor is one dense block of numbers."""
    plain = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized
    return plain and not tensor.is_meta and not _inside(tensor)


def dense_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The numbers of a tensor as dense tensors: one, or one a sample for a nested tensor; none for a meta tensor.

    Example:
        >>> [part.tolist() for part in dense_parts(torch.eye(2).to_sparse())]
        [[[1.0, 0.0], [0.0, 1.0]]]
        >>> [len(part) for part in dense_parts(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))]
        [2, 3]
    """
    if tensor.is_meta:
        return []
    inside = _inside(tensor)
    if inside:
        return [part for one in inside for part in dense_parts(one)]
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.is_quantized:
        return [tensor.int_repr()]
    return [tensor if tensor.layout is torch.strided else tensor.to_dense()]


def divisible(tensor: torch.Tensor) -> bool:
    """Whether samples can be picked out of the tensor along its first axis."""
    return tensor.layout not in _BLOCKED and not _inside(tensor)


def picked_rows(tensor: torch.Tensor, axis: int, positions: Sequence[int]) -> torch.Tensor:
    """The rows at `positions` in the tensor's own layout; a plain tensor keeps the order of its strides.

    Example:
        >>> images = torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last)
        >>> picked_rows(images, 0, [2, 2, 1]).is_contiguous(memory_format=torch.channels_last)
        True
    """
    if tensor.is_nested:
        parts = list(tensor.unbind())
        return _nested([parts[position] for position in positions], tensor)
    if isinstance(positions, range) and positions.step == 1 and axis == 0 and _in_order(tensor):
        return tensor[positions.start : positions.stop].clone()  # fresh memory, as below, and no index to make
    rows = torch.tensor(positions, dtype=torch.long, device=tensor.device)
    if tensor.layout is torch.sparse_coo or tensor.is_quantized:
        return tensor.index_select(axis, rows)
    if tensor.layout is not torch.strided:
        return _like(tensor.to_dense().index_select(axis, rows), tensor)
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda at: -strides[at])
    if order == list(range(tensor.dim())):
        return tensor.index_select(axis, rows)
    permuted = tensor.permute(order).index_select(order.index(axis % tensor.dim()), rows)
    return permuted.permute([order.index(at) for at in range(tensor.dim())])


def _in_order(tensor: torch.Tensor) -> bool:
    """Whether the values lie in the order of the axes, without holes."""
    return tensor.layout is torch.strided and not tensor.is_quantized and tensor.is_contiguous()


def replaced_rows(tensor: torch.Tensor, axis: int, positions: Sequence[int], change: Change) -> torch.Tensor:
    """The tensor with `change` done to its rows at `positions`, in its own layout.

    Example:
        >>> replaced_rows(torch.ones(3, 2), 0, [1], torch.zeros_like).tolist()
        [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    """
    if tensor.is_nested:
        parts = list(tensor.unbind())
        for position in positions:
            parts[position] = _changed(parts[position][None], change)[0]
        return _nested(parts, tensor)

    def at(dense: torch.Tensor) -> torch.Tensor:
        rows = torch.tensor(positions, dtype=torch.long, device=dense.device)
        new = _changed(dense.index_select(axis, rows), change)
        return _bits(dense).index_copy(axis, rows, _bits(new)).view(dense.dtype)

    return through_dense(at, tensor)


def through_dense(change: Change, tensor: torch.Tensor) -> torch.Tensor:
    """What `change` makes of the tensor's dense form, in the tensor's own layout.

    Example:
        >>> through_dense(lambda x: x * 2, torch.eye(2).to_sparse()).layout
        torch.sparse_coo
    """
    if tensor.is_nested:
        return _nested([_changed(part, change) for part in tensor.unbind()], tensor)
    if tensor.is_quantized or tensor.layout is not torch.strided:
        return _like(change(tensor.dequantize() if tensor.is_quantized else tensor.to_dense()), tensor)
    return _changed(tensor, change)


def _changed(dense: torch.Tensor, change: Change) -> torch.Tensor:
    """`change` done in a dtype for which every operator is written, and the result in the tensor's own."""
    if not _FEW_OPERATORS.fullmatch(str(dense.dtype)):
        return change(dense).to(dense.dtype)
    wider = torch.float32 if dense.is_floating_point() else torch.int64
    return change(dense.to(wider)).to(dense.dtype)


def _bits(dense: torch.Tensor) -> torch.Tensor:
    """The same bits in a dtype that can be moved about."""
    if not _FEW_OPERATORS.fullmatch(str(dense.dtype)):
        return dense
    return dense.contiguous().view(_SAME_WIDTH[dense.itemsize])


def _nested(parts: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    return torch.nested.as_nested_tensor(parts, layout=like.layout)


def _like(dense: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_quantized:
        if tensor.qscheme() in {torch.per_tensor_affine, torch.per_tensor_symmetric}:
            return torch.quantize_per_tensor(dense, tensor.q_scale(), tensor.q_zero_point(), tensor.dtype)
        scales, zeros, axis = (
            tensor.q_per_channel_scales(),
            tensor.q_per_channel_zero_points(),
            tensor.q_per_channel_axis(),
        )
        return torch.quantize_per_channel(dense, scales, zeros, axis, tensor.dtype)
    if str(tensor.layout) == "torch._mkldnn":
        return dense.to_mkldnn()
    if tensor.layout in _COMPRESSED:
        blocks = tuple(tensor.values().shape[1:3]) if tensor.layout in _BLOCKED else None
        return dense.to_sparse(layout=tensor.layout, blocksize=blocks)
    return dense.to_sparse(tensor.sparse_dim())


def _inside(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a wrapper (a masked tensor, a subclass that says what it wraps) holds; none for others."""
    if type(tensor) is torch.Tensor or tensor.is_nested:
        return []
    if hasattr(tensor, "get_data") and hasattr(tensor, "get_mask"):
        return [tensor.get_data(), tensor.get_mask()]
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return [getattr(tensor, name) for name in flatten()[0]] if callable(flatten) else []
