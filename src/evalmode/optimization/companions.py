"""Whether a sample's answer is its own: only then may a plan cut and fill batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from evalmode.backends.backend import Chunk
from evalmode.errors import OptimizationError
from evalmode.observe.batching import difference
from evalmode.observe.wide import WideUnsupportedError
from evalmode.optimization.agreement import same_results
from evalmode.optimization.probes import LOUD, REGULAR
from evalmode.optimization.reference import Plain, Reference, evaluate_wide
from evalmode.optimization.samples import Samples, rows_of

__all__ = ["other_alone", "require_own_answers"]

_ORDINARY, _BATCH = 3, 4  # samples like the user's, and with one that is much larger
_SHARE = 1e-6  # of a sample's largest value: fp64 rounds ten orders of magnitude finer than that
_ROUNDED = 1e-3  # of it, where fp32 answers are compared: more is worth a look in fp64
_WHOLE = 0.1  # of the whole numbers of a sample


def require_own_answers(
    plain: Plain, reference: Reference, model: nn.Module | None = None, *, most: int = _BATCH
) -> None:
    """Refuse a model whose answer to a sample depends on the samples beside it, as fp64 tells it.

    The reference holds the answers to samples in its smallest executions; here some of them run in one larger batch,
    and in one of `most` samples, the callers' own, where fp32 shows that such a batch is answered otherwise.
    Nothing is decided where some operator has no fp64 form, or the model does not take that batch.

    Raises:
        OptimizationError: a sample's answer moves, by more than fp64 rounds.
    """
    if not reference.exact or all(axis is None for axis in reference.parts[0].axes):
        return
    samples = reference.parts[0]
    positions = _companions(samples)
    if len(set(positions)) > 1:
        _require_own(plain, reference, positions, model)
    if most > _BATCH and positions:
        positions = [positions[place % len(positions)] for place in range(most)]
        axes = [leaf.axis for leaf in reference.leaves]
        try:
            with torch.no_grad():
                outputs = plain(*samples.at(positions))
        except Exception:  # noqa: BLE001 - a model may raise anything at a size that it does not take
            return
        if other_alone(plain, axes, samples, positions, outputs):
            _require_own(plain, reference, positions, model)


def _require_own(plain: Plain, reference: Reference, positions: list[int], model: nn.Module | None) -> None:
    samples = reference.parts[0]
    try:
        outputs = evaluate_wide(plain, samples.at(positions), model)
    except WideUnsupportedError:
        return
    problem = _problem(reference, positions, outputs)
    if not problem or not same_results(evaluate_wide(plain, samples.at(positions), model), outputs):
        return  # what is never the same twice is told by the test of stability
    raise OptimizationError(
        f"a sample's answer depends on the samples beside it: {problem} in a batch of {len(positions)}, in fp64",
        expected="a model whose answer to a sample is that sample's own: a plan cuts and fills batches",
        fix="evalmode.check(model, batch) names the line; if the first axis does not count samples, pass "
        "forward=lambda model, batch: ... that takes and gives them along the first",
        explain="batch-independent",
    )


def other_alone(
    plain: Plain, axes: Sequence[int | None], samples: Samples, positions: Sequence[int], outputs: Chunk
) -> bool:
    """Whether plain gives some of these samples other answers alone than in this batch, by more than it rounds.

    What it refuses alone says nothing.
    """
    places = [place for place, position in enumerate(positions) if samples.kinds[position] in REGULAR][:_ORDINARY]
    for place in places:
        try:
            with torch.no_grad():
                alone = plain(*samples.at([positions[place]]))
        except Exception:  # noqa: BLE001 - a model may raise anything
            return False
        for one, many, axis in zip(alone, outputs, axes, strict=True):
            if axis is None or not one.is_floating_point():
                continue
            gap, scale = difference(rows_of(one, axis)[0].double(), rows_of(many, axis)[place].double())
            if gap > max(_ROUNDED, 8 * torch.finfo(one.dtype).eps) * scale:
                return True
    return False


def _problem(reference: Reference, positions: list[int], outputs: Chunk) -> str:
    """The first output that is another one beside other samples, and by how much; empty where none is."""
    for output, leaf in zip(outputs, reference.leaves, strict=True):
        if leaf.axis is None:
            continue
        alone = leaf.wide[reference.rows(leaf, 0, positions)]
        beside = rows_of(output, leaf.axis)
        problem = _moved(alone, beside.to(alone.dtype)) if leaf.floating else _turned(alone, beside)
        if problem:
            return f"{leaf.name} {problem}"
    return ""


def _companions(samples: Samples) -> list[int]:
    """The first samples like the user's, and one that is loud enough to be heard in any mean or largest value."""
    sound = samples.finite()
    ordinary = [place for place, kind in enumerate(samples.kinds) if kind in REGULAR and sound[place]][:_ORDINARY]
    loud = [place for place, kind in enumerate(samples.kinds) if kind == LOUD and sound[place]][:1]
    return (ordinary + loud)[:_BATCH]


def _moved(alone: Tensor, beside: Tensor) -> str:
    for one, other in zip(alone, beside, strict=True):
        gap, scale = difference(one, other)
        if gap > _SHARE * scale:
            return f"moves by {gap:.2g}"
    return ""


def _turned(alone: Tensor, beside: Tensor) -> str:
    shares = [float((one != other).double().mean()) for one, other in zip(alone, beside, strict=True)]
    worst = max(shares) if alone.numel() else 0.0
    return f"has other values ({worst:.0%})" if worst > _WHOLE else ""
