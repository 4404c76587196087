"""merge-adapters: layers side by side on one input, whose results are added, become one layer.

What it does
------------
A low-rank adapter (LoRA) computes `layer(x) + scale * up(down(x))`. Its two thin matrices are multiplied and added to
the layer's weight. The same is done for two layers of one shape on the same input (`first(x) + second(x)`), for linear
layers and for convolutions of one geometry. It is computed in fp64 and rounded once.

Why it matters
--------------
An adapter adds three calls and two activations to every layer that it adapts, whatever its rank.

Example
-------
    import torch
    from torch import nn

    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 6)
            self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 6, bias=False)

        def forward(self, x):
            return self.layer(x) + 0.5 * self.up(self.down(x))

    model = Adapted().eval()
    batch = torch.randn(3, 8)

Use instead
-----------
    import torch
    from torch import nn

    layer, down, up = nn.Linear(8, 6), nn.Linear(8, 2, bias=False), nn.Linear(2, 6, bias=False)
    with torch.no_grad():
        layer.weight.add_(0.5 * up.weight @ down.weight)
    model = layer.eval()
    batch = torch.randn(3, 8)

Fix and its safety
------------------
The last bits of the results change. It is refused where a layer's output or weight is used elsewhere too, for 16-bit
weights, for weights that are NaN or infinite, and where the sum overflows.

Limits
------
Two layers in a row are multiplied only beside a layer that takes their product: alone, the product may be larger. Of
convolutions in a row, the second must have a kernel of one value. Nothing is done without a graph.

Source
------
Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from evalmode.optimization.affine import Affine, affine_of
from evalmode.optimization.graph import arguments, sole_user, tidy_graph, where
from evalmode.optimization.graph_pass import Pass, PassResult, Refusal, refusal_at
from evalmode.optimization.producers import (
    Producer,
    Weights,
    new_weights_problem,
    producer_of,
    put_weights,
    with_output,
)

__all__ = ["PASS"]

aten = torch.ops.aten
_SUMS = frozenset((aten.add.Tensor, aten.sub.Tensor))


@dataclass(frozen=True, slots=True)
class _Branch:
    """One side of a sum: a linear map of `source`, with the geometry of `layer`, the layer that reads `source`."""

    layer: Producer
    weights: Weights
    depth: int
    problem: str = ""


def _rewrite(module: fx.GraphModule, inputs: Sequence[Tensor]) -> PassResult:
    changed = 0
    refused: list[Refusal] = []
    for node in list(module.graph.nodes):
        if node.target not in _SUMS:
            continue
        given = arguments(node)
        sides = [_branch(module, given[name], node) for name in ("self", "other")]
        if not isinstance(given["alpha"], int | float):
            continue
        first, second = sides
        if first is None or second is None or first.layer.source is not second.layer.source:
            continue
        factor = -given["alpha"] if node.target is aten.sub.Tensor else given["alpha"]
        why = _merge(module, node, first, second, float(factor))
        if why is None:
            changed += 1
        elif why:
            refused.append(refusal_at(node, why))
    tidy_graph(module)
    return PassResult(changed, tuple(refused))


def _merge(module: fx.GraphModule, node: fx.Node, first: _Branch, second: _Branch, factor: float) -> str | None:
    """One layer in place of the sum; None if done, else why not (`""`: the two do not belong together)."""
    if first.depth > 1 and second.depth > 1:
        return ""
    shapes = first.weights.weight.shape == second.weights.weight.shape
    kinds = first.layer.kind == second.layer.kind and first.layer.geometry == second.layer.geometry
    if not shapes or not kinds:
        return ""
    if first.problem or second.problem:
        return first.problem or second.problem
    sums = Weights(
        first.weights.weight + factor * second.weights.weight, first.weights.bias + factor * second.weights.bias
    )
    host = first if first.depth == 1 else second
    problem = new_weights_problem(host.layer, sums)
    if problem:
        return problem
    has_bias = bool(sums.bias.any())
    new = put_weights(module, replace(host.layer, bias=host.layer.bias if has_bias else None), sums)
    node.replace_all_uses_with(new)
    return None


def _branch(module: fx.GraphModule, node: object, user: fx.Node) -> _Branch | None:
    """What comes into a sum, as one linear map; None if it is no such thing."""
    if not isinstance(node, fx.Node):
        return None
    shared = sole_user(node) is not user
    scales: list[Affine] = []
    while isinstance(read := affine_of(module, node), Affine) and read.only_scales:
        if node.target is aten.batch_norm.default:
            break
        scales.append(read)
        shared = shared or sole_user(read.source) is not node
        node = read.source
    layer = producer_of(module, node)
    if not isinstance(layer, Producer):
        return None
    weights, depth, bottom = layer.wide, 1, layer
    below = producer_of(module, layer.source)
    if isinstance(below, Producer) and _composable(layer, below) and sole_user(below.node) is layer.node:
        weights, depth, bottom = _composed(layer, below), 2, below
    for scale in reversed(scales):
        terms = scale.along(layer.out_axis, layer.outputs)
        if terms is None:
            return None
        whole = replace(layer, kind=bottom.kind, groups=bottom.groups, weight=weights.weight, bias=weights.bias)
        weights = with_output(whole, *terms)
    problem = f"the output of `{where(layer.node)}` is also used elsewhere" if shared else ""
    return _Branch(replace(bottom, out_axis=layer.out_axis, outputs=layer.outputs), weights, depth, problem)


def _composable(upper: Producer, lower: Producer) -> bool:
    """Whether two layers in a row are one of the lower one's kind and geometry."""
    if (upper.kind, lower.kind) == ("convolution", "convolution"):
        _, stride, padding, _, groups, _ = upper.geometry
        ones = all(size == 1 for size in upper.weight.shape[2:])
        still = all(step == 1 for step in stride) and (isinstance(padding, str) or not any(padding))
        return ones and still and groups == 1 and lower.groups == 1
    return upper.kind == lower.kind and upper.kind in ("linear", "product")


def _composed(upper: Producer, lower: Producer) -> Weights:
    one, other = upper.wide, lower.wide
    if upper.kind == "convolution":
        up = one.weight.flatten(1)  # (outputs, rank): its kernel is one value
        weight = torch.einsum("or,r...->o...", up, other.weight)
        return Weights(weight, up @ other.bias + one.bias)
    if upper.kind == "linear":
        return Weights(one.weight @ other.weight, one.weight @ other.bias + one.bias)
    return Weights(other.weight @ one.weight, other.bias @ one.weight + one.bias)


PASS = Pass("merge-adapters", _rewrite)
