"""The answers that candidates are measured against: fp64, and the error that plain fp32 makes itself."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from evalmode.backends.backend import Chunk
from evalmode.errors import ModelRunError, OptimizationError
from evalmode.observe.wide import WideUnsupportedError, wide, widened
from evalmode.optimization.encoder_padding import each_sample_alone
from evalmode.optimization.leaf_reference import LeafReference, gap, row_errors
from evalmode.optimization.probes import REGULAR
from evalmode.optimization.rounding_noise import RoundingNoise, nudged
from evalmode.optimization.samples import Samples, executions, require_rows, rows_of

__all__ = ["Plain", "Reference", "accepted_samples", "evaluate_wide", "reference_of"]

Plain = Callable[..., Chunk]
"""The user's own model made flat: called with the tensors of one execution, it answers with a tuple of tensors."""

LEAST_ORDINARY = 4
MOST_BYTES = 384 << 20
_AGREES = 1e-9
_AGAIN = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """The answers that candidates are measured against.

    `parts` are the samples that were evaluated; `leaves` the outputs, whose rows are those samples one part after
    another. `exact` says that the answers are fp64; otherwise they are plain fp32 of one size, and `notes` says why.
    `moving` names outputs that belong to no sample and yet change with the batch. `sizes` are those at which the plain
    model was run. `jumps(part, position)` names the leaves in which the plain model takes another branch at a sample in
    one of several runs whose results are moved by a rounding.
    """

    parts: tuple[Samples, ...]
    leaves: tuple[LeafReference, ...]
    exact: bool
    sizes: tuple[int, ...]
    moving: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    jumps: Callable[[int, int], frozenset[int]] = lambda part, position: frozenset()

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def rows(self, leaf: LeafReference, part: int, positions: Sequence[int]) -> Tensor:
        """The rows of `leaf` that hold these samples of a part."""
        if leaf.axis is None:
            return torch.tensor([part])
        before = sum(len(self.parts[place]) for place in range(part))
        return torch.tensor([before + position for position in positions])


def accepted_samples(
    plain: Plain, parts: Sequence[Samples], size: int
) -> tuple[tuple[Samples, ...], tuple[tuple[str, str], ...]]:
    """The samples that the plain model runs on in executions of `size`, and the kinds that it refuses, with its reason.

    Raises:
        ModelRunError: it refuses every sample of the first part, or one that was given.
    """
    kept: list[Samples] = []
    refused: dict[str, str] = {}
    for part in parts:
        good: list[int] = []
        together = True
        for positions in executions(range(len(part)), size):
            held = list(dict.fromkeys(positions))
            mixture = _failure(plain, part, positions)
            if mixture is None:
                good.extend(held)
                continue
            failures = {position: _failure(plain, part, [position] * size) for position in held}
            together &= any(failure is not None for failure in failures.values())
            good.extend(position for position, failure in failures.items() if failure is None)
            for position, failure in failures.items():
                if failure is not None and part.kinds[position] == "given":
                    raise ModelRunError(
                        f"the model fails on {size} samples of the given batch: {type(failure).__name__}: {failure}",
                        expected=f"a model that runs on batches of {size}",
                    ) from failure
                if failure is not None:
                    refused.setdefault(part.kinds[position], _in_one_line(failure))
        if not together:  # each alone, but not beside each other: samples have to fit together, as the given ones do
            good = [position for position in good if part.kinds[position] == "given"]
            refused["samples that do not fit together"] = "kept: the given ones"
        if good:
            kept.append(part if len(good) == len(part) else part.chosen(good))
    return tuple(kept), tuple(refused.items())


