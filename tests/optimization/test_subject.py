"""The programs of a model, by execution size and form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evalmode.backends.program import Program
from evalmode.observe.fingerprint import fingerprint
from evalmode.optimization.exporting import program_of
from evalmode.optimization.subject import Subject


class FixesItsBatch(nn.Module):
    """Code that makes the number of samples a constant: its graph holds for one size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.norm, self.drop = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Dropout()
        with torch.no_grad():
            self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]
            self.norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr,operator]

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.norm(self.convolution(x)))
        return torch.stack([y[i] for i in range(int(x.shape[0]))])


class OtherCodeForOne(nn.Module):
    """A graph that takes any size but one."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.convolution(x))
        return y + 1 if x.shape[0] == 1 else y


def operators(program: Program) -> set[str]:
    assert program.exported is not None, program.export_error
    return {str(node.target) for node in program.exported.graph.nodes if node.op == "call_function"}


def subject_of(model: nn.Module, batch: Tensor) -> Subject:
    return Subject(program_of(model, batch), (len(batch),), fingerprint(model))


@pytest.mark.parametrize("form", ["passes", "channels-last"])
@pytest.mark.parametrize("model", [FixesItsBatch(), OtherCodeForOne()], ids=lambda model: type(model).__name__)
def test_passes_are_applied_at_every_execution_size(model: nn.Module, form: str) -> None:
    subject = subject_of(model, torch.randn(4, 3, 8, 8))
    subject.rewrite(None)
    if form not in subject.forms:
        pytest.skip("this form changes nothing here")
    for size in (1, 2, 4, 5):
        program = subject.program_for(size, form)
        assert not {name for name in operators(program) if "norm" in name or "dropout" in name}
        x = torch.randn(size, 3, 8, 8)
        with torch.no_grad():
            (got,), expected = program.module(x), model.eval()(x)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert subject.program_for(size, form) is program
    assert any("norm" in name for name in operators(subject.program_for(2, "")))


def test_without_passes_nothing_is_rewritten() -> None:
    model = FixesItsBatch()
    subject = subject_of(model, torch.randn(4, 3, 8, 8))
    assert subject.rewrite(()) == []
    assert any("norm" in name for name in operators(subject.program_for(2, "")))
    assert subject.forms == {}


def test_a_pass_that_does_not_apply_at_a_size_leaves_the_graph_as_it_is() -> None:
    subject = subject_of(FixesItsBatch(), torch.randn(4, 3, 8, 8))
    subject.rewrite(["remove-dropout"])
    assert subject.passes["passes"] == ("remove-dropout",)
    names = operators(subject.program_for(2, "passes"))
    assert any("norm" in name for name in names)
    assert not any("dropout" in name for name in names)
