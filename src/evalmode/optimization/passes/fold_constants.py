"""fold-constants: what is computed from constants alone is computed once.

What it does
------------
Evaluates every part of the graph that reads no input (tables of positions, masks, ranges, sums of buffers) and keeps
its value, which has the bits that each call would have computed. Values are kept up to 1 MB each and 16 MB in all;
larger ones only if they need no more memory than the constants that they replace.

Why it matters
--------------
Such parts are many small calls, repeated for every batch.

Example
-------
    import torch
    from torch import nn

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 4)

        def forward(self, x):
            return x + self.table(torch.arange(x.shape[1]))

    model = Positions().eval()
    batch = torch.randn(3, 5, 4)

Use instead
-----------
    import torch
    from torch import nn

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("rows", torch.randn(5, 4))

        def forward(self, x):
            return x + self.rows

    model = Positions().eval()
    batch = torch.randn(3, 5, 4)

Fix and its safety
------------------
The results keep their bits on the machine that folds. It is refused where the value would take more memory (an expanded
mask, say), where random numbers are drawn, and where an output would share memory with the constant.

Limits
------
What depends on the number of samples is no constant.

Source
------
Aho, Lam, Sethi and Ullman, Compilers, section 8.5.4 (constant folding).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from evalmode.optimization.constants import constant_nodes, freed_bytes, put_value, value_of
from evalmode.optimization.graph import answers_with, tidy_graph
from evalmode.optimization.graph_pass import Pass, PassResult, Refusal, refusal_at

__all__ = ["PASS"]

_EACH = 1 << 20  # bytes
_ALL = 16 << 20


def _rewrite(module: fx.GraphModule, inputs: Sequence[Tensor]) -> PassResult:
    changed, spent = 0, 0
    refused: list[Refusal] = []
    constant = constant_nodes(module)
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node not in constant or all(user in constant for user in node.users):
            continue
        shown = node.meta.get("val")
        if not isinstance(shown, Tensor) or not all(isinstance(size, int) for size in shown.shape):
            continue
        if answers_with(node):
            refused.append(refusal_at(node, "an output would share memory with the constant"))
            continue
        size = shown.numel() * shown.element_size()
        more = size - freed_bytes(module, node)
        if more > 0 and (size > _EACH or spent + more > _ALL):
            refused.append(refusal_at(node, f"its value takes {size / 1e6:.1f} MB"))
            continue
        value = value_of(module, node)
        if not isinstance(value, Tensor):
            continue
        put_value(module, node, value)
        spent += max(more, 0)
        changed += 1
    tidy_graph(module)
    return PassResult(changed, tuple(refused))


PASS = Pass("fold-constants", _rewrite)