def reference_of(
    plain: Plain,
    parts: Sequence[Samples],
    output_axes: Sequence[int | None],
    *,
    names: Sequence[str] = (),
    sizes: Sequence[int] = (1, 2, 8),
    seconds: float = 10.0,
    model: nn.Module | None = None,
    known: Sequence[int] = (),
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Reference:
    """The fp64 answers to as many samples as `seconds` allow, at least four like the user's and every edge.

    `plain` is run at each of `sizes`, and once more with every result moved by a rounding; at those that are `known` it
    has run before. `model` is the module inside `plain`, needed only where a model compares dtypes in Python. Without
    an fp64 form of some operator, plain fp32 of the first size takes its place: a candidate is then held to the
    distance that plain runs keep from each other.

    Units: seconds of processor time, as a target.
    """
    sizes, refused = _working_sizes(plain, parts[0], sizes, known)
    least = min(sizes)
    exact, notes = True, refused
    evaluate: Callable[[Chunk], Chunk] = functools.partial(evaluate_wide, plain, model=model)
    try:
        first = evaluate(parts[0].at([0] * least))
    except WideUnsupportedError as error:
        exact = False
        notes.append(f"{error}: compared with plain fp32, as close as its runs at other sizes are to each other")
        evaluate = functools.partial(_plain_run, plain)
        first = evaluate(parts[0].at([0] * least))
    dtypes = [output.dtype for output in _plain_run(plain, parts[0].at([0] * least))]
    begin = clock()
    evaluate(parts[0].at([0] * least))
    between = clock()
    _plain_run(plain, parts[0].at([0] * least))
    per_sample = (between - begin + (clock() - between) * (len(sizes) + 2)) / least
    bytes_each = 24 * sum(
        output.numel() // (least if axis is not None else 1) for output, axis in zip(first, output_axes, strict=True)
    )
    affordable = min(int(seconds / max(per_sample, 1e-9)), MOST_BYTES // max(bytes_each, 1))
    chosen = tuple(_chosen(part, affordable) if not place else part for place, part in enumerate(parts))
    called = list(names) or [f"output {place}" for place in range(len(output_axes))]
    leaves, moving = _wide_leaves(evaluate, chosen, output_axes, called, dtypes, least)
    _take_plain_runs(plain, chosen, leaves, sizes, seed)
    total = sum(map(len, parts))
    if sum(map(len, chosen)) < total:
        notes.append(f"fp64 is slow here: {sum(map(len, chosen))} of {total} samples were evaluated")
    found = Reference(chosen, tuple(leaves), exact, tuple(sizes), tuple(moving), tuple(notes))
    return dataclasses.replace(found, jumps=functools.cache(functools.partial(_jumps, plain, found, seed)))


def _working_sizes(
    plain: Plain, part: Samples, sizes: Sequence[int], known: Sequence[int]
) -> tuple[tuple[int, ...], list[str]]:
    """The sizes at which the plain model runs, in order, and a note about the others.

    Raises:
        ModelRunError: it runs at none.
    """
    failures = {size: None if size in known else _failure(plain, part, [0] * size) for size in sorted(set(sizes))}
    working = tuple(size for size, failure in failures.items() if failure is None)
    failed = {size: failure for size, failure in failures.items() if failure is not None}
    if not working:
        size, failure = next(iter(failed.items()))
        raise ModelRunError(f"the model fails on a batch of {size}: {type(failure).__name__}: {failure}") from failure
    return working, [f"the model fails at batch sizes {', '.join(map(str, failed))}"] if failed else []


def _chosen(part: Samples, affordable: int) -> Samples:
    """The first samples like the user's and all edges, then as many more as can be afforded."""
    ordinary = [place for place, kind in enumerate(part.kinds) if kind in REGULAR]
    must = {*ordinary[:LEAST_ORDINARY], *(place for place, kind in enumerate(part.kinds) if kind not in REGULAR)}
    spare = max(0, affordable - len(must))
    more = [place for place in ordinary if place not in must][:spare]
    wanted = sorted({*must, *more})
    return part if len(wanted) == len(part) else part.chosen(wanted)


def _wide_leaves(
    evaluate: Callable[[Chunk], Chunk],
    parts: Sequence[Samples],
    axes: Sequence[int | None],
    names: Sequence[str],
    dtypes: Sequence[torch.dtype],
    size: int,
) -> tuple[list[LeafReference], list[str]]:
    """Every output in fp64, and the names of those that belong to no sample and yet change with the batch."""
    rows: list[list[Tensor]] = [[] for _ in axes]
    shapes: list[tuple[int, ...]] = [() for _ in axes]
    moving: list[str] = []
    for part in parts:
        seen = [False] * len(axes)
        for positions in executions(range(len(part)), size):
            held = len(dict.fromkeys(positions))
            for place, (output, axis) in enumerate(zip(evaluate(part.at(positions)), axes, strict=True)):
                require_rows(output, axis, len(positions))
                found = rows_of(output, axis)
                found = found.double() if found.is_floating_point() else found
                shapes[place] = _sample_shape(output, axis)
                if axis is not None:
                    rows[place].append(found[:held].clone())
                elif not seen[place]:
                    rows[place].append(found.clone())
                    seen[place] = True
                elif names[place] not in moving and _moved(found, rows[place][-1]):
                    moving.append(names[place])
    ordinary = torch.tensor([kind in REGULAR for part in parts for kind in part.kinds])
    shared = torch.tensor([part.kinds[0] in REGULAR for part in parts])
    return [
        LeafReference(name, axis, dtype, shape, torch.cat(held), shared if axis is None else ordinary)
        for name, axis, dtype, shape, held in zip(names, axes, dtypes, shapes, rows, strict=True)
    ], moving


def _take_plain_runs(
    plain: Plain, parts: Sequence[Samples], leaves: Sequence[LeafReference], sizes: Sequence[int], seed: int
) -> None:
    """Hand every distinct plain run to the leaves: each size, then one with every result moved by a rounding."""
    marks: set[tuple[bytes, ...]] = set()
    noisy = _moved_by_a_rounding(plain, seed)
    for run, size in (*((plain, size) for size in sizes), (noisy, min(sizes))):
        values = list(_stacked(run, parts, leaves, size))
        mark = tuple(map(_mark, values))
        if mark not in marks:
            marks.add(mark)
            for leaf, found in zip(leaves, values, strict=True):
                leaf.add_run(found, moved=run is noisy)


def _jumps(plain: Plain, reference: Reference, seed: int, part: int, position: int) -> frozenset[int]:
    """The leaves in which a sample takes another branch in one of `_AGAIN` runs, results being moved by a rounding."""
    size = min(reference.sizes)
    jumping: set[int] = set()
    divided = {number for number, leaf in enumerate(reference.leaves) if leaf.axis is not None}
    for again in range(1, _AGAIN + 1):
        run = _moved_by_a_rounding(plain, seed + again)
        outputs = _plain_run(run, reference.parts[part].at([position] * size))
        for number, (leaf, output) in enumerate(zip(reference.leaves, outputs, strict=True)):
            if leaf.axis is None:
                continue
            row = reference.rows(leaf, part, [position])
            values = rows_of(output, leaf.axis)[:1]
            if leaf.floating:
                errors = row_errors(gap(values, leaf.wide[row]).masked_fill(~leaf.agreed[row], 0.0))
                changed = leaf.jumped(errors.largest, row)
            else:
                changed = (values != leaf.wide[row]) & leaf.agreed[row]
            if bool(changed.any()):
                jumping.add(number)
        if jumping == divided:
            break
    return frozenset(jumping)


def _moved_by_a_rounding(plain: Plain, seed: int) -> Plain:
    generator = torch.Generator().manual_seed(seed)

    def noisy(*chunk: Tensor) -> Chunk:
        with each_sample_alone(), RoundingNoise(seed):
            return plain(*(nudged(tensor, generator) for tensor in chunk))

    return noisy


def _stacked(run: Plain, parts: Sequence[Samples], leaves: Sequence[LeafReference], size: int) -> Iterator[Tensor]:
    """The rows of each output over all parts, of the first execution of a part where it belongs to no sample."""
    rows: list[list[Tensor]] = [[] for _ in leaves]
    for part in parts:
        for number, positions in enumerate(executions(range(len(part)), size)):
            held = len(dict.fromkeys(positions))
            for place, (output, leaf) in enumerate(zip(_plain_run(run, part.at(positions)), leaves, strict=True)):
                if leaf.axis is not None or not number:
                    found = rows_of(output, leaf.axis)
                    rows[place].append(found[:held].clone() if leaf.axis is not None else found.clone())
    yield from (torch.cat(held) for held in rows)


def _mark(values: Tensor) -> bytes:
    """What tells two plain runs apart: sizes often give the same bits, and count once. One NaN is as good as another.

    Shapes: `(rows, values)`.
    """
    if values.is_floating_point():
        values = (values + 0.0).nan_to_num_(nan=torch.nan, posinf=torch.inf, neginf=-torch.inf)
    return hashlib.blake2b(values.contiguous().view(torch.uint8).numpy().data, digest_size=16).digest()


def evaluate_wide(plain: Plain, chunk: Chunk, model: nn.Module | None = None) -> Chunk:
    """The outputs of one execution in fp64; `model` is the module inside, for one that compares dtypes in Python.

    Raises:
        WideUnsupportedError: an operator has no fp64 form.
    """
    inputs = widened(chunk)
    try:
        with torch.no_grad(), wide():
            return tuple(plain(*inputs))
    except WideUnsupportedError:
        raise
    except Exception as error:  # it ran as it is, so fp64 is the reason: a model that compares dtypes in Python
        if model is None:
            raise WideUnsupportedError(f"the model ({error})") from error
    try:
        with torch.no_grad(), wide(model):
            return tuple(plain(*widened(chunk)))
    except WideUnsupportedError:
        raise
    except Exception as error:
        raise WideUnsupportedError(f"the model ({error})") from error


def _plain_run(plain: Plain, chunk: Chunk) -> Chunk:
    with torch.no_grad():
        return tuple(plain(*chunk))


def _failure(plain: Plain, part: Samples, positions: Sequence[int]) -> Exception | None:
    try:
        _plain_run(plain, part.at(positions))
    except OptimizationError:  # its outputs fit no plan, whatever the sample
        raise
    except Exception as error:  # noqa: BLE001 - whatever the model raises is its refusal
        return error
    return None


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _sample_shape(output: Tensor, axis: int | None) -> tuple[int, ...]:
    shape = list(output.shape)
    if axis is not None:
        del shape[axis]
    return tuple(shape)


def _moved(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return not torch.equal(one, other)
    scale = max(float(one.abs().nan_to_num(0.0, 0.0, 0.0).max()), 1e-300) if one.numel() else 1.0
    return bool((gap(one, other) > _AGREES * scale).any()) or not torch.equal(one.isnan(), other.isnan())
