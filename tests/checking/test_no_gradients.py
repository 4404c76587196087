"""The promise on backward() is tested by calling it: without the guard, the clause is broken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import evalmode
from evalmode.mode import session


def test_backward_is_really_called_inside(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    batch = torch.randn(8, 4)
    assert evalmode.check(model, batch, clauses=["no-gradients"]).ok
    monkeypatch.setattr(session, "guard_backward", lambda holder: None)
    report = evalmode.check(model, batch, clauses=["no-gradients"])
    assert [finding.code for finding in report.findings] == ["EM163"]
    assert all(parameter.grad is None for parameter in model.parameters())


class Saliency(nn.Module):
    """Needs what `backward()` gives, and leaves every `.grad` of its own as it was."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        with torch.enable_grad():
            own = x.detach().requires_grad_()
            self.linear(own).sum().backward()  # planted
        self.zero_grad()
        return x * own.grad.abs()


class TakenBack(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        with torch.enable_grad():
            y = self.linear(x)
            torch.autograd.backward(y.sum())  # planted
        self.zero_grad()
        return y.detach()


class Accumulating(TakenBack):
    def forward(self, x):
        with torch.enable_grad():
            y = self.linear(x)
            torch.autograd.backward(y.sum())  # planted
        return y.detach()


@pytest.mark.parametrize(("build", "code"), [(Saliency, "EM161"), (TakenBack, "EM161"), (Accumulating, "EM163")])
def test_backward_in_forward_is_one_finding_at_its_line(build, code):
    model = nn.Sequential(nn.Linear(4, 4), build()).eval()
    report = evalmode.check(model, torch.randn(6, 4))
    assert [(found.code, found.place.module) for found in report.findings] == [(code, "1")]
    assert "# planted" in report.findings[0].place.source
    assert {result.clause: result.verdict.value for result in report.certificate.clauses}["restores"] == "kept"
    assert all(parameter.grad is None for parameter in model.parameters())
