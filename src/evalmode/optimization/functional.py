"""A graph in functional form: no operator writes into an argument, so that nodes may be replaced one by one."""

from __future__ import annotations

import contextlib
import operator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from evalmode.optimization.graph import lean_module, makes_new, place_in_code, tidy_graph, where, writing_nodes
from evalmode.optimization.tracing import quiet_torch

__all__ = ["functional_module"]

aten = torch.ops.aten


def functional_module(exported: ExportedProgram) -> tuple[fx.GraphModule, str]:
    """The exported graph without writes, and what still writes: `""`, or where the model changes its own state.

    In-place operators on values that nobody else reads become ordinary ones, so that the graph keeps its operators;
    only where that is not enough, torch's own functionalisation is asked.
    """
    module = lean_module(exported)
    if not _without_writes(module):
        try:
            with quiet_torch(), torch.no_grad():
                module = lean_module(exported.run_decompositions({}))
        except Exception as error:  # noqa: BLE001 - torch's own, of any kind: the graph then stays as it is
            return module, f"{type(error).__name__} while writes were taken out of the graph"
        _gather_batch_norms(module)
    left = writing_nodes(module)
    return module, _told(left[0]) if left else ""


def _told(writer: fx.Node) -> str:
    """What a node writes into, and from which line of the user's code."""
    owner = next((node for node in writer.all_input_nodes if node.op in ("get_attr", "placeholder")), None)
    source = next((node for node in (writer, *writer.all_input_nodes) if place_in_code(node)), writer)
    place = f" ({place_in_code(source)})" if place_in_code(source) else ""
    if owner is None:
        return f"`{where(writer)}` writes into a value that is read elsewhere{place}"
    if owner.op == "placeholder":
        return f"the model writes into its input{place}"
    return f"the model writes into its own `{str(owner.target).removeprefix('model.')}`{place}"


def _without_writes(module: fx.GraphModule) -> bool:
    """Replace in-place operators where that is local; False if one is left."""
    for node in writing_nodes(module):
        replacement = _ordinary(node)
        owner = node.args[0] if node.args else None
        if replacement is None or not isinstance(owner, fx.Node) or not _is_owned(owner, node):
            return False
        order = {each: position for position, each in enumerate(module.graph.nodes)}
        with module.graph.inserting_before(node):
            new = module.graph.call_function(replacement, node.args, node.kwargs)
        new.meta = dict(node.meta)
        for user in list(owner.users):
            if user is not new and order.get(user, -1) > order[node]:
                user.replace_input_with(owner, new)
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)
    tidy_graph(module)
    return True


def _ordinary(node: fx.Node) -> Any:
    """The operator that gives what `node` writes, without writing."""
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    name = schema.name.removeprefix("aten::") if schema is not None else ""
    if not name.endswith("_") or name.endswith("__") or "copy" in name or node.meta.get("val") is None:
        return None
    packet = getattr(aten, name[:-1], None)
    found = getattr(packet, target._overloadname, None) if packet is not None else None  # noqa: SLF001 - the only name
    given, wanted = node.args[0], node.meta["val"]
    before = given.meta.get("val") if isinstance(given, fx.Node) else None
    if found is None or before is None or before.dtype != wanted.dtype:
        return None
    return found if _dtype(found, node) is wanted.dtype else None  # a comparison gives booleans, a sum may promote


def _dtype(operator_: Any, node: fx.Node) -> torch.dtype | None:
    """The dtype of what an operator gives for the arguments of a node; None where it cannot be told."""
    args, kwargs = (fx.node.map_arg(part, lambda used: used.meta.get("val")) for part in (node.args, node.kwargs))
    values: Any = args
    mode = getattr(values[0], "fake_mode", None)
    try:
        with mode if mode is not None else contextlib.nullcontext():
            answer: Any = operator_(*values, **kwargs)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - an operator may refuse in any way
        return None
    return getattr(answer, "dtype", None)


def _is_owned(owner: fx.Node, writer: fx.Node) -> bool:
    """Whether what `writer` writes into is read by nobody else before the write is over, under this or another name."""
    order = {each: position for position, each in enumerate(owner.graph.nodes)}
    if makes_new(owner):
        return all(user is writer or order[user] > order[writer] or makes_new(user) for user in owner.users)
    if owner.op != "call_function" or set(owner.users) != {writer}:
        return False
    sources = owner.all_input_nodes
    return all(_is_owned(source, owner) and set(source.users) == {owner} for source in sources)


def _gather_batch_norms(module: fx.GraphModule) -> None:
    """Functionalisation spells batch norm with three answers; where only the first is used, it is batch norm again."""
    for node in list(module.graph.nodes):
        if node.target is not aten._native_batch_norm_legit_no_training.default:  # noqa: SLF001 - an operator's name
            continue
        parts = list(node.users)
        if len(parts) != 1 or parts[0].target is not operator.getitem or parts[0].args[1] != 0:
            continue
        with module.graph.inserting_before(parts[0]):
            new = module.graph.call_function(
                aten.batch_norm.default, (*node.args[:5], False, node.args[5], node.args[6], False)
            )
        new.meta = dict(parts[0].meta)
        parts[0].replace_all_uses_with(new)
    tidy_graph(module)
