"""A graph of ATen operators: what its nodes compute from, where they come from in the user's code, and safe edits.

Constants are replaced, never written: the tensors of a graph are those of the model that it was exported from.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.graph import CodeGen

from evalmode.observe.attribution import is_installed, is_user_file, line_place
from evalmode.optimization.tracing import quiet_torch

__all__ = [
    "add_constant",
    "answers_with",
    "arguments",
    "constant_of",
    "drawing_nodes",
    "is_random",
    "lean_module",
    "makes_new",
    "meta_shape",
    "place_in_code",
    "readers_of",
    "same_shape",
    "sole_user",
    "tidy_graph",
    "where",
    "writing_nodes",
]

aten = torch.ops.aten
_PROBABILITIES = ("p", "dropout_p", "dropout")
_MAKES_NEW = frozenset(
    {
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "matmul"),
        *("batch_norm", "layer_norm", "group_norm", "instance_norm", "max_pool1d", "max_pool2d", "max_pool3d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool1d", "einsum", "bilinear"),
        *("scaled_dot_product_attention", "softmax", "log_softmax", "upsample_nearest2d", "upsample_bilinear2d"),
    }
)
"""Composite operators that never answer with one of their arguments; other composite operators may."""
_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+)', re.MULTILINE)


def lean_module(exported: ExportedProgram) -> fx.GraphModule:
    """The exported graph as a module that is called with the tensors themselves and answers with a tuple.

    It has no guards, no asserted metadata and no tree to open; its parameters are those of `exported`. It is in
    evaluation, and stays there.
    """
    with quiet_torch():
        unlifted: Any = exported.module(check_guards=False)
        graph: fx.Graph = unlifted.graph
        for node in list(graph.nodes):
            asserts = node.target is aten._assert_tensor_metadata.default  # noqa: SLF001 - an operator's name
            if asserts or (node.op == "call_module" and node.target == "_guards_fn"):
                graph.erase_node(node)
        graph.set_codegen(CodeGen())
        module = fx.GraphModule(unlifted, graph, "Graph")
    for part in module.modules():
        part.training = False
    tidy_graph(module)
    return module


def tidy_graph(module: fx.GraphModule) -> None:
    """Drop what computes nothing that is used, constants included, and compile the graph anew."""
    module.graph.eliminate_dead_code()
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
    module.delete_all_unused_submodules()
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for path, part in list(module.named_modules()):
        own = part.__dict__
        for names in (own["_parameters"], own["_buffers"]):
            for name in [name for name in names if (f"{path}.{name}" if path else name) not in used]:
                del names[name]
        for name in [name for name, value in own.items() if isinstance(value, Tensor)]:
            if (f"{path}.{name}" if path else name) not in used:
                del own[name]


def constant_of(module: fx.GraphModule, node: object) -> Tensor | None:
    """The dense tensor that a node fetches from the module; None for any other node."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    return value.detach() if isinstance(value, Tensor) and value.layout is torch.strided else None


def add_constant(module: fx.GraphModule, tensor: Tensor, before: fx.Node, name: str) -> fx.Node:
    """A new constant of the module, fetched by a new node before `before`."""
    stem = re.sub(r"\W", "_", name).strip("_") or "constant"
    taken = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    label, count = stem, 0
    while label in taken or hasattr(module, label):
        count += 1
        label = f"{stem}_{count}"
    module.register_buffer(label, tensor.detach())
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(label)
    node.meta["val"] = torch.empty_like(tensor, device="meta")
    return node


def arguments(node: fx.Node) -> Mapping[str, Any]:
    """The arguments of an operator by the names of its schema, defaults included.

    Example:
        >>> graph = fx.Graph()
        >>> node = graph.call_function(torch.ops.aten.add.Tensor, (graph.placeholder("x"), 2))
        >>> dict(arguments(node))
        {'self': x, 'other': 2, 'alpha': 1}
    """
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):  # noqa: SLF001 - the documented class of torch.ops.aten.*.default
        return dict(node.kwargs)
    schema = target._schema.arguments  # noqa: SLF001 - as above
    named: dict[str, Any] = {one.name: one.default_value for one in schema if one.has_default_value()}
    named |= dict(zip([one.name for one in schema], node.args, strict=False)) | node.kwargs
    return {one.name: named.get(one.name) for one in schema}


def readers_of(module: fx.GraphModule, tensor: Tensor) -> list[fx.Node]:
    """The nodes that read `tensor`, under whatever name: tied weights share their storage."""
    storage = tensor.untyped_storage()
    readers: list[fx.Node] = []
    for node in module.graph.nodes:
        found = constant_of(module, node)
        if found is not None and found.untyped_storage()._cdata == storage._cdata:  # noqa: SLF001 - its identity
            for user in node.users:
                readers.extend([user] * sum(used is node for used in user.all_input_nodes))
    return readers


