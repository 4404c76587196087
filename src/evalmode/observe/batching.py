"""Samples of a batch: find the batch axis, select samples, and find the same samples again in any output.

A batch axis is found by its size: it follows the number of samples when that changes. An axis of several rows a sample
(tokens flattened into the batch) may be ordered sample by sample or the other way round; both readings are kept, and a
difference counts only if it shows in both.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evalmode.observe.layouts import divisible, picked_rows
from evalmode.observe.tree import map_leaves, same_bits, tensor_leaves

__all__ = [
    "BatchAxis",
    "Layout",
    "difference",
    "find_batch_axis",
    "layout_between",
    "lists_of",
    "rows_agree",
    "select_samples",
]


_ENTRIES = (str, bytes, type(None), np.ndarray, np.generic)  # of a list; numbers in a list may be a size
_PIECE = 1 << 17  # values that are compared at a time: in fp64 and several copies, a whole activation would be too much


@dataclass(frozen=True, slots=True)
class BatchAxis:
    """Where the samples of a batch lie: the axis, how many, and the paths of the leaves that have it.

    `listed` says that the batch is a list with one entry a sample.
    """

    axis: int
    size: int
    paths: frozenset[str]
    listed: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """The axes of a tensor that follow the batch, each with its rows a sample."""

    axes: tuple[tuple[int, int], ...]


def find_batch_axis(batch: Any, axis: int | str = "auto") -> BatchAxis | str:
    """The batch axis of `batch`, or why there is none.

    By itself it is axis 0 if every tensor with an axis has the same size there. A declared axis is taken from the first
    tensor that has it; tensors of another size there are shared by all samples.

    Example:
        >>> find_batch_axis((torch.zeros(4, 3), torch.zeros(4))).size
        4
        >>> find_batch_axis((torch.zeros(4, 3), torch.zeros(5)))
        'its tensors differ in their first axis (4 and 5): declare batch_axis='
    """
    tensors = [(path, leaf) for path, leaf in tensor_leaves(batch) if leaf.dim() > 0]
    if not tensors:
        return "the batch holds no tensor with an axis"
    whole = next((leaf for _, leaf in tensors if not divisible(leaf)), None)
    if whole is not None:
        kind = "block-sparse tensor" if type(whole) is torch.Tensor else type(whole).__name__
        return f"it holds a {kind}, which cannot be divided into samples"
    if isinstance(axis, int):
        having = [(path, leaf) for path, leaf in tensors if _has_axis(leaf, axis)]
        if not having:
            return f"no tensor of the batch has axis {axis}"
        size = having[0][1].size(axis)
        if size == 0:
            return "the batch is empty"
        return BatchAxis(axis, size, frozenset(path for path, leaf in having if leaf.size(axis) == size))
    if isinstance(batch, list) and all(isinstance(item, torch.Tensor) for item in batch) and len(batch) > 1:
        return BatchAxis(0, len(batch), frozenset(), listed=True)
    sizes = sorted({leaf.size(0) for _, leaf in tensors})
    if len(sizes) > 1:
        return f"its tensors differ in their first axis ({' and '.join(map(str, sizes[:3]))}): declare batch_axis="
    if sizes[0] == 0:
        return "the batch is empty"
    return BatchAxis(0, sizes[0], frozenset(path for path, _ in tensors))


def _has_axis(tensor: torch.Tensor, axis: int) -> bool:
    """Whether samples may lie along `axis`: of a nested tensor along the first only."""
    return axis in {0, -tensor.dim()} if tensor.is_nested else -tensor.dim() <= axis < tensor.dim()


def select_samples(batch: Any, axis: BatchAxis, positions: Sequence[int]) -> Any:
    """The batch made of the samples at `positions`; a position may be repeated.

    Beside tensors, arrays and lists of texts that have an entry for each sample are cut as well.

    Example:
        >>> batch = torch.arange(4)
        >>> select_samples(batch, find_batch_axis(batch), [2, 0]).tolist()
        [2, 0]
        >>> batch = {"x": torch.arange(3), "text": ["a", "b", "c"]}
        >>> select_samples(batch, find_batch_axis(batch), [2, 0])
        {'x': tensor([2, 0]), 'text': ['c', 'a']}
    """
    if axis.listed:
        return [batch[position] for position in positions]
    if isinstance(batch, torch.Tensor):
        return picked_rows(batch, axis.axis, positions) if axis.paths else batch

    def at(path: str, leaf: Any) -> Any:
        if path not in axis.paths:
            return leaf
        return picked_rows(leaf, axis.axis, positions)

    return map_leaves(at, _picked_entries(batch, axis.size, positions))


def lists_of(batch: Any) -> list[Sequence[Any]]:
    """The lists of texts (or bytes, or numpy values) and the numpy arrays of a batch, whose entries may be samples'.

    Example:
        >>> lists_of(({"text": ["a", "b"], "size": [2, 3]}, torch.zeros(2)))
        [['a', 'b']]
    """
    if _has_entries(batch):
        return [batch]
    parts = batch.values() if type(batch) is dict else batch if type(batch) in {tuple, list} else ()
    return [found for part in parts for found in lists_of(part)]


def _has_entries(part: Any) -> bool:
    if isinstance(part, np.ndarray):
        return part.ndim > 0
    return type(part) is list and bool(part) and all(isinstance(entry, _ENTRIES) for entry in part)


def _picked_entries(batch: Any, size: int, positions: Sequence[int]) -> Any:
    if _has_entries(batch):
        if len(batch) != size:
            return batch
        return batch[[*positions]] if isinstance(batch, np.ndarray) else [batch[position] for position in positions]
    if type(batch) is dict:
        return {name: _picked_entries(part, size, positions) for name, part in batch.items()}
    if type(batch) in {tuple, list}:
        return type(batch)(_picked_entries(part, size, positions) for part in batch)
    return batch


def layout_between(first: Sequence[int], first_size: int, second: Sequence[int], second_size: int) -> Layout | None:
    """The batch axes of a tensor that has shape `first` for `first_size` samples and `second` for `second_size`.

    None if no axis follows the number of samples, or one changes in another way.

    Example:
        >>> layout_between((4, 12, 3), 4, (5, 15, 3), 5)
        Layout(axes=((0, 1), (1, 3)))
    """
    if len(first) != len(second):
        return None
    axes = []
    for axis, (one, other) in enumerate(zip(first, second, strict=True)):
        if one == other:
            continue
        if one % first_size or one * second_size != other * first_size:
            return None
        axes.append((axis, one // first_size))
    return Layout(tuple(axes)) if axes else None


def readings(tensor: torch.Tensor, layout: Layout, size: int, positions: Sequence[int]) -> list[torch.Tensor]:
    """The rows of the samples at `positions`, once for each way to read the layout."""
    choices = []
    for axis, rows in layout.axes:
        sample_first = [position * rows + row for position in positions for row in range(rows)]
        row_first = [row * size + position for position in positions for row in range(rows)]
        choices.append([(axis, sample_first)] if rows == 1 else [(axis, sample_first), (axis, row_first)])
    found = []
    for choice in itertools.islice(itertools.product(*choices), 4):
        rows_of = tensor
        for axis, indices in choice:
            rows_of = _picked(rows_of, axis, indices)
        found.append(rows_of)
    return found


def _picked(tensor: torch.Tensor, axis: int, indices: Sequence[int]) -> torch.Tensor:
    """A view where the indices lie side by side, else a copy."""
    start = indices[0] if indices else 0
    if list(indices) == list(range(start, start + len(indices))):
        return tensor.narrow(axis, start, len(indices))
    return tensor.index_select(axis, torch.tensor(indices, dtype=torch.long, device=tensor.device))


def rows_agree(
    first: torch.Tensor,
    first_size: int,
    first_positions: Sequence[int],
    second: torch.Tensor,
    second_size: int,
    second_positions: Sequence[int],
    layout: Layout,
) -> tuple[bool, float, float]:
    """Whether the same samples have the same bits in two outputs; else the largest difference, and the scale.

    The reading of the layout in which they differ least decides.
    """
    best: tuple[bool, float, float] = (False, float("inf"), 1.0)
    pairs = zip(
        readings(first, layout, first_size, first_positions),
        readings(second, layout, second_size, second_positions),
        strict=True,
    )
    for one, other in pairs:
        if same_bits(one, other):
            return True, 0.0, 1.0
        gap, scale = difference(one, other)
        if gap <= best[1]:
            best = (False, gap, scale)
    return best


def difference(first: torch.Tensor, second: torch.Tensor) -> tuple[float, float]:
    """The largest difference of two tensors and the largest finite magnitude in them.

    Equal infinities and two NaNs differ by 0; a NaN or an infinity against a number by infinity.
    """
    if first.shape != second.shape:
        return float("inf"), 1.0
    if first.numel() == 0:
        return 0.0, 0.0
    dense = first.layout is second.layout is torch.strided and not first.is_nested
    if dense and first.is_floating_point() and torch.equal(first, second):  # often, and much cheaper
        scale = max(abs(value.item()) for value in torch.aminmax(first.detach()))
        if scale < float("inf"):
            return 0.0, scale
    found = [_piece_difference(one, other) for one, other in zip(_pieces(first), _pieces(second), strict=True)]
    return max(gap for gap, _ in found), max(scale for _, scale in found)


def _pieces(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    dense = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    return torch.split(dense.reshape(-1), _PIECE)


def _piece_difference(first: torch.Tensor, second: torch.Tensor) -> tuple[float, float]:
    one, other = _as_double(first), _as_double(second)
    same = (one == other) | (one.isnan() & other.isnan())
    gaps = (one - other).abs().masked_fill(same, 0.0)
    gap = gaps.nan_to_num(nan=float("inf"), posinf=float("inf")).max().item()
    magnitudes = torch.cat([one.abs(), other.abs()])
    finite = magnitudes[magnitudes.isfinite()]
    return float(gap), float(finite.max().item()) if finite.numel() else 0.0


def _as_double(tensor: torch.Tensor) -> torch.Tensor:
    dense = tensor.detach()
    return dense.to(torch.complex128) if dense.is_complex() else dense.to(torch.float64)
