"""Layers that multiply with a constant weight: convolutions, transposed convolutions, linear layers, batch norm itself.

Each says how a scale and shift of its outputs or inputs goes into its weight and bias. All of it is computed in fp64
and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from evalmode.optimization.affine import Affine, batch_norm_of
from evalmode.optimization.graph import add_constant, arguments, constant_of, meta_shape, readers_of, where

__all__ = ["Producer", "Weights", "new_weights_problem", "producer_of", "put_weights", "with_input", "with_output"]

aten = torch.ops.aten
_CONVOLUTIONS = {
    target: spatial
    for spatial, packet in ((1, aten.conv1d), (2, aten.conv2d), (3, aten.conv3d))
    for target in (packet.default, packet.padding)
}
_TRANSPOSED = {
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 2,
    aten.conv_transpose3d.input: 3,
}
_FOLDED = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Weights:
    """Weight and bias in fp64."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Producer:
    """A layer of the graph.

    `kind` is `convolution`, `transposed`, `linear` (weight is out by in), `product` (in by out) or `norm`.

    `in_axis` and `out_axis` are the channel axes of its input and output. `pads` says why a shift of the input would
    not be the same at the borders; it is empty where it would.
    """

    node: fx.Node
    kind: str
    source: fx.Node
    weight: Tensor
    bias: Tensor | None
    groups: int
    in_axis: int
    out_axis: int
    inputs: int
    outputs: int
    geometry: tuple[Any, ...] = ()
    pads: str = ""

    @property
    def wide(self) -> Weights:
        """Weight and bias in fp64, a bias of zeros where there is none."""
        bias = self.bias.double() if self.bias is not None else torch.zeros(self.outputs, dtype=torch.float64)
        return Weights(self.weight.double(), bias.to(self.weight.device))


def producer_of(module: fx.GraphModule, node: object, *, norms: bool = False) -> Producer | str | None:
    """The layer that a node is; None if it is none, text if it is one that must not be changed.

    With `norms`, batch norm counts as a layer too: one weight and one bias for each channel.
    """
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    if node.target in _CONVOLUTIONS or node.target in _TRANSPOSED or node.target is aten.convolution.default:
        found = _convolution(module, node)
    elif node.target is aten.linear.default:
        given = arguments(node)
        found = _matrix(module, node, given["input"], given["weight"], given["bias"], "linear")
    elif node.target in (aten.matmul.default, aten.mm.default):
        given = arguments(node)
        other = given["other"] if "other" in given else given["mat2"]
        found = _matrix(module, node, given["self"], other, None, "product")
    elif node.target is aten.addmm.default:
        given = arguments(node)
        found = None
        if (given["beta"], given["alpha"]) == (1, 1):
            found = _matrix(module, node, given["mat1"], given["mat2"], given["self"], "product")
    elif norms and node.target is aten.batch_norm.default:
        return _norm(module, node)
    else:
        return None
    return _unfit(module, found) or found if isinstance(found, Producer) else found


def _unfit(module: fx.GraphModule, producer: Producer) -> str:
    """Why the weight of a layer must stay as it is."""
    weight = producer.weight
    if weight.dtype not in _FOLDED:
        dtype = str(weight.dtype).removeprefix("torch.")
        return f"the weight of `{where(producer.node)}` is {dtype}: rounding again loses precision"
    if not bool(weight.isfinite().all()) or (producer.bias is not None and not bool(producer.bias.isfinite().all())):
        return f"the weight of `{where(producer.node)}` holds NaN or infinities"
    times = len(readers_of(module, weight))
    if times > 1:
        return f"the weight of `{where(producer.node)}` is used {times} times"
    return ""


