"""channels-last: convolutional networks keep a pixel's channels side by side in memory.

What it does
------------
Puts the weights of two- and three-dimensional convolutions into channels-last order, and the images with them; views
become reshapes, since other orders cannot always be viewed. Outputs leave in the order that they had.

Why it matters
--------------
Vector instructions want the channels of a pixel side by side. With the usual order the kernels reorder every
activation, or run a slower way.

Example
-------
    import torch
    from torch import nn

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    batch = torch.randn(2, 3, 12, 12)

Use instead
-----------
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    batch = torch.randn(2, 8)

Fix and its safety
------------------
Shapes and strides of the results stay; their last bits may change, since other kernels run. It is refused where an
operator reads memory by its own strides.

Limits
------
It serves back ends that run torch's own kernels (eager, Inductor); others choose an order themselves. It may be slower
for few channels: measure.

Source
------
https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from evalmode.mode.discover import discover
from evalmode.optimization.graph import add_constant, arguments, constant_of, tidy_graph
from evalmode.optimization.graph_pass import Pass, PassResult, Refusal, refusal_at
from evalmode.optimization.neighbours import has_hooks

__all__ = ["PASS"]

aten = torch.ops.aten
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONVOLUTIONS = frozenset(
    {
        *(aten.conv2d.default, aten.conv2d.padding, aten.conv3d.default, aten.conv3d.padding),
        *(aten.conv_transpose2d.input, aten.conv_transpose3d.input, aten.convolution.default),
    }
)
_READS_STRIDES = frozenset(
    {
        *(aten.as_strided.default, aten.view.dtype, aten.view_as_complex.default, aten.view_as_real.default),
        *(aten._reshape_alias.default, aten.unfold.default),  # noqa: SLF001 - an operator's name
    }
)
_CLASSES = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _rewrite(module: fx.GraphModule, inputs: Sequence[Tensor]) -> PassResult:
    layers = [node for node in module.graph.nodes if node.target in _CONVOLUTIONS and _weight(module, node) is not None]
    due = [node for node in layers if not _is_last(_weight(module, node))]
    if not due:
        return PassResult()
    reading = [node for node in module.graph.nodes if node.target in _READS_STRIDES]
    if reading:
        return PassResult(refused=(refusal_at(reading[0], "it reads memory by its strides"),))
    weights: dict[fx.Node, fx.Node] = {}
    for node in due:
        old = arguments(node)["weight"]
        weight = _weight(module, node)
        if old not in weights and weight is not None:
            last = weight.contiguous(memory_format=_FORMATS[weight.dim()])
            weights[old] = add_constant(module, last, next(iter(old.users)), f"{old.target}_last")
            weights[old].meta |= {key: value for key, value in old.meta.items() if key != "val"}
    for old, new in weights.items():
        _move_to_front(module, new)
        for user in [user for user in old.users if user.target in _CONVOLUTIONS]:
            user.replace_input_with(old, new)
    _reorder_inputs(module)
    _view_by_reshape(module)
    _restore_outputs(module)
    tidy_graph(module)
    return PassResult(len(due))


def _weight(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    weight = constant_of(module, arguments(node)["weight"])
    return weight if weight is not None and weight.dim() in _FORMATS else None


def _is_last(weight: Tensor | None) -> bool:
    return weight is not None and weight.is_contiguous(memory_format=_FORMATS[weight.dim()])


def _move_to_front(module: fx.GraphModule, node: fx.Node) -> None:
    """A weight must be fetched before the first layer that reads it."""
    first = next(each for each in module.graph.nodes if each.op != "placeholder")
    if first is not node:
        first.prepend(node)


def _reorder_inputs(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        shown = node.meta.get("val")
        if node.op != "placeholder" or not isinstance(shown, Tensor) or not shown.is_floating_point():
            continue
        if shown.dim() not in _FORMATS or not node.users:
            continue
        with module.graph.inserting_after(node):
            new = module.graph.call_function(aten.clone.default, (node,), {"memory_format": _FORMATS[shown.dim()]})
        new.meta = {"val": shown.to(memory_format=_FORMATS[shown.dim()])}
        node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)


def _view_by_reshape(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if node.target is aten.view.default:
            node.target = aten.reshape.default


def _restore_outputs(module: fx.GraphModule) -> None:
    output = next(node for node in module.graph.nodes if node.op == "output")
    for node in dict.fromkeys(output.all_input_nodes):
        shown = node.meta.get("val")
        if node.op == "call_function" and isinstance(shown, Tensor) and shown.dim() >= 3 and shown.is_contiguous():
            with module.graph.inserting_before(output):
                new = module.graph.call_function(aten.contiguous.default, (node,))
            new.meta = dict(node.meta)
            output.replace_input_with(node, new)


def _rewrite_modules(module: nn.Module, inputs: Sequence[Tensor]) -> PassResult:
    changed = 0
    refused: list[Refusal] = []
    found = discover(module)
    paths = found.paths()
    for part in found.modules:
        if type(part) not in _CLASSES:
            continue
        layer: Any = part
        if has_hooks(part):
            path = paths.get(id(part), "").removeprefix("model.")
            refused.append(Refusal(path, "it has hooks or a forward of its own"))
        elif not _is_last(layer.weight):
            last = layer.weight.detach().contiguous(memory_format=_FORMATS[layer.weight.dim()])
            layer.weight = nn.Parameter(last, requires_grad=False)
            changed += 1
    return PassResult(changed, tuple(refused))


PASS = Pass("channels-last", _rewrite, _rewrite_modules, layout=True)
