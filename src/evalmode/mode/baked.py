"""Read the mode that is written into a graph: traced, scripted, exported or symbolically traced modules.

Such a graph carries the training argument of each dropout and batch norm as a constant, and no flag reaches it.
`ExportedProgram.module()` even answers `training=True` whatever it was exported in, so the operators are read instead.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["carries_graph", "training_operators"]

_TRAINING_ARGUMENTS = frozenset(("train", "training"))
_PROBABILITIES = frozenset(("dropout_p", "p", "dropout"))
_known: weakref.WeakKeyDictionary[nn.Module, tuple[str, ...]] = weakref.WeakKeyDictionary()


def carries_graph(module: nn.Module) -> bool:
    """Whether `module` runs a stored graph instead of Python code."""
    return isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule)


def training_operators(module: nn.Module) -> tuple[str, ...]:
    """The operators of the stored graph that were written in training mode; empty for a module without one.

    An operator counts if its training argument is the constant True and it does something in training: a dropout of
    probability 0 does not.
    """
    if not carries_graph(module):
        return ()
    if module not in _known:
        found = _in_script(module) if isinstance(module, torch.jit.ScriptModule) else _in_fx(module)
        _known[module] = tuple(dict.fromkeys(found))
    return _known[module]


def _in_script(module: torch.jit.ScriptModule) -> Iterator[str]:
    try:
        graph = module.inlined_graph
    except (RuntimeError, AttributeError):  # a container without a forward of its own
        return
    yield from _in_script_block(graph)


def _in_script_block(block: Any) -> Iterator[str]:
    for node in block.nodes():
        for inner in node.blocks():
            yield from _in_script_block(inner)
        if not node.kind().startswith("aten::") or node.schema() == "(no schema)":
            continue
        schema = torch._C.parse_schema(node.schema())  # noqa: SLF001 - TorchScript offers no public schema reader
        arguments = {}
        for argument, value in zip(schema.arguments, node.inputs(), strict=False):
            if value.node().kind() == "prim::Constant" and value.node().hasAttribute("value"):
                arguments[argument.name] = value.toIValue()
        if _is_training(arguments):
            yield f"{node.kind()}{_source_of(node)}"


def _source_of(node: Any) -> str:
    first = next(iter(node.sourceRange().splitlines()), "") if node.sourceRange() else ""
    return f" ({first.strip()})" if first.strip() and len(first) < 60 else ""


def _in_fx(module: nn.Module) -> Iterator[str]:
    graph: torch.fx.Graph = module.graph  # type: ignore[assignment]
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if _is_training(_named_arguments(node)):
            yield f"{getattr(node.target, '__name__', node.target)} (node {node.name!r})"


def _named_arguments(node: torch.fx.Node) -> dict[str, Any]:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001 - the documented class of torch.ops.aten.*.default
        names = [argument.name for argument in target._schema.arguments]  # noqa: SLF001
        defaults = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}  # noqa: SLF001
        return defaults | dict(zip(names, node.args, strict=False)) | node.kwargs
    try:
        bound = inspect.signature(target).bind_partial(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # a builtin without a signature
        return dict(node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _is_training(arguments: dict[str, Any]) -> bool:
    probabilities = [arguments[name] for name in _PROBABILITIES if isinstance(arguments.get(name), int | float)]
    if any(arguments.get(name) is True for name in _TRAINING_ARGUMENTS):
        return not probabilities or any(p > 0 for p in probabilities)
    return isinstance(arguments.get("dropout_p"), float) and arguments["dropout_p"] > 0
