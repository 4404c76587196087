from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evalmode.checking.runner import check
from evalmode.finding import Finding

BATCH = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def found(model: nn.Module, batch: torch.Tensor = BATCH) -> list[Finding]:
    return list(check(model.eval(), batch, clauses=["running-statistics"]).findings)


def with_norm(change: Callable[[nn.BatchNorm1d], object]) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    change(model[1])  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda norm: norm.running_var[2].fill_(float("nan")), "running_var is NaN in 1 of 6"),
        (lambda norm: norm.running_mean[:2].fill_(float("inf")), "running_mean is Inf in 2 of 6"),
        (lambda norm: norm.running_var[5].fill_(-1e-6), "negative in 1 of 6 channels, min -1e-06"),
        (lambda norm: norm.running_var[0].zero_(), "running_var is 0 in 1 of 6"),
    ],
)
def test_unsound_statistics_are_named_in_numbers(change: Callable[[nn.BatchNorm1d], object], words: str) -> None:
    (finding,) = found(with_norm(change))
    assert (finding.code, finding.place.module) == ("EM141", "1")
    assert words in finding.seen


def test_layers_with_the_same_fault_are_one_finding() -> None:
    model = nn.Sequential(*(nn.BatchNorm1d(6) for _ in range(6)))
    for norm in model:
        norm.running_var.fill_(float("nan"))  # type: ignore[operator, union-attr]
    (finding,) = found(model)
    assert "5 more layers: 1, 2, 3 ..." in finding.seen


def dead_channel() -> nn.Module:
    model = with_norm(lambda norm: norm.running_var[0].zero_())
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0, 0  # type: ignore[index, operator]
    return model


def untrained() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False))


class Standardised(nn.Module):
    """Normalises its weights, not its inputs, as some convolutions do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.weight.reshape(1, 5, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight)


class SampleBySample(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([F.batch_norm(sample.flatten(1).T, None, None, training=True).sum(0) for sample in x])


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (dead_channel(), BATCH),
        (untrained(), 40 + BATCH),
        (Standardised(), IMAGES),
        (SampleBySample(), IMAGES),
        (nn.Sequential(nn.InstanceNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True)), IMAGES),
        (nn.Sequential(nn.GroupNorm(3, 3), nn.LayerNorm(8)), IMAGES),
    ],
)
def test_what_is_sound_has_no_finding(model: nn.Module, batch: torch.Tensor) -> None:
    assert found(model, batch) == []


class Functional(nn.Module):
    def __init__(self, *, used: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.used = used

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        twice = torch.cat([x, x])
        out = F.batch_norm(twice, self.norm.running_mean, self.norm.running_var, training=True)
        return out[: len(x)] if self.used else self.norm(x)


def test_one_line_that_uses_and_updates_statistics_is_one_finding() -> None:
    used = check(Functional(used=True).eval(), BATCH)
    assert [finding.code for finding in used.findings] == ["EM142"]
    assert not {"no-state-change", "batch-independent"} & {
        result.clause for result in used.certificate.clauses if result.verdict == "kept"
    }
    thrown_away = check(Functional(used=False).eval(), BATCH)
    assert [finding.code for finding in thrown_away.findings] == ["EM151"]


def test_the_evidence_counts_layers_and_says_how_far_the_batch_is() -> None:
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)).eval()
    (result,) = check(model, BATCH + 3, clauses=["running-statistics"]).certificate.clauses
    distance = float(((BATCH + 3).double().mean(0).abs() / (1 + 1e-5) ** 0.5).mean())
    assert result.measured["largest distance in sd"] == pytest.approx(distance)
    assert result.evidence == f"1 layer, within {distance:.2f} sd of the batch"
