"""What a pass is: a rewrite of a graph that keeps the function, and a list of what it left alone and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from evalmode.optimization.graph import where, writing_nodes

__all__ = ["Pass", "PassResult", "Refusal", "refusal_at"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A place where a pass looked as if it applied, and was left alone because it would have been wrong or worse.

    `where` is the module path in the model.
    """

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


@dataclass(frozen=True, slots=True)
class PassResult:
    """How many places a pass has changed, and which it refused."""

    changed: int = 0
    refused: tuple[Refusal, ...] = ()


GraphRewrite = Callable[[fx.GraphModule, Sequence[Tensor]], PassResult]
ModuleRewrite = Callable[[nn.Module, Sequence[Tensor]], PassResult]


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of the catalog.

    `apply` rewrites a graph of ATen operators in place. It never writes into a tensor that the graph was given:
    constants are replaced. `apply_to_modules` does, where it can, the same to a model that has no graph: it changes
    which modules the given one is made of, never their tensors. Both get example inputs. A pass with `layout` changes
    only the order of values in memory: it serves back ends that run torch's own kernels.

    A graph with an operator that writes into a constant, an input or a value with other names is left alone.
    """

    name: str
    rewrite: GraphRewrite
    apply_to_modules: ModuleRewrite | None = None
    layout: bool = False

    def apply(self, module: fx.GraphModule, inputs: Sequence[Tensor]) -> PassResult:
        """Rewrite the graph in place."""
        writing = writing_nodes(module)
        if writing:
            return PassResult(refused=(refusal_at(writing[0], "it writes into a value, so no node can be replaced"),))
        return self.rewrite(module, inputs)


def refusal_at(node: fx.Node, why: str) -> Refusal:
    """A refusal at the place that a node comes from."""
    return Refusal(where(node), why)
