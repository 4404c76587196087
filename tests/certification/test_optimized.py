"""Certifying with a plan: the clause `faithful`, the table of plans, and figures by the plan that runs."""

from pathlib import Path

import pytest
import torch
from torch import nn

import evalmode
from evalmode.certificate import Certificate
from evalmode.certification import certified
from evalmode.certification.optimized import agreement, budget_of
from evalmode.clause import Verdict
from evalmode.errors import UsageError
from evalmode.task import Task


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3))


def data(samples: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 6, generator=generator), torch.arange(samples) % 3


def verdict(certificate: Certificate, clause: str) -> Verdict | None:
    return next((result.verdict for result in certificate.clauses if result.clause == clause), None)


def test_a_plan_is_named_and_evaluated(tmp_path: Path) -> None:
    certificate, fast = certified(Task(model=model(), test_data=data()), budget_s=12)
    assert fast is not None and certificate.optimization is not None and certificate.evaluation is not None
    assert verdict(certificate, "faithful") is Verdict.KEPT
    assert certificate.optimization.plans[0].outcome == "plain"
    assert certificate.evaluation.plan == str(fast.plan)
    assert certificate.evaluation.same_answers == 40
    plain = evalmode.certify(model(), data(), budget_s=0)
    assert plain.evaluation is not None and plain.evaluation.plan == ""
    assert plain.evaluation.metrics[0].value == certificate.evaluation.metrics[0].value
    assert verdict(plain, "faithful") is None
    assert Certificate.load(certificate.save(tmp_path / "certificate.json")).optimization == certificate.optimization


def test_no_plan_is_sought_for_a_model_that_depends_on_the_batch() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x - x.mean(0))

    certificate, fast = certified(Task(model=Centred(), test_data=data()), budget_s=5)
    assert fast is None
    result = next(result for result in certificate.clauses if result.clause == "faithful")
    assert result.verdict is Verdict.NOT_TESTED
    assert "batch-independent is broken" in result.evidence


def test_chosen_clauses_leave_the_search_out() -> None:
    certificate, fast = certified(Task(model=model(), test_data=data()), clauses=["finite"], budget_s=5)
    assert fast is None and certificate.optimization is None


def test_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVALMODE_BUDGET")
    assert budget_of(None) == 60
    monkeypatch.setenv("EVALMODE_BUDGET", "7.5")
    assert budget_of(None) == 7.5
    assert budget_of(0) == 0
    for wrong in ("soon", "-1", "inf", "nan"):
        monkeypatch.setenv("EVALMODE_BUDGET", wrong)
        with pytest.raises(UsageError, match="budget"):
            budget_of(None)


def test_agreement_counts_samples() -> None:
    assert agreement(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 5]])) == (1, 2)
    assert agreement(torch.tensor([0.5]), torch.tensor([0.5])) is None
    assert agreement(None, torch.tensor([1])) is None
