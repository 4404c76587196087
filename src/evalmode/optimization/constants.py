"""Parts of a graph that are computed from constants alone: found, evaluated once as at each call, and put in."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from evalmode.optimization.graph import add_constant, constant_of, is_random, where

__all__ = ["constant_nodes", "freed_bytes", "put_value", "value_of"]

_UNDEFINED = ("aten.empty", "aten.new_empty")


def constant_nodes(module: fx.GraphModule) -> set[fx.Node]:
    """Every node whose value is the same at every call: constants, and operators on constants that draw nothing."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            if constant_of(module, node) is not None:
                found.add(node)
        elif node.op == "call_function" and _is_pure(node) and all(used in found for used in node.all_input_nodes):
            found.add(node)
    return found


def value_of(module: fx.GraphModule, node: fx.Node) -> Any:
    """The value of a constant node, from the operators that would compute it at each call: the same bits."""
    known: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for each in _needed(node):
            if each.op == "get_attr":
                known[each] = constant_of(module, each)
            else:
                args, kwargs = fx.node.map_arg((each.args, each.kwargs), known.__getitem__)
                target: Any = each.target
                known[each] = target(*args, **kwargs)
    return known[node]


def freed_bytes(module: fx.GraphModule, node: fx.Node) -> int:
    """How much memory the graph no longer needs once `node` has its value: constants that only `node` reads.

    Units: bytes
    """
    needed = _needed(node)
    inside = set(needed)
    freed: dict[int, int] = {}
    for each in needed:
        constant = constant_of(module, each)
        if constant is None:
            continue
        storage = constant.untyped_storage()
        sharing = [
            other
            for other in module.graph.nodes
            if (held := constant_of(module, other)) is not None and held.untyped_storage()._cdata == storage._cdata  # noqa: SLF001 - its identity
        ]
        if all(other in inside and all(user in inside for user in other.users) for other in sharing):
            freed[storage._cdata] = storage.nbytes()  # noqa: SLF001 - as above
    return sum(freed.values())


def put_value(module: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    """A constant in place of `node`, in the memory order that it was computed in: another order rounds anew."""
    if 0 in value.stride():  # one value in several places
        value = value.contiguous()
    first = next(iter(module.graph.nodes))
    new = add_constant(module, value, first if first.op != "placeholder" else _after_inputs(module), where(node))
    new.meta |= {key: kept for key, kept in node.meta.items() if key in ("stack_trace", "nn_module_stack", "val")}
    node.replace_all_uses_with(new)


def _after_inputs(module: fx.GraphModule) -> fx.Node:
    nodes: Iterable[fx.Node] = module.graph.nodes
    return next(node for node in nodes if node.op != "placeholder")


def _needed(node: fx.Node) -> list[fx.Node]:
    """The node and all that it is computed from, in order."""
    wanted = {node}
    for each in _backwards(node):
        if each in wanted:
            wanted.update(each.all_input_nodes)
    return [each for each in node.graph.nodes if each in wanted]


def _backwards(node: fx.Node) -> Iterator[fx.Node]:
    while node.op != "root":
        yield node
        node = node.prev


def _is_pure(node: fx.Node) -> bool:
    target: Any = node.target
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload) or str(target).startswith(_UNDEFINED):  # noqa: SLF001 - its documented class
        return False
    return not target._schema.is_mutable and not is_random(node)  # noqa: SLF001 - the only schema reader
