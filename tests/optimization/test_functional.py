"""Writes are taken out of a graph without changing what it answers, or the graph is said to write."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evalmode.observe.tree import same_bits
from evalmode.optimization.functional import functional_module
from evalmode.optimization.graph import writing_nodes
from evalmode.optimization.tracing import exported_graph


class Net(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.function(self, x)


def added_to(m, x):
    y = m.layer(x)
    z = y * 2
    y += z
    return y + z


def read_before_and_after(m, x):
    y = m.layer(x)
    early = y.sum((2, 3))
    y.mul_(3)
    return early, y.sum((2, 3))


def through_a_view(m, x):
    y = m.layer(x)
    view = y.view(y.shape[0], -1)
    view.add_(1)
    return y * 2


def view_read_later(m, x):
    y = m.layer(x)
    view = y.flatten(1)
    y.relu_()
    return view.sum(1)


def view_that_is_its_own(m, x):
    return F.dropout(m.layer(x).contiguous(), 0.5, training=False).relu_()


def one_row(m, x):
    y = m.layer(x)
    y[:, 0] = 5.0
    return y.relu_()


def written_twice(m, x):
    y = m.layer(x).relu_()
    y.add_(1)
    y.clamp_(max=1.5)
    return y


def of_itself(m, x):
    y = m.layer(x)
    y.mul_(y.sum((2, 3), keepdim=True))
    return y


def norm_and_activation(m, x):
    return F.silu(m.norm(m.layer(x)), inplace=True)


def masked(m, x):
    y = m.layer(x)
    return y.masked_fill_(y > 0, -1.0)


CASES = [
    added_to,
    read_before_and_after,
    through_a_view,
    view_read_later,
    view_that_is_its_own,
    one_row,
    written_twice,
    of_itself,
    norm_and_activation,
    masked,
]


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_writes_leave_and_results_keep_their_bits(function):
    torch.manual_seed(0)
    model, x = Net(function).eval(), torch.randn(2, 3, 4, 4)
    graph, problem = functional_module(exported_graph(model, [x], [0], dynamic=False, variadic=False))
    assert problem == ""
    assert writing_nodes(graph) == []
    with torch.no_grad():
        expected, got = model(x), graph(x)
    expected, got = (each if isinstance(each, tuple) else (each,) for each in (expected, got))
    assert all(same_bits(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("function", [norm_and_activation, view_that_is_its_own, written_twice, added_to])
def test_local_writes_keep_the_operators_that_passes_know(function):
    model, x = Net(function).eval(), torch.randn(2, 3, 4, 4)
    graph, _ = functional_module(exported_graph(model, [x], [0], dynamic=False, variadic=False))
    names = [str(node.target) for node in graph.graph.nodes]
    assert "aten.clone.default" not in names
    assert not any("native_batch_norm" in name for name in names)


def test_batch_norm_is_batch_norm_again_after_torch_took_the_writes_out():
    def both(m, x):
        y = m.norm(m.layer(x))
        y[:, 0] = 5.0
        return y

    model, x = Net(both).eval(), torch.randn(2, 3, 4, 4)
    graph, problem = functional_module(exported_graph(model, [x], [0], dynamic=False, variadic=False))
    assert problem == ""
    assert any(node.target is torch.ops.aten.batch_norm.default for node in graph.graph.nodes)
    with torch.no_grad():
        assert same_bits(graph(x)[0] if isinstance(graph(x), tuple) else graph(x), model(x))
