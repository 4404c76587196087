"""What one plain pass is seen to do, and how few passes a check needs."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest
import torch
from torch import nn

from evalmode.checking.runner import check
from evalmode.checking.subject import Subject

BATCH = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Doing(nn.Module):
    """A layer that does something beside."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros(()))
        self.own = random.Random(0)
        self.what = what

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.what(self)
        return self.layer(x)


def nothing(model: nn.Module) -> None:
    pass


def counted(model: Any) -> None:
    model.count += 1


def noted(model: Any) -> None:
    model.note = model.__dict__.get("note", 0) + 1


def drawn(model: nn.Module) -> None:
    torch.rand(1)


def drawn_by_python(model: nn.Module) -> None:
    random.random()


def drawn_by_its_own(model: Any) -> None:
    model.own.random()


def switched_on(model: nn.Module) -> None:
    torch.set_grad_enabled(True)


def with_gradient(model: Any) -> None:
    model.layer.weight.grad = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("what", "streams", "kinds"),
    [
        (nothing, (), set()),
        (counted, (), {"tensor"}),
        (noted, (), {"attribute"}),
        (drawn, ("torch",), set()),
        (drawn_by_python, ("python",), set()),
        (drawn_by_its_own, (), {"generator"}),
        (switched_on, (), set()),
        (with_gradient, (), {"gradient"}),
    ],
)
def test_a_first_pass_tells_what_moved_and_is_undone(what: Any, streams: tuple[str, ...], kinds: set[str]) -> None:
    model = Doing(what).eval()
    subject = Subject(model, BATCH)
    first = subject.first_pass()
    assert first.streams == streams
    assert {change.kind for change in first.changes} == kinds
    assert first.gradients_on is (what is switched_on)
    assert [own.name for own in first.generators] == (["own"] if what is drawn_by_its_own else [])
    assert torch.equal(first.outputs["output"], model.layer(BATCH))
    assert subject.first_pass() is first
    assert (float(model.count), "note" in model.__dict__, model.layer.weight.grad) == (0.0, False, None)
    assert model.own.getstate() == random.Random(0).getstate()
    assert torch.is_grad_enabled()


def kept_outside(model: Any) -> None:
    vars(sys).setdefault("kept by a model", []).append(model.layer.weight * 2)


@pytest.mark.parametrize("probes", ["fast", "default"])
def test_a_tensor_kept_outside_the_model_is_seen_in_the_watched_pass(probes: Any) -> None:
    try:
        assert Subject(Doing(kept_outside).eval(), BATCH).observation().keeps_tensors
        assert not Subject(Doing(nothing).eval(), BATCH).observation().keeps_tensors
        report = check(Doing(kept_outside).eval(), BATCH, clauses=["no-gradients"], probes=probes)
        assert [finding.code for finding in report.findings] == ["EM164"]
    finally:
        vars(sys).pop("kept by a model")


@pytest.mark.parametrize(("probes", "most"), [("fast", 14), ("default", 45)])
def test_clauses_share_their_passes(probes: Any, most: int) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    report = check(model, BATCH, probes=probes)
    assert report.ok
    assert 0 < report.certificate.forward_passes <= most
