"""Fold a scale and shift into the layer before it, or into every layer after it, where that keeps the function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from evalmode.optimization.affine import Affine
from evalmode.optimization.graph import arguments, meta_shape, sole_user, where
from evalmode.optimization.producers import (
    Producer,
    Weights,
    new_weights_problem,
    producer_of,
    put_weights,
    with_input,
    with_output,
)

__all__ = ["fold"]

aten = torch.ops.aten
_KEEPS_AXES = frozenset((aten.contiguous.default, aten.clone.default, aten.detach.default, aten.alias.default))
_MOVES_AXES = frozenset((aten.permute.default, aten.transpose.int))
_KEEPS_VALUES = frozenset(
    {
        *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.unsqueeze.default),
        *(aten.squeeze.dim, aten.squeeze.default, aten.squeeze.dims, aten.t.default),
        aten._unsafe_view.default,  # noqa: SLF001 - an operator's name
        *_KEEPS_AXES,
        *_MOVES_AXES,
    }
)


@dataclass(frozen=True, slots=True)
class _Reached:
    """A layer, and the axis of its input or output that a scale and shift run along there."""

    producer: Producer
    axis: int | None


def fold(module: fx.GraphModule, affine: Affine, *, norms: bool) -> str | None:
    """Fold `affine` into the layer before it, else into those after it; None if that was done, else why not.

    The reason is empty where there is no layer at all. With `norms`, batch norm counts as a layer.
    """
    before = _fold_before(module, affine, norms=norms)
    if before is None:
        return None
    after = _fold_after(module, affine, norms=norms)
    if after is None:
        return None
    return "; ".join(dict.fromkeys(reason for reason in (before, after) if reason))


def _fold_before(module: fx.GraphModule, affine: Affine, *, norms: bool) -> str | None:
    node, user, axis = affine.source, affine.node, affine.axis
    shared = sole_user(node) is not user
    while _is_transparent(node, scalar=affine.axis is None):
        moved = _axis_before(node, axis)
        if moved is None and axis is not None:
            return ""
        axis, user = moved, node
        node = node.all_input_nodes[0]
        shared = shared or sole_user(node) is not user
    producer = producer_of(module, node, norms=norms)
    if producer is None or isinstance(producer, str):
        return producer or ""
    if shared:
        return f"the output of `{where(producer.node)}` is also used elsewhere"
    terms = affine.along(producer.out_axis if affine.axis is None else affine.axis, producer.outputs)
    if terms is None or axis not in (None, producer.out_axis):
        return f"`{where(producer.node)}` has its channels along another axis"
    weights = with_output(producer, *terms)
    problem = new_weights_problem(producer, weights)
    if problem:
        return problem
    new = put_weights(module, producer, weights)
    _bypass(affine, new if affine.source is producer.node else affine.source)
    module.graph.erase_node(producer.node)
    return None


def _fold_after(module: fx.GraphModule, affine: Affine, *, norms: bool) -> str | None:
    reached = _consumers(module, affine.node, affine.axis, affine, norms=norms)
    if isinstance(reached, str):
        return reached
    changes: list[tuple[Producer, Weights]] = []
    for one in reached:
        producer = one.producer
        if one.axis is not None and one.axis != producer.in_axis:
            return f"`{where(producer.node)}` has its channels along another axis"
        if not affine.only_scales and producer.pads:
            return producer.pads
        terms = affine.along(affine.axis if affine.axis is not None else producer.in_axis, producer.inputs)
        if terms is None:
            return f"`{where(producer.node)}` has another number of channels"
        weights = with_input(producer, *terms)
        problem = new_weights_problem(producer, weights)
        if problem:
            return problem
        changes.append((producer, weights))
    if not changes:
        return ""
    for producer, weights in changes:
        put_weights(module, producer, weights)
        module.graph.erase_node(producer.node)
    _bypass(affine, affine.source)
    return None


def _consumers(
    module: fx.GraphModule, node: fx.Node, axis: int | None, affine: Affine, *, norms: bool
) -> list[_Reached] | str:
    """Every layer that reads the result, or why not all readers are layers."""
    found: list[_Reached] = []
    for user in node.users:
        if user.op == "output":
            return ""
        if _is_transparent(user, scalar=affine.axis is None) and user.args[0] is node:
            moved = _axis_after(user, axis)
            if moved is None and axis is not None:
                return ""
            inner = _consumers(module, user, moved, affine, norms=norms)
            if isinstance(inner, str):
                return inner
            found += inner
            continue
        producer = producer_of(module, user, norms=norms)
        if isinstance(producer, str):
            return producer
        if producer is None or producer.source is not node:
            return "" if len(node.users) == 1 else "its result is also used by something that is no such layer"
        found.append(_Reached(producer, axis))
    return found


def _bypass(affine: Affine, by: fx.Node) -> None:
    affine.node.replace_all_uses_with(by)
    affine.node.graph.erase_node(affine.node)


def _is_transparent(node: fx.Node, *, scalar: bool) -> bool:
    """Whether a node only moves values about, so that a scale (of all alike, or of an axis that is kept) passes it."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    return node.target in (_KEEPS_VALUES if scalar else _KEEPS_AXES | _MOVES_AXES)


def _moves(node: fx.Node) -> list[int] | None:
    """For each axis of the result, the axis of the argument; None where axes are not merely moved."""
    shape = meta_shape(node.args[0])
    if shape is None:
        return None
    given: Any = arguments(node)
    order = list(range(len(shape)))
    if node.target is aten.permute.default:
        return [dim % len(shape) for dim in given["dims"]]
    if node.target is aten.transpose.int and shape:
        first, second = given["dim0"] % len(shape), given["dim1"] % len(shape)
        order[first], order[second] = order[second], order[first]
    return order


def _axis_before(node: fx.Node, axis: int | None) -> int | None:
    moves = _moves(node)
    return None if axis is None or moves is None else moves[axis]


def _axis_after(node: fx.Node, axis: int | None) -> int | None:
    moves = _moves(node)
    return None if axis is None or moves is None else moves.index(axis)
