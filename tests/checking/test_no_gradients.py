"""The promise on backward() is tested by calling it: without the guard, the clause is broken."""

from __future__ import annotations

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
