"""Padding as the cause of a dependence: cut it off or add more, and compare the samples.

A mask is a tensor of zeros and ones, one value a position, named for what it is (by its key, or by the argument that it
is handed to), whose rows are filled up at one end. What belongs to it is every input of the same length, apart from
those of the decoder (or, for the decoder's mask, those of the decoder alone). Where there is no mask, a vector of
lengths tells the same, the largest being that of the inputs. Padding is cut and added with the values that the batch
itself pads with; a batch without padding is shortened, and padded with the model's own padding value.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from evalmode.checking.subject import Outputs, Subject
from evalmode.errors import ModelRunError
from evalmode.observe.batching import BatchAxis, difference, find_batch_axis, select_samples
from evalmode.observe.layouts import is_plain
from evalmode.observe.trace import Parting, Run, first_leak
from evalmode.observe.tree import map_leaves, same_bits, tensor_leaves
from evalmode.observe.wide import widened

__all__ = ["Padding", "PaddingLeak", "argument_names", "find_padding", "masks", "padding_leak"]

_DEPENDENCE = 1e-9
_SHRINKS = 1e-4
_MORE = 3
_MASK = re.compile(r"(?<![a-z_])(((decoder|encoder)_)?attention_mask|(\w+_)?pad(ding)?_mask|input_mask|mask)(?![a-z_])")
_LENGTHS = re.compile(r"(?<![a-z_])(\w+_)?(lengths?|lens|seq_?lens?)(?![a-z_])")
_TOKENS = re.compile(r"(ids|tokens|indices)(?![a-z])")
_POSITIONS = "position_ids"
_IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class Padding:
    """The mask of a padded batch, or its lengths: the path, each sample's length, and what it covers.

    `at_start` says that the padding comes first. `batch` is the padded batch: the given one, or one made of it.
    """

    path: str
    lengths: tuple[int, ...]
    total: int
    covered: frozenset[str]
    batch: Any
    name: str
    at_start: bool = False


@dataclass(frozen=True, slots=True)
class PaddingLeak:
    """An output that moves when only padding is cut off or added, and where in the model that begins."""

    what: str
    leaf: str
    gap: float
    parting: Parting | None


def find_padding(subject: Subject) -> list[Padding]:
    """Every mask of the batch, and every vector of lengths, with a padded batch for it: the given one, or the given one
    with shortened samples."""
    if isinstance(subject.axis, str) or subject.axis.axis != 0:
        return []
    names = argument_names(subject)
    found = []
    for path, leaf, real in masks(subject.batch, names):
        covered = _covered(subject.batch, path, leaf.shape)
        if not covered - {path} or leaf.shape[1] < 2:
            continue
        total, name = leaf.shape[1], names.get(path, path)
        batch = subject.batch
        if bool((leaf == real).all()):
            batch = _shortened(subject, path, covered, max(1, total // 2))
        mask = dict(tensor_leaves(batch))[path]
        lengths = tuple((mask == real).sum(1).tolist())
        at_start = bool((mask[:, -1] == real).all()) and min(lengths) < total
        if at_start:
            batch, covered = _with_positions(subject, batch, mask == real, covered)
        found.append(Padding(path, lengths, total, covered, batch, name, at_start))
    return found or _by_lengths(subject, names)


def _by_lengths(subject: Subject, names: Mapping[str, str]) -> list[Padding]:
    """The padding that a vector of lengths tells of, at the end of the inputs that are that long."""
    found = []
    for path, leaf in tensor_leaves(subject.batch):
        name = names.get(path, path)
        if not _LENGTHS.search(name.lower()) or not is_plain(leaf) or leaf.dim() != 1 or not leaf.numel():
            continue
        if leaf.is_floating_point() or leaf.is_complex() or leaf.dtype == torch.bool or int(leaf.min()) < 1:
            continue
        total, batch = int(leaf.max()), subject.batch  # another axis than that of the positions is seldom as long
        covered = _covered(batch, path, torch.Size((len(leaf), total)))
        if not covered or total < 2:
            continue
        if int(leaf.min()) == total:
            batch = _shortened(subject, path, covered, total // 2)
        lengths = tuple(dict(tensor_leaves(batch))[path].tolist())
        found.append(Padding(path, lengths, total, covered, batch, name))
    return found


def masks(batch: Any, names: Mapping[str, str] | None = None) -> list[tuple[str, torch.Tensor, float]]:
    """Every mask of the batch whose rows are filled up at one end, if at all, and its value for what is real.

    `names` are the names of inputs that have no key, by path.

    Example:
        >>> mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
        >>> [(path, real) for path, _, real in masks((mask * 5, mask), {"[1]": "attention_mask"})]
        [('[1]', 1.0)]
    """
    found = []
    for path, leaf in tensor_leaves(batch):
        name = (names or {}).get(path, path)
        if not _MASK.search(name.lower()) or leaf.dim() != 2 or not leaf.numel() or not is_plain(leaf):
            continue
        if leaf.is_complex() or not bool(((leaf == 0) | (leaf == 1)).all()):
            continue
        for real in dict.fromkeys((leaf[0, 0], leaf[0, -1])):
            lengths = (leaf == real).sum(1)
            places = torch.arange(leaf.shape[1], device=leaf.device)
            ends = places < lengths[:, None], places >= leaf.shape[1] - lengths[:, None]
            if int(lengths.min()) > 0 and any(bool((filled == (leaf == real)).all()) for filled in ends):
                found.append((path, leaf, float(real)))
                break
    return found


def argument_names(subject: Subject) -> dict[str, str]:
    """The names of the arguments that the parts of a tuple, or a lone tensor, are handed to, by path."""
    if subject.forward is not None or not isinstance(subject.batch, tuple):
        return {}
    try:
        parameters = list(inspect.signature(subject.model.forward).parameters.values())
    except (TypeError, ValueError):  # no signature: no names
        return {}
    places = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return {f"[{position}]": name for position, name in enumerate(places[: len(subject.batch)])}


def _shortened(subject: Subject, mask_path: str, covered: frozenset[str], length: int) -> Any:
    """The given batch with every second sample cut to `length` and padded, as a tokeniser would have done."""
    names = argument_names(subject)
    token = _padding_token(subject.model)

    def at(path: str, leaf: Any) -> Any:
        name = names.get(path, path).lower()
        if path == mask_path and leaf.dim() == 1:
            changed = leaf.clone()
            changed[::2] = length
            return changed
        if path not in covered or _POSITIONS in name:
            return leaf
        changed = leaf.clone()
        value: float = 0
        if path == mask_path:
            changed[::2, length:] = 1 - int(leaf[0, 0])
            return changed
        if not leaf.is_floating_point():
            if "label" in name:
                value = _IGNORED_LABEL
            elif token is None or not _TOKENS.search(name) or "type" in name:
                return leaf
            else:
                value = token
        changed[::2, length:] = value
        return changed

    return map_leaves(at, subject.batch)


def _padding_token(model: nn.Module) -> int | None:
    """The model's own padding value for token ids: that of its configuration or of its one embedding, if it has any."""
    token = getattr(getattr(model, "config", None), "pad_token_id", None)
    if isinstance(token, int) and token >= 0:
        return token
    rows = {inner.padding_idx for inner in model.modules() if isinstance(inner, nn.Embedding)}
    return next(iter(rows)) if len(rows) == 1 else None


