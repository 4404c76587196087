"""Graphs of small models, and the only oracle that passes have: the same model in fp64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from evalmode.observe.tree import same_bits
from evalmode.optimization.catalog import passes_named
from evalmode.optimization.functional import functional_module
from evalmode.optimization.graph_pass import PassResult
from evalmode.optimization.tracing import Stopped, exported_graph


@dataclass
class Rewritten:
    graph: fx.GraphModule
    result: PassResult
    expected: Tensor
    got: Tensor
    plain_error: float
    error: float

    @property
    def operators(self) -> list[str]:
        return [str(node.target) for node in self.graph.graph.nodes if node.op == "call_function"]

    @property
    def reasons(self) -> str:
        return "; ".join(map(str, self.result.refused))


def gap(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().nan_to_num().max()) if one.numel() else 0.0


def rewritten_by(name: str, model: nn.Module, *inputs: Tensor) -> Rewritten:
    """The model's graph after one pass, with its error and plain fp32's, both against fp64."""
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    exported = exported_graph(model, inputs, [0] * len(inputs), dynamic=False, variadic=False)
    if isinstance(exported, Stopped):
        pytest.fail(str(exported))
    graph, problem = functional_module(exported)
    assert problem == ""
    (one,) = passes_named([name])
    result = one.apply(graph, inputs)
    with torch.no_grad():
        wide = copy.deepcopy(model).double()
        expected = wide(*(x.double() if x.is_floating_point() else x for x in inputs))
        plain = model(*inputs)
        got = graph(*inputs)
    got, plain, expected = (each if isinstance(each, Tensor) else each[0] for each in (got, plain, expected))
    assert got.shape == plain.shape
    assert got.dtype == plain.dtype
    for key, value in model.state_dict().items():
        assert same_bits(value, before[key]), f"the pass wrote into {key}"
    return Rewritten(graph, result, plain, got, gap(plain, expected), gap(got, expected))


def assert_rounding_alone(done: Rewritten) -> None:
    """The rewritten graph may be off by a small multiple of what plain fp32 is off, or of fp32's own grain."""
    scale = float(done.expected.double().abs().nan_to_num(posinf=0, neginf=0).max()) if done.expected.numel() else 0.0
    grain = torch.finfo(done.expected.dtype).eps
    assert done.error <= 8 * done.plain_error + 32 * grain * scale, (done.error, done.plain_error, scale)


def with_random_statistics(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Batch norms with statistics, weights and biases that differ from those of a new layer."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.05)
                if module.weight is not None:
                    module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
                    module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def rewrite() -> Callable[..., Rewritten]:
    return rewritten_by


@pytest.fixture(scope="session")
def rounding_alone() -> Callable[[Any], None]:
    return assert_rounding_alone


@pytest.fixture(scope="session")
def randomized() -> Callable[[nn.Module, torch.Generator], nn.Module]:
    return with_random_statistics