def _convolution(module: fx.GraphModule, node: fx.Node) -> Producer | None:
    given = arguments(node)
    weight, shape = constant_of(module, given["weight"]), meta_shape(node)
    bias = constant_of(module, given["bias"])
    source = given["input"]
    if weight is None or shape is None or (given["bias"] is not None and bias is None):
        return None
    if not isinstance(source, fx.Node):
        return None
    transposed = node.target in _TRANSPOSED or bool(given.get("transposed"))
    spatial, groups = weight.dim() - 2, int(given["groups"])
    kernel = tuple(weight.shape[2:])
    stride, dilation = _each(given["stride"], spatial), _each(given["dilation"], spatial)
    padding = given["padding"] if isinstance(given["padding"], str) else _each(given["padding"], spatial)
    extra = _each(given.get("output_padding", 0), spatial)
    ones = (1,) * spatial
    if transposed:
        plain = (kernel, stride, padding, extra) == (ones, ones, (0,) * spatial, (0,) * spatial)
        pads = (
            ""
            if plain
            else "a transposed convolution meets its borders with fewer taps, so a shift is not the same there"
        )
        inputs, outputs = weight.shape[0], weight.shape[1] * groups
    else:
        unpadded = padding == "valid" or padding == (0,) * spatial or (padding == "same" and kernel == ones)
        pads = "" if unpadded else "zero padding would not be shifted"
        inputs, outputs = weight.shape[1] * groups, weight.shape[0]
    axis = len(shape) - spatial - 1
    return Producer(
        node,
        "transposed" if transposed else "convolution",
        source,
        weight,
        bias,
        groups,
        axis,
        axis,
        inputs,
        outputs,
        geometry=(transposed, stride, padding, dilation, groups, extra),
        pads=pads,
    )


def _matrix(
    module: fx.GraphModule, node: fx.Node, source: object, weight: object, bias: object, kind: str
) -> Producer | None:
    matrix, vector, shape = constant_of(module, weight), constant_of(module, bias), meta_shape(node)
    before = meta_shape(source)
    if matrix is None or matrix.dim() != 2 or shape is None or before is None or not isinstance(source, fx.Node):
        return None
    if bias is not None and vector is None:
        return None
    outputs, inputs = matrix.shape if kind == "linear" else (matrix.shape[1], matrix.shape[0])
    if vector is not None and tuple(vector.shape) not in ((outputs,), (1, outputs), (1,)):
        return None
    vector = vector.reshape(-1).expand(outputs) if vector is not None else None
    return Producer(
        node, kind, source, matrix, vector, 1, len(before) - 1, len(shape) - 1, int(inputs), int(outputs), (kind,)
    )


def _norm(module: fx.GraphModule, node: fx.Node) -> Producer | str | None:
    read = batch_norm_of(module, node)
    if not isinstance(read, Affine):
        return read
    channels = read.scale.numel()
    dtype = constant_of(module, arguments(node)["running_mean"])
    if dtype is None or dtype.dtype not in _FOLDED:
        return "its statistics have reduced precision: rounding again loses more"
    weight, bias = read.scale, read.shift
    return Producer(node, "norm", read.source, weight, bias, 1, 1, 1, channels, channels)


def with_output(producer: Producer, scale: Tensor, shift: Tensor) -> Weights:
    """The weights of a layer whose outputs are then scaled and shifted.

    Shapes:
        scale, shift: (outputs,)
    """
    wide = producer.wide
    scale, shift = scale.to(wide.weight.device), shift.to(wide.weight.device)
    trailing = (1,) * (wide.weight.dim() - 2)
    match producer.kind:
        case "convolution":
            weight = wide.weight * scale.reshape(-1, 1, *trailing)
        case "transposed":
            grouped = wide.weight.unflatten(0, (producer.groups, -1))
            weight = (grouped * scale.reshape(producer.groups, 1, -1, *trailing)).flatten(0, 1)
        case "linear":
            weight = wide.weight * scale[:, None]
        case _:
            weight = wide.weight * scale
    return Weights(weight, wide.bias * scale + shift)


def with_input(producer: Producer, scale: Tensor, shift: Tensor) -> Weights:
    """The weights of a layer whose inputs have been scaled and shifted before.

    Shapes:
        scale, shift: (inputs,)
    """
    wide, groups = producer.wide, producer.groups
    scale, shift = scale.to(wide.weight.device), shift.to(wide.weight.device)
    trailing = (1,) * (wide.weight.dim() - 2)
    match producer.kind:
        case "convolution":
            grouped = wide.weight.unflatten(0, (groups, -1))  # (groups, outputs, inputs, ...)
            weight = (grouped * scale.reshape(groups, 1, -1, *trailing)).flatten(0, 1)
            added = (grouped * shift.reshape(groups, 1, -1, *trailing)).flatten(2).sum(2).flatten()
        case "transposed":
            weight = wide.weight * scale.reshape(-1, 1, *trailing)
            grouped = (wide.weight * shift.reshape(-1, 1, *trailing)).unflatten(0, (groups, -1))
            added = grouped.sum(1).flatten(2).sum(2).flatten()
        case "linear":
            weight, added = wide.weight * scale, wide.weight @ shift
        case "product":
            weight, added = wide.weight * scale[:, None], shift @ wide.weight
        case _:
            weight, added = wide.weight * scale, wide.weight * shift
    return Weights(weight, wide.bias + added)


