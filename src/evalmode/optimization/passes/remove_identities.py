"""remove-identities: operators that give back the bits they were given are taken out.

What it does
------------
Takes out conversions to the dtype that a value has already, views and expansions to its own shape, copies into its own
memory order, slices of everything, detaching, products with 1, quotients by 1, and sums that cannot change a bit: with
0 of integers, with -0.0 or minus 0.0 of floating-point numbers.

Why it matters
--------------
Model code casts and reshapes to be safe. Each of these is a call, some are a copy, and all stand between layers that
could be folded into each other.

Example
-------
    import torch
    from torch import nn

    class Careful(nn.Module):
        def forward(self, x):
            return torch.relu(x.float().reshape(x.shape) * 1.0)

    model = Careful().eval()
    batch = torch.randn(3, 4)

Use instead
-----------
    import torch
    from torch import nn

    model = nn.ReLU().eval()
    batch = torch.randn(3, 4)

Fix and its safety
------------------
The results keep their bits. It is refused where an output would then share memory with an input, with a weight or with
another output. `x + 0.0` stays: it makes 0.0 of -0.0.

Limits
------
Two permutations that undo each other are left to the back ends, which do see them.

Source
------
IEEE 754-2019, section 6.3 (the sign of a sum of zeros).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from evalmode.optimization.graph import (
    answers_with,
    arguments,
    constant_of,
    makes_new,
    meta_shape,
    same_shape,
    tidy_graph,
)
from evalmode.optimization.graph_pass import Pass, PassResult, Refusal, refusal_at

__all__ = ["PASS"]

aten = torch.ops.aten
_TO_COPY = aten._to_copy.default  # noqa: SLF001 - an operator's name
_RESHAPES = frozenset(
    {
        *(aten.view.default, aten.reshape.default, aten.flatten.using_ints),
        aten._unsafe_view.default,  # noqa: SLF001 - an operator's name
        *(aten.expand.default, aten.expand_as.default, aten.view_as.default, aten.reshape_as.default),
    }
)
_CONVERSIONS = frozenset(
    {
        *(aten.to.dtype, aten.to.device, aten.to.other, aten.to.dtype_layout),
        _TO_COPY,
        *(aten.type_as.default, aten.contiguous.default, aten.clone.default, aten.lift_fresh_copy.default),
    }
)
_COPIES = frozenset((aten.clone.default, _TO_COPY, aten.lift_fresh_copy.default))
_PLAIN = frozenset((aten.detach.default, aten.alias.default, aten.lift_fresh.default))
_SUMS = frozenset((aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar))
_PRODUCTS = frozenset((aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar))
_LAST = 2**62  # the end of a slice that has none


def _rewrite(module: fx.GraphModule, inputs: Sequence[Tensor]) -> PassResult:
    changed = 0
    refused: list[Refusal] = []
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        source = _given_back(module, node)
        if source is None:
            continue
        if _would_share(node, source) or (_copies(node) and not _is_computed(source)):
            refused.append(refusal_at(node, "an output would share memory with an input, a weight or another output"))
            continue
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
        changed += 1
    tidy_graph(module)
    return PassResult(changed, tuple(refused))


def _given_back(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The argument whose bits, shape and memory order the node gives back; None if it does anything."""
    source: Any = node.args[0]
    given: Any = arguments(node)
    if node.target in _PRODUCTS | _SUMS:
        return _neutral(module, node, given)
    if not _alike(source, node):
        return None
    if node.target in _PLAIN:
        return source  # type: ignore[no-any-return]
    if node.target in _RESHAPES:
        return source if same_shape(source, node) else None
    if node.target in _CONVERSIONS:
        return source if same_shape(source, node) and _same_order(source, node) else None
    if node.target is aten.permute.default:
        dims = len(meta_shape(source) or ())
        return source if [dim % dims for dim in given["dims"]] == list(range(dims)) else None
    if node.target is aten.transpose.int:
        dims = max(len(meta_shape(source) or ()), 1)
        return source if given["dim0"] % dims == given["dim1"] % dims else None
    if node.target is aten.slice.Tensor:
        whole = given["start"] in (None, 0) and given["step"] == 1
        return source if whole and (given["end"] is None or same_shape(source, node)) else None
    return None


def _neutral(module: fx.GraphModule, node: fx.Node, given: Any) -> fx.Node | None:
    """The other operand of a product with 1, or of a sum with what cannot change it."""
    if given.get("rounding_mode") is not None:
        return None
    product = node.target in _PRODUCTS
    division = node.target in (aten.div.Tensor, aten.div.Scalar)
    subtraction = node.target in (aten.sub.Tensor, aten.sub.Scalar)
    choices = [(given["self"], given["other"])]
    if not division and not subtraction and given.get("alpha", 1) == 1:
        choices.append((given["other"], given["self"]))
    for source, other in choices:
        if not isinstance(source, fx.Node) or not _alike(source, node) or not same_shape(source, node):
            continue
        value = _single_value(module, other)
        if value is None or isinstance(given.get("alpha", 1), fx.Node):
            continue
        if product and value == 1:
            return source
        if not product and _adds_nothing(source, -value if subtraction else value, given.get("alpha", 1)):
            return source
    return None


def _adds_nothing(source: fx.Node, value: float, alpha: float) -> bool:
    if value * alpha != 0:
        return False
    if not source.meta["val"].is_floating_point():
        return not source.meta["val"].is_complex()
    return math.copysign(1.0, value) * math.copysign(1.0, alpha) < 0  # x + -0.0 is x; -0.0 + 0.0 is 0.0


def _single_value(module: fx.GraphModule, other: object) -> float | None:
    """The one value of a number or a constant."""
    if isinstance(other, bool):
        return None
    if isinstance(other, int | float):
        # A difference with the integer 0 is one with 0.0, of either sign's bits the same as with a float.
        return float(other)
    constant = constant_of(module, other)
    if constant is None or constant.numel() == 0 or constant.numel() > 1 << 20 or constant.is_complex():
        return None
    values = constant.double().reshape(-1)
    first = values[0]
    same = bool((values == first).all()) and bool((values.signbit() == first.signbit()).all())
    return float(first) if same else None


def _alike(source: Any, node: fx.Node) -> bool:
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    return before.dtype == after.dtype and before.device.type == after.device.type and before.layout == after.layout


def _same_order(source: Any, node: fx.Node) -> bool:
    before, after = source.meta["val"], node.meta["val"]
    return [str(step) for step in before.stride()] == [str(step) for step in after.stride()]


def _copies(node: fx.Node) -> bool:
    return node.target in _COPIES or arguments(node).get("copy") is True


def _is_computed(node: Any) -> bool:
    """Whether a value has memory of its own: it is no view of an input or of a weight."""
    while node.op == "call_function" and not makes_new(node):
        if not node.args or not isinstance(node.args[0], fx.Node):
            return False
        node = node.args[0]
    return bool(node.op == "call_function")


def _would_share(node: fx.Node, source: fx.Node) -> bool:
    """Whether an output would come to lie in an input, in a constant, or in another output."""
    if not answers_with(node):
        return False
    root = source
    while root.op == "call_function" and not makes_new(root):
        if not root.args or not isinstance(root.args[0], fx.Node):
            return True
        root = root.args[0]
    return root.op in ("placeholder", "get_attr") or answers_with(root, but=node)


PASS = Pass("remove-identities", _rewrite)
