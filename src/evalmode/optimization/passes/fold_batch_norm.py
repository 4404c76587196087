"""fold-batch-norm: batch norm with its running statistics becomes part of the layer before or after it.

What it does
------------
In evaluation batch norm is `x * scale + shift` with one scale and shift a channel. They go into the weight and bias
of a convolution, transposed convolution or linear layer right before it, or of every such layer right after it. The
new weight is computed in fp64 and rounded once.

Why it matters
--------------
Batch norm reads and writes every value of an activation and computes next to nothing; folded, it costs nothing at all.
Convolutional networks on small inputs become up to twice as fast.

Example
-------
    import torch
    from torch import nn

    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).eval()
    batch = torch.randn(2, 3, 8, 8)

Use instead
-----------
    import torch
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    convolution, norm = nn.Conv2d(3, 4, 3, bias=False).eval(), nn.BatchNorm2d(4).eval()
    model = nn.Sequential(fuse_conv_bn_eval(convolution, norm), nn.ReLU()).eval()
    batch = torch.randn(2, 3, 8, 8)

Fix and its safety
------------------
The last bits of the results change, since the products are rounded elsewhere. It is refused where it would be wrong or
lose precision: batch statistics in use; a layer whose output or weight is used elsewhere too; a shift before zero
padding or before a transposed convolution, where borders would not be shifted; 16-bit weights; weights or statistics
that are NaN, infinite or, for a variance plus eps, not positive; folded weights that overflow or underflow.

Limits
------
A layer must be next to the batch norm, moved axes apart. Without a graph, only a convolution or linear layer directly
before batch norm in an `nn.Sequential` is folded, and only if running the model shows that both are called there, one
right after the other, and nowhere else.

Source
------
Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, section 3.2.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from evalmode.optimization.affine import Affine, affine_of
from evalmode.optimization.folding import fold
from evalmode.optimization.graph import tidy_graph
from evalmode.optimization.graph_pass import Pass, PassResult, Refusal, refusal_at
from evalmode.optimization.neighbours import Neighbours, neighbours_in

__all__ = ["PASS"]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _rewrite(module: fx.GraphModule, inputs: Sequence[Tensor]) -> PassResult:
    changed = 0
    refused: list[Refusal] = []
    for node in list(module.graph.nodes):
        if node.target is not torch.ops.aten.batch_norm.default:
            continue
        read = affine_of(module, node)
        why = fold(module, read, norms=False) if isinstance(read, Affine) else read or "it also converts its input"
        if why is None:
            changed += 1
        else:
            refused.append(refusal_at(node, why or "no layer with a constant weight comes right before or after it"))
    tidy_graph(module)
    return PassResult(changed, tuple(refused))


def _rewrite_modules(module: nn.Module, inputs: Sequence[Tensor]) -> PassResult:
    changed = 0
    refused: list[Refusal] = []
    for pair in neighbours_in(module, inputs, _LAYERS, _NORMS):
        why = pair.problem or _unfit(pair)
        if why:
            refused.append(Refusal(pair.path, why))
            continue
        folded = _folded(pair)
        if not all(bool(tensor.isfinite().all()) for tensor in folded.parameters()):
            refused.append(Refusal(pair.path, "the folded weight would overflow"))
            continue
        pair.fuse(folded)
        changed += 1
    return PassResult(changed, tuple(refused))


def _unfit(pair: Neighbours) -> str:
    norm, layer = pair.second, pair.first
    if norm.running_mean is None or norm.running_var is None or norm.training:
        return "it normalises with the batch's own statistics"
    held = [*layer.parameters(), *norm.parameters(), norm.running_mean, norm.running_var]
    if any(tensor.dtype not in (torch.float32, torch.float64) for tensor in held):
        return "rounding 16-bit weights again loses precision"
    if not all(bool(tensor.isfinite().all()) for tensor in held):
        return "a weight or statistic is NaN or infinite"
    if not bool((norm.running_var.double() + norm.eps > 0).all()):
        return "a running variance plus eps is not positive"
    if isinstance(layer, nn.Linear) and pair.dims != 2:
        return "the linear layer has its channels along another axis"
    return ""


def _folded(pair: Neighbours) -> nn.Module:
    """A layer like the first of the pair, with weights of its own that do the norm's work too."""
    layer, norm = pair.first, pair.second
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    wide = layer.weight.detach().double()
    trailing = (1,) * (wide.dim() - 2)
    if isinstance(layer, _TRANSPOSED):
        grouped = wide.unflatten(0, (layer.groups, -1)) * scale.reshape(layer.groups, 1, -1, *trailing)
        weight = grouped.flatten(0, 1)
    else:
        weight = wide * scale.reshape(-1, 1, *trailing)
    bias = shift if layer.bias is None else layer.bias.detach().double() * scale + shift
    dtype = layer.weight.dtype
    folded: nn.Module = copy.copy(layer)
    folded._parameters = {  # noqa: SLF001 - of the copy alone
        "weight": nn.Parameter(weight.to(dtype), requires_grad=False),
        "bias": nn.Parameter(bias.to(dtype), requires_grad=False),
    }
    return folded


PASS = Pass("fold-batch-norm", _rewrite, _rewrite_modules)
