from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evalmode.checking.runner import check
from evalmode.finding import Severity

BATCH = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Flagged(nn.Module):
    def __init__(self, name: str, value: object, *, matters: bool = True) -> None:
        super().__init__()
        setattr(self, name, value)
        self.name, self.on, self.matters = name, value, matters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        on = self.matters and getattr(self, self.name) == self.on
        return F.dropout(x, 0.5, training=on)


class Unheard(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sampling = True
        self.evaluations = 0

    def eval(self) -> Unheard:
        self.sampling = False
        self.evaluations += 1
        return super().eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x) if self.sampling else x


@pytest.mark.parametrize(
    ("name", "value"), [("is_training", True), ("train_mode", True), ("_mode", "train"), ("dropout_on", True)]
)
def test_a_flag_that_stayed_on_is_the_one_finding_and_is_left_as_it_was(name: str, value: object) -> None:
    model: Any = nn.Sequential(Flagged(name, value)).eval()
    (finding,) = check(model, BATCH).findings
    assert (finding.code, finding.place.module) == ("EM104", "0")
    assert finding.place.source == "return F.dropout(x, 0.5, training=on)"
    assert f"{name} is {value!r}" in finding.seen
    assert getattr(model[0], name) == value


@pytest.mark.parametrize(
    ("name", "value", "matters"),
    [("is_training", True, False), ("trainable", True, False), ("mode", "train", False), ("use_mean", True, False)],
)
def test_a_flag_that_changes_nothing_is_none(name: str, value: object, matters: bool) -> None:
    assert check(nn.Sequential(Flagged(name, value, matters=matters)).eval(), BATCH).findings == ()


def test_a_flag_by_another_name_shows_in_what_it_does() -> None:
    report = check(nn.Sequential(Flagged("perturb", True)).eval(), BATCH)
    assert [finding.code for finding in report.findings] == ["EM122"]


def test_an_eval_that_no_parent_calls_is_found_by_calling_it() -> None:
    model: Any = nn.Sequential(Unheard()).eval()
    (finding,) = check(model, BATCH).findings
    assert (finding.code, finding.place.module) == ("EM104", "0")
    assert "sampling is True, in evaluation False" in finding.seen
    assert (model[0].sampling, model[0].evaluations) == (True, 0)
    model[0].eval()
    assert check(model, BATCH).findings == ()


def test_an_intended_flag_is_allowed_by_module_path() -> None:
    report = check(nn.Sequential(Flagged("is_training", True)).eval(), BATCH, allow=["0"])
    assert [finding.severity for finding in report.findings] == [Severity.ALLOWED]
    assert report.ok
