"""Padding as the cause of a dependence: cut it off or add more, and compare the samples.

A mask is a tensor of zeros and ones, one value a position, named for what it is, whose rows are filled up at the end.
What belongs to it is every input of the same length, apart from those of the decoder (or, for the decoder's mask, those
of the decoder alone). Padding is cut and added with the values that the batch itself pads with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from evalmode.checking.subject import Outputs, Subject
from evalmode.errors import ModelRunError
from evalmode.observe.batching import difference
from evalmode.observe.trace import Parting, Run, first_leak
from evalmode.observe.tree import map_leaves, same_bits, tensor_leaves
from evalmode.observe.wide import widened

__all__ = ["Padding", "PaddingLeak", "find_padding", "masks", "padding_leak"]

_DEPENDENCE = 1e-9
_SHRINKS = 1e-4
_MORE = 3
_MASK = re.compile(r"(?<![a-z])(((decoder|encoder)_)?attention_mask|(\w+_)?pad(ding)?_mask|input_mask|mask)(?![a-z_])")


@dataclass(frozen=True, slots=True)
class Padding:
    """The mask of a batch padded at the end: its path, each sample's length, and the inputs that it covers."""

    path: str
    lengths: tuple[int, ...]
    total: int
    covered: frozenset[str]


@dataclass(frozen=True, slots=True)
class PaddingLeak:
    """An output that moves when only padding is cut off or added, and where in the model that begins."""

    what: str
    leaf: str
    gap: float
    parting: Parting | None


def find_padding(batch: Any) -> list[Padding]:
    """Every mask of the batch whose rows are filled up at the end, where at least one row is.

    Example:
        >>> mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
        >>> [found.lengths for found in find_padding({"input_ids": mask * 5, "attention_mask": mask})]
        [(2, 3)]
    """
    found = []
    for path, leaf, real in masks(batch):
        lengths = (leaf == real).sum(1)
        covered = _covered(batch, path, leaf.shape)
        if bool((lengths < leaf.shape[1]).any()) and covered - {path}:
            found.append(Padding(path, tuple(lengths.tolist()), leaf.shape[1], covered))
    return found


def masks(batch: Any) -> list[tuple[str, torch.Tensor, float]]:
    """Every mask of the batch whose rows are filled up at the end, if at all, and its value for what is real."""
    found = []
    for path, leaf in tensor_leaves(batch):
        if not _MASK.search(path.lower()) or leaf.dim() != 2 or not leaf.numel() or leaf.is_complex():
            continue
        if not bool(((leaf == 0) | (leaf == 1)).all()):
            continue
        real = leaf[0, 0]
        lengths = (leaf == real).sum(1)
        filled = torch.arange(leaf.shape[1], device=leaf.device) < lengths[:, None]
        if bool((filled == (leaf == real)).all()) and int(lengths.min()) > 0:
            found.append((path, leaf, float(real)))
    return found


def padding_leak(subject: Subject, padding: Padding) -> tuple[PaddingLeak | None, int]:
    """What moves when padding is cut off or added, if anything, and how many probes were run.

    Raises:
        WideUnsupportedError: bits differ and the model cannot be run in fp64.
    """
    probes = 0
    for what, padded, cut, size in _pairs(subject, padding):
        try:
            first, second = subject.run(padded), subject.run(cut)
        except ModelRunError:  # a model of a fixed length, or a table of positions that ends
            continue
        probes += 2
        gaps = _gaps(first, second)
        if not gaps:
            continue
        wide = _gaps(subject.run_wide(padded), subject.run_wide(cut))
        for leaf, (gap, scale) in wide.items():
            narrow = gaps.get(leaf, (0.0, 0.0))[0]
            if gap > _DEPENDENCE * scale + _SHRINKS * min(narrow, scale):
                return PaddingLeak(what, leaf, gap, _place(subject, padded, cut, size)), probes
    return None, probes


def _pairs(subject: Subject, padding: Padding) -> Iterator[tuple[str, Any, Any, int]]:
    """Batches that differ in padding alone: what was done, the longer one, the shorter one, and their size."""
    shortest = min(padding.lengths)
    short = [position for position, length in enumerate(padding.lengths) if length == shortest]
    group = subject.samples(short)
    yield "padding cut off", group, _cut(group, padding, shortest), len(short)
    if subject.probes != "fast":
        longest = max(padding.lengths)
        long = [position for position, length in enumerate(padding.lengths) if length == longest]
        full = _cut(subject.samples(long), padding, longest)
        yield f"{_MORE} more columns of padding", _extended(full, subject, padding), full, len(long)


def _cut(batch: Any, padding: Padding, length: int) -> Any:
    return map_leaves(lambda path, leaf: leaf[:, :length] if path in padding.covered else leaf, batch)


def _extended(batch: Any, subject: Subject, padding: Padding) -> Any:
    """The batch with more columns, each a copy of the last column of the given sample with the most padding."""
    fullest = padding.lengths.index(min(padding.lengths))
    columns = {
        path: leaf[:, -1:] for path, leaf in tensor_leaves(subject.samples([fullest])) if path in padding.covered
    }

    def at(path: str, leaf: Any) -> Any:
        if path not in columns:
            return leaf
        return torch.cat([leaf, columns[path].expand(len(leaf), _MORE, *leaf.shape[2:])], 1)

    return map_leaves(at, batch)


def _covered(batch: Any, mask_path: str, shape: torch.Size) -> frozenset[str]:
    """The inputs with the mask's samples and positions, on the mask's side of an encoder and decoder."""
    side = "decoder" in mask_path.lower()
    return frozenset(
        path
        for path, leaf in tensor_leaves(batch)
        if leaf.dim() >= 2 and leaf.shape[:2] == shape and ("decoder" in path.lower()) == side
    )


def _gaps(padded: Outputs, cut: Outputs) -> dict[str, tuple[float, float]]:
    """The largest difference and the scale of each output, with every axis cut to the shorter length."""
    found: dict[str, tuple[float, float]] = {}
    for path, other in cut.items():
        one = padded.get(path)
        if one is None or one.dim() != other.dim() or not other.is_floating_point():
            continue
        if any(a < b for a, b in zip(one.shape, other.shape, strict=True)):
            continue
        for axis, length in enumerate(other.shape):
            one = one.narrow(axis, 0, length)
        if not same_bits(one, other):
            found[path] = difference(one, other)
    return found


def _place(subject: Subject, padded: Any, cut: Any, size: int) -> Parting | None:
    longer, shorter = widened(padded), widened(cut)
    first, second = Run(subject.wide_pass(longer), longer, size), Run(subject.wide_pass(shorter), shorter, size)
    try:
        return first_leak(first, second, subject.model)
    except ModelRunError:  # it runs in fp64 only with its parameters widened, which cannot be followed
        return None