def sole_user(node: fx.Node) -> fx.Node | None:
    """The one node that uses this one, and uses it once."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    times = 0

    def count(used: fx.Node) -> fx.Node:
        nonlocal times
        times += used is node
        return used

    fx.node.map_arg((user.args, user.kwargs), count)
    return user if times == 1 else None


def meta_shape(node: object) -> tuple[Any, ...] | None:
    """The shape that tracing saw; None if it saw no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None


def same_shape(first: object, second: object) -> bool:
    """Whether two nodes have one shape whatever the batch; the same symbol counts as the same length."""
    one, other = meta_shape(first), meta_shape(second)
    if one is None or other is None or len(one) != len(other):
        return False
    return all(_length(a) == _length(b) for a, b in zip(one, other, strict=True))


def _length(size: Any) -> object:
    return size if isinstance(size, int) else str(size.node.expr)


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers as it is called: its training and probability arguments are read."""
    target: Any = node.target
    if node.op != "call_function" or torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    given = arguments(node)
    if given.get("train") is False or given.get("training") is False:
        return False
    probabilities = [given[name] for name in _PROBABILITIES if isinstance(given.get(name), int | float)]
    return not probabilities or any(p > 0 for p in probabilities)


def drawing_nodes(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes that draw random numbers, and recurrent layers whose dropout is on."""
    recurrent = ("aten.lstm", "aten.gru", "aten.rnn")
    found = [node for node in module.graph.nodes if is_random(node)]
    for node in module.graph.nodes:
        if node.op == "call_function" and str(node.target).startswith(recurrent) and node not in found:
            given = arguments(node)
            if given.get("train") is True and given.get("dropout", 0) > 0:
                found.append(node)
    return found


def writing_nodes(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes that write into one of their arguments, batch norm that updates statistics included."""
    return [node for node in module.graph.nodes if node.op == "call_function" and _writes(node)]


def _writes(node: fx.Node) -> bool:
    target: Any = node.target
    if isinstance(target, torch._ops.HigherOrderOperator):  # noqa: SLF001 - its documented home
        parts = [_part_of(used) for used in node.all_input_nodes if used.op == "get_attr"]
        return any(writing_nodes(part) for part in parts if part is not None)
    schema = getattr(target, "_schema", None)
    if schema is None:
        return target is not operator.getitem and not _is_plain(target)
    if schema.is_mutable:
        return True
    if "batch_norm" in schema.name:
        given = arguments(node)
        return given.get("training") is True and given.get("running_mean") is not None
    return False


def _part_of(node: fx.Node) -> fx.GraphModule | None:
    """The graph that a higher-order operator runs, if that is what a node fetches."""
    part: Any = node.graph.owning_module
    for name in str(node.target).split("."):
        part = getattr(part, name, None)
    return part if isinstance(part, fx.GraphModule) else None


def _is_plain(target: Any) -> bool:
    """Arithmetic on lengths and the like: Python's own operators, `math`, torch's symbolic numbers."""
    origin = getattr(target, "__module__", "") or ""
    return origin in ("_operator", "math", "builtins") or origin.startswith(("torch.", "torch"))


def place_in_code(node: fx.Node) -> str:
    """`file:line: source` of the innermost line of the user's own code; empty if the graph does not say."""
    best = ""
    for filename, line in _frames(node):
        if is_user_file(filename) and (not best or not is_installed(filename)):
            place = line_place("", filename, line)
            best = f"{place.file}:{place.line}: {place.source}"
    return best


def _frames(node: fx.Node) -> Iterator[tuple[str, int]]:
    for match in _FRAME.finditer(str(node.meta.get("stack_trace") or "")):
        yield match[1], int(match[2])


def where(node: fx.Node) -> str:
    """The module path that a node comes from, else its own name."""
    stack: Any = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, *_ in stack.values()]
    path = paths[-1] if paths else ""
    return re.sub(r"^model(\.|$)", "", path) or node.name


def answers_with(node: fx.Node, *, but: fx.Node | None = None) -> bool:
    """Whether an output of the graph is this node's value, or may be a view of it; through `but` does not count."""
    return any(
        user.op == "output" or (not makes_new(user) and answers_with(user, but=but))
        for user in node.users
        if user is not but
    )


def makes_new(node: fx.Node) -> bool:
    """Whether the node's value shares memory with none of its arguments."""
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return False
    if schema.is_mutable or any(answer.alias_info is not None for answer in schema.returns):
        return False
    if schema.name == "aten::einsum" and len(node.args) > 1 and len(node.args[1]) < 2:  # type: ignore[arg-type]
        return False  # a mere transposition is a view
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")  # noqa: SLF001 - no public question
    return not composite or schema.name.removeprefix("aten::") in _MAKES_NEW
