"""What a plan answers belongs to the caller: what is done to it reaches no model, no input and no other answer."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import Tensor, nn

import evalmode
from evalmode.backends import quiet as quiet_module
from evalmode.backends.catalog import backend_named
from evalmode.backends.quiet import quiet
from evalmode.observe.tree import same_bits
from evalmode.optimization.probes import probe_samples
from evalmode.optimization.tracing import quiet_torch
from evalmode.predictor.plan import IntegerRange


class Constants(nn.Module):
    """Gives a folded constant, its own buffer, its input, and a value that is computed."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, wide)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("anchors", torch.arange(12.0).reshape(3, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.linear(x), self.scale.exp(), self.anchors, x.float()


@pytest.mark.parametrize("back_end", ["eager", "inductor", "aot_inductor", "onnxruntime", "openvino"])
@pytest.mark.parametrize("wide", [3, 20_000])
def test_answers_are_the_callers_own(back_end: str, wide: int) -> None:
    if backend_named(back_end).missing() is not None:
        pytest.skip(f"{back_end} is not installed")
    torch.manual_seed(0)
    model, x = Constants(wide).eval(), torch.randn(8, 4)
    fast = evalmode.optimize(model, x, backends=[back_end], budget_s=30, memory=None)
    given = x.clone()
    expected = [output.clone() for output in fast(given)]
    for _ in range(3):
        found = fast(given)
        assert all(map(same_bits, found, expected))
        for output in found:
            output.fill_(-7.0)
        assert same_bits(given, x)
    assert same_bits(model.anchors, torch.arange(12.0).reshape(3, 4))
    fast.close()


def test_a_sparse_buffer_is_no_obstacle() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("adjacency", torch.eye(5).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + self.adjacency.to_dense().sum() / 5

    model, x = Graph().eval(), torch.randn(6, 4)
    fast = evalmode.optimize(model, x, backends=["eager"], budget_s=5)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))


def test_two_threads_that_are_quiet_leave_nothing_changed() -> None:
    import sys

    before = sys.stdout, sys.stderr, list(warnings.filters)
    inside, go_on = threading.Event(), threading.Event()

    def first() -> None:
        with quiet():
            inside.set()
            go_on.wait(20)

    def second() -> None:
        with quiet_torch():
            pass

    one, other = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    assert inside.wait(20)
    other.start()
    other.join(0.2)
    go_on.set()
    for thread in (one, other):
        thread.join(20)
    assert (sys.stdout, sys.stderr, list(warnings.filters)) == before
    with quiet(), quiet():  # within itself it does not wait
        assert quiet_module is not None


def test_inputs_of_no_sample_reach_both_ends_of_what_is_taken() -> None:
    taken = [None, IntegerRange(-(2**24), 2**24)]
    parts = probe_samples((torch.randn(4, 3), torch.tensor(3)), (0, None), ("x", "step"), taken=taken)
    steps = {int(part.inputs[1]) for part in parts}
    assert {3, -(2**24), 2**24} <= steps
