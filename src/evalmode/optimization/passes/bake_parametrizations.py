"""bake-parametrizations: a weight that is computed at every call is computed once.

What it does
------------
Weight norm, spectral norm, orthogonal and weight-standardised layers, and adapters registered as parametrizations,
compute a layer's weight from other parameters each time. Where a weight or bias of a layer depends on constants alone,
its value is kept, with the bits that each call would have computed.

Why it matters
--------------
At small batches the weight costs more than the layer. A computed weight also keeps batch norm from being folded into
it, and back ends from packing it.

Example
-------
    import torch
    from torch import nn

    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU()).eval()
    batch = torch.randn(3, 4)

Use instead
-----------
    import torch
    from torch import nn

    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    model = nn.Sequential(layer, nn.ReLU()).eval()
    batch = torch.randn(3, 4)

Fix and its safety
------------------
The results keep their bits on the machine that bakes. It is refused where the weight takes much more memory than what
it is computed from (a product of two thin matrices), and where it draws random numbers.

Limits
------
Without a graph, parametrizations of `torch.nn.utils.parametrize` are baked if two evaluations give the same bits; the
older `torch.nn.utils.weight_norm` and `spectral_norm` are left alone.

Source
------
Salimans and Kingma, Weight Normalization, equation 2. Miyato et al., Spectral Normalization for GANs, algorithm 1.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from evalmode.mode.discover import discover
from evalmode.observe.tree import same_bits
from evalmode.optimization.constants import constant_nodes, freed_bytes, put_value, value_of
from evalmode.optimization.graph import arguments, tidy_graph
from evalmode.optimization.graph_pass import Pass, PassResult, Refusal, refusal_at

__all__ = ["PASS"]

aten = torch.ops.aten
_WEIGHTS = ("weight", "bias", "running_mean", "running_var", "params", "mat2", "weight_ih", "weight_hh")
_PRODUCTS = {aten.matmul.default: "other", aten.addmm.default: "self", aten.bmm.default: "mat2"}
_GROWTH = 2  # times the memory of what a weight is computed from
_SMALL = 1 << 16  # bytes


def _rewrite(module: fx.GraphModule, inputs: Sequence[Tensor]) -> PassResult:
    changed = 0
    refused: list[Refusal] = []
    constant = constant_nodes(module)
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node in constant:
            continue
        for weight in _weights(node):
            if weight not in constant or weight.op != "call_function" or not weight.users:
                continue
            value = value_of(module, weight)
            if not isinstance(value, Tensor):
                continue
            size, freed = value.numel() * value.element_size(), freed_bytes(module, weight)
            views = _is_view_of_constant(module, weight, value)
            if not views and size > max(_SMALL, _GROWTH * freed):
                refused.append(
                    refusal_at(node, f"its weight takes {size / 1e6:.1f} MB, what makes it {freed / 1e6:.1f}")
                )
                continue
            put_value(module, weight, value)
            changed += 1
    tidy_graph(module)
    return PassResult(changed, tuple(refused))


def _weights(node: fx.Node) -> list[fx.Node]:
    """What a layer multiplies with and adds: its arguments of that name, lists of them included."""
    given = arguments(node)
    target: Any = node.target
    names = [name for name in (*_WEIGHTS, _PRODUCTS.get(target)) if name in given]
    found: list[fx.Node] = []
    for name in names:
        value: Any = given[str(name)]
        found += [item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, fx.Node)]
    return found


def _is_view_of_constant(module: fx.GraphModule, weight: fx.Node, value: Tensor) -> bool:
    """Whether the value needs no memory of its own: it is another order of one constant's values."""
    storage = value.untyped_storage()
    held = {
        tensor.untyped_storage()._cdata  # noqa: SLF001 - its identity
        for tensor in [*module.parameters(), *module.buffers()]
    }
    return storage._cdata in held and value.numel() * value.element_size() <= storage.nbytes()  # noqa: SLF001 - as above


def _rewrite_modules(module: nn.Module, inputs: Sequence[Tensor]) -> PassResult:
    changed = 0
    refused: list[Refusal] = []
    found = discover(module)
    paths = found.paths()
    for part in found.modules:
        if not parametrize.is_parametrized(part):
            continue
        held: Any = part.parametrizations
        for name in list(held):
            path = f"{paths.get(id(part), '')}.{name}".removeprefix("model.").removeprefix(".")
            with torch.no_grad():
                first, second = getattr(part, name).detach().clone(), getattr(part, name)
            if not same_bits(first, second):
                refused.append(Refusal(path, "it has another value at each evaluation"))
                continue
            _detach(part, name)
            parametrize.remove_parametrizations(part, name)
            for own in (part._parameters, part._buffers, part.__dict__):  # noqa: SLF001 - torch picks one of them
                own.pop(name, None)
            part.register_parameter(name, nn.Parameter(first, requires_grad=False))
            changed += 1
    return PassResult(changed, tuple(refused))


def _detach(part: Any, name: str) -> None:
    """Give the module a class and parametrization of its own.

    Taking a parametrization away writes into its tensors, and takes the weight's name off the class, which a copy of a
    module shares with the model that it was copied from.
    """
    kind = type(part)
    own = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")}
    part.__class__ = type(kind.__name__, kind.__bases__, own)
    part.parametrizations[name] = copy.deepcopy(part.parametrizations[name])


PASS = Pass("bake-parametrizations", _rewrite, _rewrite_modules)