def new_weights_problem(producer: Producer, weights: Weights) -> str:
    """Why new weights must not be used: they do not fit into the number format that the layer computes in."""
    dtype = producer.weight.dtype if producer.kind != "norm" else torch.float32
    limits = torch.finfo(dtype)
    for values in (weights.weight, weights.bias):
        if not bool(values.isfinite().all()) or float(values.abs().amax()) > limits.max:
            return "the folded weight would overflow"
    rows = weights.weight.reshape(-1).abs()
    small = rows[(rows > 0) & (rows < limits.tiny)]
    if small.numel() > 0.01 * rows.numel() and float(small.max()) > 0:
        return "the folded weight would underflow"
    return ""


def put_weights(module: fx.GraphModule, producer: Producer, weights: Weights) -> fx.Node:
    """A new node in place of the layer, with new weights. The old node is left unused."""
    node = producer.node
    name = where(node).replace(".", "_")
    given = dict(arguments(node))
    entering = producer.source
    if producer.kind == "norm":
        return _put_norm(module, producer, weights, entering, name)
    dtype = producer.weight.dtype
    weight = add_constant(module, _as(weights.weight, producer.weight), node, f"{name}_weight")
    bias: fx.Node | None = None
    if producer.bias is not None or bool(weights.bias.any()):
        bias = add_constant(module, weights.bias.to(dtype), node, f"{name}_bias")
    target: Callable[..., Any] = node.target  # type: ignore[assignment]
    with module.graph.inserting_before(node):
        if producer.kind in ("convolution", "transposed"):
            given |= {"input": entering, "weight": weight, "bias": bias}
            schema = target._schema.arguments  # type: ignore[attr-defined]  # noqa: SLF001 - the only schema reader
            new = module.graph.call_function(target, tuple(given[one.name] for one in schema))
        elif producer.kind == "linear":
            new = module.graph.call_function(target, (entering, weight, bias))
        elif bias is None:
            product = aten.mm.default if target is aten.addmm.default else target
            new = module.graph.call_function(product, (entering, weight))
        else:
            new = _linear(module, producer, weights, bias, entering, weight)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    return new


def _linear(
    module: fx.GraphModule, producer: Producer, weights: Weights, bias: fx.Node, entering: fx.Node, weight: fx.Node
) -> fx.Node:
    if producer.node.target is aten.addmm.default:
        return module.graph.call_function(aten.addmm.default, (bias, entering, weight))
    turned = add_constant(
        module, _as(weights.weight.t(), producer.weight), producer.node, f"{where(producer.node)}_weight"
    )
    module.graph.erase_node(weight)
    return module.graph.call_function(aten.linear.default, (entering, turned, bias))


def _put_norm(module: fx.GraphModule, producer: Producer, weights: Weights, entering: fx.Node, name: str) -> fx.Node:
    """Batch norm with mean 0, variance 1 and eps 0: its weight is the scale and its bias the shift."""
    given = arguments(producer.node)
    like = constant_of(module, given["running_mean"])
    dtype = like.dtype if like is not None else torch.float32
    values = {
        "weight": weights.weight,
        "bias": weights.bias,
        "mean": torch.zeros_like(weights.weight),
        "variance": torch.ones_like(weights.weight),
    }
    nodes = [add_constant(module, tensor.to(dtype), producer.node, f"{name}_{key}") for key, tensor in values.items()]
    with module.graph.inserting_before(producer.node):
        new = module.graph.call_function(
            aten.batch_norm.default, (entering, *nodes, False, given["momentum"], 0.0, given["cudnn_enabled"])
        )
    new.meta = dict(producer.node.meta)
    producer.node.replace_all_uses_with(new)
    return new


def _as(wide: Tensor, like: Tensor) -> Tensor:
    """`wide` rounded once, in the memory order of `like` where it has one."""
    rounded = wide.to(like.dtype)
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        return rounded.contiguous(memory_format=torch.channels_last)
    return rounded.contiguous()


def _each(value: Any, spatial: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * spatial if len(values) == 1 else values
