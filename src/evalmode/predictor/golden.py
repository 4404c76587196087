"""Whether a predictor that was read from a file does what it did where it was written.

On the machine, and with the versions, that wrote it, its outputs on the probes are the golden ones bit for bit.
Elsewhere they may be off by rounding, and it is measured anew that a sample's bits do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evalmode.observe.batching import difference
from evalmode.observe.tree import describe, same_bits
from evalmode.predictor.optimized import OptimizedPredictor

__all__ = ["TOLERANCES", "disagreement", "instability"]

TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2, "bf16": 1e-1}
"""By precision: how far an output may be off on another machine, relative to its largest value."""

_OTHER_ANSWERS = 0.02
_ORDERS = 3


def disagreement(predictor: OptimizedPredictor, golden: Sequence[Tensor], tolerance: float | None) -> str:
    """How the outputs on the probes differ from the `golden` ones; empty where they do not.

    With a `tolerance` of None every bit counts. Otherwise floating outputs may be off by that share of their largest
    value, with NaN and infinities in the same places; of other outputs 2 % of the values, and always one, may differ:
    a decision that hangs on rounding.
    """
    plan = predictor.plan
    for tensor, now, then in zip(plan.outputs, predictor.run_flat(predictor.probes or ()), golden, strict=True):
        if now.dtype != then.dtype or now.shape != then.shape:
            return f"{tensor.name} is {describe(now)}, and was {describe(then)}"
        if now.device.type != plan.device.type:
            return f"{tensor.name} is on {now.device}, and was on {plan.device}"
        then = then.to(now.device)
        if same_bits(now, then):
            continue
        if tolerance is None:
            return f"{tensor.name} has other bits: off by up to {difference(now, then)[0]:.3g}"
        if now.is_floating_point() or now.is_complex():
            off, scale = difference(now, then)
            if not off <= tolerance * scale:
                return f"{tensor.name} is off by {off:.3g}, where {tolerance * scale:.3g} is rounding"
        elif (wrong := int((now != then).sum())) > max(1, _OTHER_ANSWERS * now.numel()):
            return f"{wrong:,} of {now.numel():,} values of {tensor.name} differ"
    return ""


def instability(predictor: OptimizedPredictor) -> str:
    """The execution size at which a probe's bits moved with its companions or its position; empty where none did."""
    plan, probes = predictor.plan, predictor.probes
    axes = [tensor.axis for tensor in plan.inputs]
    counted = [tensor.shape[axis] for tensor, axis in zip(probes or (), axes, strict=True) if axis is not None]
    if probes is None or not counted or counted[0] == 0:
        return ""
    samples = counted[0]
    reference = predictor.run_flat(probes)
    random = torch.Generator("cpu").manual_seed(0)
    orders = [torch.randperm(samples, generator=random, device="cpu") for _ in range(_ORDERS)]
    for size in plan.sizes:
        for order in (torch.arange(samples, device="cpu"), *orders, orders[0][: max(1, samples // 2)], orders[1][:1]):
            inputs = _selected(probes, axes, order)
            executions = [size] * -(-len(order) // size)
            outputs = predictor.run_flat(inputs, executions)
            expected = _selected(reference, [tensor.axis for tensor in plan.outputs], order)
            for tensor, now, then in zip(plan.outputs, outputs, expected, strict=True):
                if not same_bits(now, then):
                    return f"executions of {size}: {tensor.name} of a sample moves by {difference(now, then)[0]:.3g}"
    return ""


def _selected(tensors: Sequence[Tensor], axes: Sequence[int | None], order: Tensor) -> list[Tensor]:
    return [
        tensor if axis is None else tensor.index_select(axis, order.to(tensor.device))
        for tensor, axis in zip(tensors, axes, strict=True)
    ]
