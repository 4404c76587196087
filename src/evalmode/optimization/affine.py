"""Scale and shift: nodes that compute `x * scale + shift` with constants, by channel or all alike, read in fp64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from evalmode.optimization.graph import arguments, constant_of, meta_shape

__all__ = ["Affine", "affine_of", "batch_norm_of"]

aten = torch.ops.aten
_SCALES = frozenset((aten.mul.Tensor, aten.mul.Scalar))
_DIVIDES = frozenset((aten.div.Tensor, aten.div.Scalar))
_ADDS = frozenset((aten.add.Tensor, aten.add.Scalar))
_SUBTRACTS = frozenset((aten.sub.Tensor, aten.sub.Scalar))
_SUBTRACTED = frozenset((aten.rsub.Tensor, aten.rsub.Scalar))


@dataclass(frozen=True, slots=True)
class Affine:
    """`node` computes `source * scale + shift`.

    `axis` is the axis that scale and shift run along, None where both are single numbers.

    Shapes:
        scale, shift: (C,) in fp64, or () where `axis` is None.
    """

    node: fx.Node
    source: fx.Node
    scale: Tensor
    shift: Tensor
    axis: int | None

    @property
    def only_scales(self) -> bool:
        """Whether the shift is 0 everywhere."""
        return not bool(self.shift.any())

    def along(self, axis: int, channels: int) -> tuple[Tensor, Tensor] | None:
        """Scale and shift for each of `channels` along `axis`; None if they run along another axis."""
        if self.axis is None:
            return self.scale.expand(channels), self.shift.expand(channels)
        return (self.scale, self.shift) if self.axis == axis and self.scale.numel() == channels else None


def affine_of(module: fx.GraphModule, node: fx.Node) -> Affine | str | None:
    """What a node computes as scale and shift; None if it computes something else, text if the constants are unfit.

    Multiplication, division, addition and subtraction with a number, or with a constant of one value a channel, are
    read, and so is batch norm with its running statistics.
    """
    if node.op != "call_function":
        return None
    if node.target is aten.batch_norm.default:
        return batch_norm_of(module, node)
    given = arguments(node)
    if node.target is aten.neg.default:
        return _checked(node, given["self"], torch.tensor(-1.0).double(), torch.tensor(0.0).double(), None)
    if node.target in _SCALES | _DIVIDES | _ADDS | _SUBTRACTS | _SUBTRACTED:
        return _arithmetic(module, node, given)
    return None


def _arithmetic(module: fx.GraphModule, node: fx.Node, given: Any) -> Affine | str | None:
    source, other = given["self"], given["other"]
    swapped = False
    if constant_of(module, source) is not None and isinstance(other, fx.Node):
        source, other, swapped = other, source, True
    if not isinstance(source, fx.Node) or given.get("rounding_mode") is not None:
        return None
    read = _values(module, other, source)
    if read is None:
        return None
    values, axis = read
    alpha = given.get("alpha", 1)
    if not isinstance(alpha, int | float):
        return None
    one, zero = torch.ones_like(values), torch.zeros_like(values)
    if node.target in _SCALES:
        return _checked(node, source, values, zero, axis)
    if node.target in _DIVIDES:
        return None if swapped else _checked(node, source, one / values, zero, axis)
    if node.target in _ADDS:
        scale, shift = (one * alpha, values) if swapped else (one, values * alpha)
    elif node.target in _SUBTRACTS:
        scale, shift = (-one * alpha, values) if swapped else (one, -values * alpha)
    else:  # rsub(x, other, alpha) = other - alpha * x
        scale, shift = (one, -values * alpha) if swapped else (-one * alpha, values)
    return _checked(node, source, scale, shift, axis)


def _values(module: fx.GraphModule, other: object, source: fx.Node) -> tuple[Tensor, int | None] | None:
    """A number or a constant as fp64, and the axis of `source` that it runs along."""
    if isinstance(other, bool):
        return None
    if isinstance(other, int | float):
        return torch.tensor(float(other), dtype=torch.float64), None
    constant, shape = constant_of(module, other), meta_shape(source)
    if constant is None or shape is None or constant.is_complex() or constant.dtype is torch.bool:
        return None
    if constant.dim() > len(shape):
        return None
    long = [position for position, size in enumerate(constant.shape) if size != 1]
    if constant.numel() == 0 or len(long) > 1:
        return None
    if not long:
        return constant.double().reshape(()), None
    axis = long[0] + len(shape) - constant.dim()
    if not isinstance(shape[axis], int) or shape[axis] != constant.numel():
        return None
    return constant.double().reshape(-1), axis


def batch_norm_of(module: fx.GraphModule, node: fx.Node) -> Affine | str | None:
    """Batch norm as scale and shift along its channels; text where it uses the batch's own statistics or unfit ones.

    Source: Ioffe and Szegedy, Batch Normalization, algorithm 2.
    """
    given = arguments(node)
    source = given["input"]
    if given["training"] is not False or given["running_mean"] is None or given["running_var"] is None:
        return "it normalises with the batch's own statistics"
    mean, variance = constant_of(module, given["running_mean"]), constant_of(module, given["running_var"])
    if mean is None or variance is None or not isinstance(source, fx.Node) or not isinstance(given["eps"], float | int):
        return "its statistics are computed from inputs"
    weight, bias = (constant_of(module, given[name]) for name in ("weight", "bias"))
    if any(given[name] is not None and found is None for name, found in (("weight", weight), ("bias", bias))):
        return "its weight or bias is computed from inputs"
    wide = variance.double() + float(given["eps"])
    if not all(bool(held.isfinite().all()) for held in (mean, variance, weight, bias) if held is not None):
        return "a statistic or weight is NaN or infinite"
    if not bool((wide > 0).all()):
        return "a running variance plus eps is not positive"
    scale = wide.rsqrt() if weight is None else weight.double() * wide.rsqrt()
    shift = -mean.double() * scale if bias is None else bias.double() - mean.double() * scale
    return _checked(node, source, scale, shift, 1)


def _checked(node: fx.Node, source: Any, scale: Tensor, shift: Tensor, axis: int | None) -> Affine | str | None:
    if not isinstance(source, fx.Node):
        return None
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or not before.is_floating_point():
        return None
    if before.dtype != after.dtype or before.dim() != after.dim():
        return None  # the arithmetic also converts or broadcasts
    if not bool(scale.isfinite().all() and shift.isfinite().all()):
        return "a constant is NaN or infinite"
    return Affine(node, source, scale, shift, axis)
