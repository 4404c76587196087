"""fold-scale-shift: multiplications and additions with constants become part of the layers around them.

What it does
------------
A product, quotient, sum or difference with a number, or with a constant of one value a channel, goes into the weight
and bias of the convolution, transposed convolution, linear layer or batch norm right before it, or of every one right
after it. A number passes through views, so that `layer(x).view(...).transpose(...) * scale` is found. Of several
scales in a row, or several shifts in a row, one is left. All of it is computed in fp64 and rounded once.

Why it matters
--------------
Layer scale, attention's `q / sqrt(d)`, input normalisation and output ranges read and write whole activations for one
product each.

Example
-------
    import torch
    from torch import nn

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 6)
            self.scale = nn.Parameter(torch.rand(6))

        def forward(self, x):
            return self.layer(x) * self.scale + 0.5

    model = Scaled().eval()
    batch = torch.randn(3, 4)

Use instead
-----------
    import torch
    from torch import nn

    model = nn.Linear(4, 6)
    with torch.no_grad():
        scale = torch.rand(6)
        model.weight.mul_(scale[:, None])
        model.bias.mul_(scale).add_(0.5)
    model.eval()
    batch = torch.randn(3, 4)

Fix and its safety
------------------
The last bits of the results change. It is refused where it would be wrong or lose precision: a layer whose output or
weight is used elsewhere too; a shift before zero padding or before a transposed convolution; 16-bit weights; constants
that are NaN or infinite; folded weights and constants that overflow or underflow; shifts that are large or cancel each
other, since adding a large number and taking it away is a way of rounding.

Limits
------
A scale with one value for every position, or along an axis that is not the layer's channels, stays as it is, and so do
scale and shift in turn with no layer beside them.

Source
------
Touvron et al., Going deeper with Image Transformers (layer scale), equation 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from evalmode.optimization.affine import Affine, affine_of
from evalmode.optimization.folding import fold
from evalmode.optimization.graph import add_constant, sole_user, tidy_graph
from evalmode.optimization.graph_pass import Pass, PassResult, Refusal, refusal_at

__all__ = ["PASS"]

aten = torch.ops.aten
_CANCELS = 2.0**-10  # of the larger of two shifts
_ROUNDS = 2.0**20  # added to a number, it leaves an eighth of fp32's places behind the point, or none
_FAR = 2.0**40  # scales beyond it may be there to overflow or underflow on purpose


def _rewrite(module: fx.GraphModule, inputs: Sequence[Tensor]) -> PassResult:
    changed = 0
    refused: dict[fx.Node, Refusal] = {}
    moved = True
    while moved:  # a fold may bring the next scale beside the layer
        moved = False
        refused.clear()
        for node in list(module.graph.nodes):
            if node.target is aten.batch_norm.default or not node.users:  # without users, it is gone already
                continue
            read = affine_of(module, node)
            if isinstance(read, str):
                refused[node] = refusal_at(node, read)
            if not isinstance(read, Affine):
                continue
            if rounding := _rounding(module, read):
                refused[node] = refusal_at(node, rounding)
                continue
            why = _merge(module, read)
            if why is not None:
                folded = fold(module, read, norms=True)
                why = None if folded is None else why or folded
            if why is None:
                changed, moved = changed + 1, True
            elif why:
                refused[node] = refusal_at(node, why)
    tidy_graph(module)
    return PassResult(changed, tuple(refused.values()))


def _merge(module: fx.GraphModule, second: Affine) -> str | None:
    """Make one scale of two in a row, or one shift of two; None if done, else why not (`""`: there are no two)."""
    if second.source.target is aten.batch_norm.default:
        return ""
    first = affine_of(module, second.source)
    if not isinstance(first, Affine) or sole_user(first.node) is not second.node:
        return ""
    axis = first.axis if first.axis is not None else second.axis
    if second.axis not in (None, axis):
        return ""
    scales = first.only_scales and second.only_scales
    shifts = _only_shifts(first) and _only_shifts(second)
    if scales:
        largest = max(_reach(first.scale), _reach(second.scale))
        if largest > _FAR:
            return "scales this large or small may overflow on purpose"
        values = first.scale * second.scale
    elif shifts:
        values = first.shift + second.shift
    else:
        return ""
    if not _fits(values, second.node.meta["val"].dtype):
        return "the merged constant would overflow or underflow"
    _put(module, second, first.source, values, axis, scales=scales)
    module.graph.erase_node(first.node)
    return None


def _rounding(module: fx.GraphModule, shift: Affine) -> str:
    """Why a shift must stay where it is: a number so large, or one that is taken away again, rounds what it meets."""
    if not _only_shifts(shift):
        return ""
    if bool((shift.shift.abs() >= _ROUNDS).any()):
        return "a shift this large may be a way of rounding"
    for other in (shift.source, *shift.node.users):
        beside = affine_of(module, other)
        if not isinstance(beside, Affine) or not _only_shifts(beside):
            continue
        along_one = shift.axis is None or beside.axis in (None, shift.axis)
        if along_one and _cancel(shift, beside):
            return "shifts that cancel each other may be a way of rounding"
    return ""


def _cancel(first: Affine, second: Affine) -> bool:
    larger = torch.maximum(first.shift.abs(), second.shift.abs())
    return bool(((first.shift + second.shift).abs() < larger * _CANCELS).any())


def _fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether every constant can be written in `dtype`: a product of two small ones may be none."""
    kept = values.to(dtype)
    return bool((kept.isfinite() & ((values == 0) | (kept.abs() >= torch.finfo(dtype).tiny))).all())


def _put(
    module: fx.GraphModule, last: Affine, source: fx.Node, values: Tensor, axis: int | None, *, scales: bool
) -> None:
    """One product or sum in place of `last`, on `source`."""
    node = last.node
    shown = node.meta["val"]
    other: fx.Node | float = float(values) if values.dim() == 0 else 0.0
    if values.dim() and axis is not None:
        shaped = values.to(shown.device, shown.dtype).reshape(-1, *(1,) * (shown.dim() - axis - 1))
        other = add_constant(module, shaped, node, "scale" if scales else "shift")
    with module.graph.inserting_before(node):
        new = module.graph.call_function(aten.mul.Tensor if scales else aten.add.Tensor, (source, other))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _only_shifts(affine: Affine) -> bool:
    return bool((affine.scale == 1).all())


def _reach(scale: Tensor) -> float:
    """How far from 1 the scales are, either way; 0 gives 0 whatever comes next."""
    sizes = scale[scale != 0].abs()
    return max(float(sizes.max()), float(sizes.reciprocal().max())) if sizes.numel() else 1.0


PASS = Pass("fold-scale-shift", _rewrite)
