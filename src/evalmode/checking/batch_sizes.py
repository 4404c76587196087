"""The classes of batch sizes that agree bit for bit, and where in the model they part."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from evalmode.checking.batch_probes import Probes
from evalmode.checking.examination import Measured
from evalmode.errors import ModelRunError
from evalmode.observe.attribution import module_paths
from evalmode.observe.layouts import is_plain
from evalmode.observe.tree import tensor_leaves

__all__ = ["covered", "first_module", "rounding_note", "size_classes", "sizes_to_try"]

_SIZES = (1, 2, 3, 4, 5, 8, 16, 32)
_MANY = 16


def sizes_to_try(probes: str, given: int) -> tuple[int, ...]:
    """The batch sizes to compare; beyond 16 only as far as twice the given batch, unless `thorough` is asked for.

    Example:
        >>> sizes_to_try("default", 8)
        (1, 2, 3, 4, 5, 8, 16)
    """
    if probes == "fast":
        return (1, 2)
    if probes == "thorough":
        return tuple(range(1, 33))
    return tuple(size for size in _SIZES if size <= max(_MANY, 2 * given))


def covered(probes: Probes, size: int, decided: list[int]) -> bool:
    """Whether a size needs no decision of its own: its samples have the bits that they have in one already decided."""
    return any(least >= min(size, probes.size) and probes.between(least, size).same for least in decided)


def size_classes(probes: Probes, sizes: tuple[int, ...]) -> Measured:
    """The classes of batch sizes that agree bit for bit, and the largest difference between any two.

    `differences between classes` has a row a class: how far it lies from each class before it. Where the outputs hold
    one score a class: how many samples were compared, and of how many of them the decision is another one in some
    class of sizes.
    """
    classes: list[list[int]] = []
    apart: list[list[float]] = []
    largest, answers = 0.0, 0
    changed: set[int] = set()
    for size in sorted({*sizes, probes.size} & probes.sizes.keys()):
        against = probes.between(probes.size, size)  # the reference holds every sample that is compared
        changed |= against.changed
        answers = max(answers, against.answers if size != probes.size else 0)
        gaps: list[float] = []
        for members in classes:
            found = probes.between(members[-1], size)  # the largest so far shares the most samples
            if found.same:
                members.append(size)
                break
            gaps.append(found.gap)
            largest = max(largest, found.gap)
        else:
            classes.append([size])
            apart.append(gaps)
    measured: Measured = {"size classes": classes, "largest difference": largest, "differences between classes": apart}
    if answers:
        compared = probes.samples_at(range(answers))
        measured |= {"answers that change": probes.samples_at(changed), "answers compared": compared}
    return measured


def rounding_note(measured: Measured, module: str | None, at_one_size: bool) -> tuple[str, ...]:
    """The classes of batch sizes, in one line; nothing if all sizes agree bit for bit.

    Example:
        >>> print(*rounding_note({"size classes": [[1], [2, 3]], "largest difference": 2e-6}, "head", True))
        rounding: sizes 1 | 2-3 differ by up to 2.0e-06, first in head; at one size: 0 bits
    """
    groups = _groups(measured)
    if len(groups) < 2:
        return ()
    tested = sorted(size for members in groups for size in members)
    line = f"rounding: sizes {' | '.join(_ranges(members, tested) for members in groups)}"
    line += f" differ by up to {measured['largest difference']:.1e}"
    line += (
        f", first in {f'module {module}' if module.isdigit() else module or 'the model itself'}"
        if module is not None
        else ""
    )
    if "answers compared" in measured:
        line += f"; {measured['answers that change']} of {measured['answers compared']} answers change"
    return (f"{line}; at one size: 0 bits" if at_one_size else line,)


def first_module(probes: Probes, measured: Measured) -> str | None:
    """The first module whose output differs between the first two classes of sizes; None if none is seen."""
    groups = _groups(measured)
    if len(groups) < 2:
        return None
    pairs = ((one, other) for one in reversed(groups[0]) for other in reversed(groups[1]))
    sizes = next((pair for pair in pairs if not probes.between(*pair).same), None)
    if sizes is None:
        return None
    shared = min(*sizes, probes.size)
    try:
        first, second = (_prints(probes, size, shared) for size in sizes)
    except ModelRunError:
        return None
    return next((key[0] for key, mark in first.items() if key in second and second[key] != mark), None)


def _groups(measured: Measured) -> list[list[int]]:
    """The classes of sizes among what was measured."""
    classes = measured["size classes"]
    found = [members for members in classes if isinstance(members, list)] if isinstance(classes, list) else []
    return [[size for size in members if isinstance(size, int)] for members in found]


def _ranges(members: list[int], tested: list[int]) -> str:
    """Neighbours among the tested sizes as a range: `2-5, 8`."""
    runs: list[list[int]] = []
    for size in members:
        if runs and tested.index(size) == tested.index(runs[-1][-1]) + 1:
            runs[-1].append(size)
        else:
            runs.append([size])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _prints(probes: Probes, size: int, shared: int) -> dict[tuple[str, int], tuple[int, ...]]:
    """A fingerprint of the shared samples' rows in every module's output, by path and call."""
    found: dict[tuple[str, int], tuple[int, ...]] = {}
    calls: dict[str, int] = {}
    paths = module_paths(probes.subject.model)

    def after(module: nn.Module, _: object, output: Any) -> None:
        path = paths.get(id(module))
        if path is None:
            return
        calls[path] = calls.get(path, 0) + 1
        marks = [
            _print(leaf[: shared * (len(leaf) // size)])
            for _, leaf in tensor_leaves(output)
            if is_plain(leaf) and leaf.dim() > 0 and len(leaf) >= size and len(leaf) % size == 0
        ]
        if marks:
            found[path, calls[path]] = tuple(marks)

    handle = register_module_forward_hook(after)
    try:
        probes.subject.run(probes.of_size(size).batch)
    finally:
        handle.remove()
    return found


def _print(rows: torch.Tensor) -> int:
    plain = rows.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return zlib.crc32(plain.view(torch.uint8).cpu().numpy().tobytes())
