"""Other companions for samples in a batch: other samples, other content, extreme values, NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from evalmode.checking.subject import Subject
from evalmode.observe.batching import BatchAxis
from evalmode.observe.layouts import replaced_rows, through_dense
from evalmode.observe.tree import map_leaves, tensor_leaves

__all__ = ["beside", "companion_kinds"]


def companion_kinds(axis: BatchAxis, batch: Any) -> tuple[str, ...]:
    """What companions can be replaced by: shifted content where a batch has one sample, or integers alone."""
    floating = any(_is_content(path, leaf) for path, leaf in tensor_leaves(batch))
    kinds = ["other companions"] if axis.size > 1 else []
    if axis.size == 1 or not floating:
        kinds.append("shifted companions")
    return (*kinds, "extreme companions", "NaN companions") if floating else tuple(kinds)


def beside(subject: Subject, batch: Any, order: Sequence[int], subjects: Sequence[int], kind: str) -> Any | None:
    """`batch`, made of the samples in `order`, with everyone but `subjects` replaced; None if that changes nothing."""
    axis = subject.axis
    if isinstance(axis, str):
        return None
    if kind == "other companions":
        return subject.samples(_others(order, subjects, axis.size - len(order)))
    chosen, change = set(subjects), _CHANGES[kind]
    if axis.listed:
        kept = (i in chosen or not _is_content("", leaf) for i, leaf in enumerate(batch))
        return [leaf if keep else through_dense(change, leaf) for keep, leaf in zip(kept, batch, strict=True)]
    changed = False
    replaced = [position for position in range(len(order)) if position not in chosen]

    def at(path: str, leaf: Any) -> Any:
        nonlocal changed
        shifted = kind == "shifted companions" and leaf.dim() > 1 and "mask" not in path.lower()
        if path not in axis.paths or not (shifted or _is_content(path, leaf)):
            return leaf
        changed = True
        return replaced_rows(leaf, axis.axis, replaced, change)

    mapped = map_leaves(lambda path, leaf: at(path, leaf) if isinstance(leaf, torch.Tensor) else leaf, batch)
    return mapped if changed else None


def _others(order: Sequence[int], subjects: Sequence[int], spare: int) -> list[int]:
    """Samples that the batch does not hold, as far as there are any; else the subjects once more."""
    found = list(order)
    for position in range(len(order)):
        if position not in subjects:
            repeated = order[subjects[position % len(subjects)]]
            found[position] = len(order) + position % spare if spare > 0 else repeated
    return found


def _half_repeated(rows: torch.Tensor) -> torch.Tensor:
    """Other content of the same kind: every second value is the first one, so token ids stay in the vocabulary."""
    changed = rows.roll(1, -1)
    changed[..., ::2] = rows[..., :1]
    return changed


def _is_content(path: str, leaf: torch.Tensor) -> bool:
    """Floating values may be replaced; masks, lengths and indices keep their meaning only as they are."""
    return leaf.is_floating_point() and leaf.dim() > 0 and "mask" not in path.lower()


_CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "shifted companions": _half_repeated,
    "extreme companions": lambda rows: rows.flip(-1) * 100 + 1,
    "NaN companions": lambda rows: torch.full_like(rows, float("nan")),
}
