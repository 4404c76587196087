"""remove-dropout: dropout that is off is taken out.

What it does
------------
Takes out every dropout operator (by value, by channel, alpha dropout) whose training argument is off or whose
probability is 0.

Why it matters
--------------
Dropout in evaluation gives back its input, but it is a call for each layer, and it stands between layers that could be
folded into each other. Some back ends copy for it.

Example
-------
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU()).eval()
    batch = torch.randn(3, 4)

Use instead
-----------
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    batch = torch.randn(3, 4)

Fix and its safety
------------------
The results keep their bits. Dropout that is on is refused: it draws random numbers, and `evalmode check` names its
line.

Limits
------
Without a graph, only modules of torch's own dropout classes without hooks are taken out.

Source
------
https://docs.pytorch.org/docs/stable/generated/torch.nn.Dropout.html
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from evalmode.mode.discover import discover
from evalmode.optimization.graph import arguments, tidy_graph
from evalmode.optimization.graph_pass import Pass, PassResult, Refusal, refusal_at
from evalmode.optimization.neighbours import has_hooks, replace_child

__all__ = ["PASS"]

aten = torch.ops.aten
_OPERATORS = frozenset(
    {
        aten.dropout.default,
        aten.feature_dropout.default,
        aten.alpha_dropout.default,
        aten.feature_alpha_dropout.default,
        aten.native_dropout.default,
    }
)
_CLASSES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def _rewrite(module: fx.GraphModule, inputs: Sequence[Tensor]) -> PassResult:
    changed = 0
    refused: list[Refusal] = []
    for node in list(module.graph.nodes):
        if node.target not in _OPERATORS:
            continue
        given = arguments(node)
        if given["train"] is not False and given["p"] != 0:
            refused.append(refusal_at(node, f"it is on: train={given['train']}, p={given['p']}"))
            continue
        source = node.args[0]
        if node.target is aten.native_dropout.default:
            parts = list(node.users)
            if not all(part.target is operator.getitem and part.args[1] == 0 for part in parts):
                refused.append(refusal_at(node, "its mask is used"))
                continue
            for part in parts:
                part.replace_all_uses_with(source)
                module.graph.erase_node(part)
        else:
            node.replace_all_uses_with(source)
        module.graph.erase_node(node)
        changed += 1
    tidy_graph(module)
    return PassResult(changed, tuple(refused))


class _Passing(nn.Identity):
    """An identity that still answers for the dropout's attributes: models read `dropout.p`."""

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.p = getattr(dropout, "p", 0.0)
        self.inplace = getattr(dropout, "inplace", False)


def _rewrite_modules(module: nn.Module, inputs: Sequence[Tensor]) -> PassResult:
    changed = 0
    refused: list[Refusal] = []
    for holder in discover(module).modules:
        for name, child in list(holder.named_children()):
            if type(child) not in _CLASSES:
                continue
            if child.training:
                refused.append(Refusal(name, "it is on"))
            elif has_hooks(child):
                refused.append(Refusal(name, "it has hooks or a forward of its own"))
            else:
                replace_child(holder, name, _Passing(child))
                changed += 1
    return PassResult(changed, tuple(refused))


PASS = Pass("remove-dropout", _rewrite, _rewrite_modules)
