from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from evalmode.checking.runner import check

BATCH = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


@dataclass
class Totals:
    calls: int = 0


class Writer(nn.Module):
    """Does one thing to itself in each forward pass."""

    def __init__(self, act: Callable[[Any, torch.Tensor], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("table", torch.zeros(4), persistent=False)
        self.register_buffer("count", torch.zeros(()))
        self.totals = Totals()
        self.kept: dict[Any, Any] = {}
        self.memo: Any = None
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.act(self, x)
        return self.layer(x)


def codes(act: Callable[[Any, torch.Tensor], object]) -> list[str]:
    report = check(nn.Sequential(Writer(act)).eval(), BATCH)
    assert all(finding.place.module in ("0", "0.norm") for finding in report.findings)
    assert all(finding.place.file == __file__ for finding in report.findings)
    return [finding.code for finding in report.findings]


@pytest.mark.parametrize(
    ("code", "act"),
    [
        ("EM151", lambda self, x: self.norm.running_var.data.mul_(1.1)),
        ("EM151", lambda self, x: self.norm.num_batches_tracked.add_(1)),
        ("EM152", lambda self, x: self.count.fill_(1)),
        ("EM152", lambda self, x: setattr(self, "count", self.count + 1)),
        ("EM152", lambda self, x: self.layer.weight.data.clamp_(-0.1, 0.1)),
        ("EM152", lambda self, x: self.count.numpy().fill(3)),
        ("EM152", lambda self, x: self.table.copy_(x[0])),
        ("EM153", lambda self, x: setattr(self, "memo", x.mean())),
        ("EM153", lambda self, x: self.kept.update(states=[x * 2])),
        ("EM154", lambda self, x: setattr(self.totals, "calls", self.totals.calls + 1)),
        ("EM154", lambda self, x: setattr(self, "memo", float(x.sum()))),
        ("EM154", lambda self, x: self.kept.update({len(self.kept): 1})),
        ("EM154", lambda self, x: self.register_forward_pre_hook(lambda *_: None)),
    ],
)
def test_a_change_has_its_code_and_its_line(code: str, act: Callable[[Any, torch.Tensor], object]) -> None:
    assert codes(act) == [code]


@pytest.mark.parametrize(
    "act",
    [
        lambda self, x: setattr(self, "memo", tuple(x.shape)),
        lambda self, x: setattr(self, "memo", torch.arange(x.shape[1])),
        lambda self, x: self.kept.setdefault(x.shape[1], torch.ones(x.shape[1], 1)),
        lambda self, x: self.table.copy_(torch.arange(4.0)),
        lambda self, x: setattr(self, "table", torch.arange(4.0)),
        lambda self, x: setattr(self, "count", self.count.clone()),
        lambda self, x: self.count.add_(0),
        lambda self, x: setattr(self, "memo", None),
    ],
)
def test_what_depends_on_the_shape_alone_is_passed_over(act: Callable[[Any, torch.Tensor], object]) -> None:
    assert codes(act) == []


def test_one_module_that_writes_two_buffers_is_one_finding() -> None:
    def both(self: Any, x: torch.Tensor) -> None:
        self.count += 1
        self.table += 1

    report = check(Writer(both).eval(), BATCH)
    (finding,) = report.findings
    assert all(words in finding.seen for words in ("count moved by up to 1", "table moved by up to 1", "also at line"))


def test_the_state_that_spoils_the_next_pass_is_the_one_cause() -> None:
    class Warming(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x * self.calls

    report = check(Warming().eval(), BATCH)
    assert [finding.code for finding in report.findings] == ["EM154"]
    verdicts = {result.clause: result for result in report.certificate.clauses}
    assert verdicts["deterministic"].evidence == "through the model, see EM154"
    alone = check(Warming().eval(), BATCH, clauses=["deterministic"])
    assert [finding.code for finding in alone.findings] == ["EM181"]


def test_the_evidence_counts_tensors() -> None:
    (result,) = check(nn.Linear(4, 2).eval(), BATCH, clauses=["no-state-change"]).certificate.clauses
    assert result.evidence == "2 tensors, same bits afterwards"