def _with_positions(
    subject: Subject, batch: Any, real: torch.Tensor, covered: frozenset[str]
) -> tuple[Any, frozenset[str]]:
    """With padding at the start, positions are counted from the mask, where the model takes them and has none."""
    if not isinstance(batch, Mapping) or _POSITIONS in batch or subject.forward is not None:
        return batch, covered
    if _POSITIONS not in inspect.signature(subject.model.forward).parameters:
        return batch, covered
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    return {**batch, _POSITIONS: positions}, covered | {f"['{_POSITIONS}']"}


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
        gaps = _gaps(first, second, padding)
        if not gaps:
            continue
        wide = _gaps(subject.run_wide(padded), subject.run_wide(cut), padding)
        for leaf, (gap, scale) in wide.items():
            narrow = gaps.get(leaf, (0.0, 0.0))[0]
            if gap > _DEPENDENCE * scale + _SHRINKS * min(narrow, scale):
                return PaddingLeak(what, leaf, gap, _place(subject, padded, cut, size, padding)), probes
    return None, probes


def _pairs(subject: Subject, padding: Padding) -> Iterator[tuple[str, Any, Any, int]]:
    """Batches that differ in padding alone: what was done, the longer one, the shorter one, and their size."""
    shortest = min(padding.lengths)
    short = [position for position, length in enumerate(padding.lengths) if length == shortest]
    group = _picked(padding, short)
    if shortest < padding.total:
        yield "padding cut off", group, _cut(group, padding, shortest), len(short)
    if subject.probes != "fast" and shortest < padding.total:
        longest = max(padding.lengths)
        long = [position for position, length in enumerate(padding.lengths) if length == longest]
        full = _cut(_picked(padding, long), padding, longest)
        yield f"{_MORE} more columns of padding", _extended(full, padding), full, len(long)


def _picked(padding: Padding, positions: Sequence[int]) -> Any:
    axis = find_batch_axis(padding.batch)
    if isinstance(axis, str):  # other tensors than those that the mask covers are shared by all samples
        axis = BatchAxis(0, len(padding.lengths), padding.covered)
    return select_samples(padding.batch, axis, positions)


def _cut(batch: Any, padding: Padding, length: int) -> Any:
    def at(path: str, leaf: Any) -> Any:
        if path not in padding.covered:
            return leaf
        return leaf[:, padding.total - length :] if padding.at_start else leaf[:, :length]

    return map_leaves(at, batch)


def _extended(batch: Any, padding: Padding) -> Any:
    """The batch with more columns, each a copy of the outermost column of the sample with the most padding."""
    fullest = padding.lengths.index(min(padding.lengths))
    end = slice(0, 1) if padding.at_start else slice(-1, None)
    columns = {
        path: leaf[:, end] for path, leaf in tensor_leaves(_picked(padding, [fullest])) if path in padding.covered
    }

    def at(path: str, leaf: Any) -> Any:
        if path not in columns:
            return leaf
        more = columns[path].expand(len(leaf), _MORE, *leaf.shape[2:])
        return torch.cat([more, leaf] if padding.at_start else [leaf, more], 1)

    return map_leaves(at, batch)


def _covered(batch: Any, mask_path: str, shape: torch.Size) -> frozenset[str]:
    """The inputs with the mask's samples and positions, on the mask's side of an encoder and decoder."""
    side = "decoder" in mask_path.lower()
    return frozenset(
        path
        for path, leaf in tensor_leaves(batch)
        if leaf.dim() >= 2 and leaf.shape[:2] == shape and ("decoder" in path.lower()) == side
    )


def _gaps(padded: Outputs, cut: Outputs, padding: Padding) -> dict[str, tuple[float, float]]:
    """The largest difference and the scale of each output, with every axis cut to the shorter length."""
    found: dict[str, tuple[float, float]] = {}
    for path, other in cut.items():
        one = padded.get(path)
        if one is None or one.dim() != other.dim() or not other.is_floating_point():
            continue
        if any(a < b for a, b in zip(one.shape, other.shape, strict=True)):
            continue
        for axis, length in enumerate(other.shape):
            one = one.narrow(axis, one.shape[axis] - length if padding.at_start else 0, length)
        if not same_bits(one, other):
            found[path] = difference(one, other)
    return found


def _place(subject: Subject, padded: Any, cut: Any, size: int, padding: Padding) -> Parting | None:
    longer, shorter = widened(padded), widened(cut)
    first, second = Run(subject.wide_pass(longer), longer, size), Run(subject.wide_pass(shorter), shorter, size)
    try:
        return first_leak(first, second, subject.model, at_start=padding.at_start)
    except ModelRunError:  # it runs in fp64 only with its parameters widened, which cannot be followed
        return None
