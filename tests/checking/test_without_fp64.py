"""A model that cannot run in fp64 is judged where a difference is far beyond rounding, and undecided elsewhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import evalmode
from evalmode.checking.rounding import nudged

BATCH = torch.linspace(-1, 1, 96).reshape(6, 16)


@torch.library.custom_op("evalmode_tests::centred", mutates_args=())
def centred(x: torch.Tensor, share: float) -> torch.Tensor:
    if x.dtype != torch.float32:
        raise RuntimeError("expected scalar type Float")
    return x - share * x.mean(0).nan_to_num().sign()


class Centred(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.linear = nn.Linear(16, 4)
        self.share = share

    def forward(self, x):
        return centred(self.linear(x), self.share)


def verdict_of(model, batch=BATCH):
    report = evalmode.check(model.eval(), batch, clauses=["batch-independent"])
    return report.certificate.clauses[0], report.findings


@pytest.mark.filterwarnings("ignore:.*(deprecated|reduce_range)")
@pytest.mark.parametrize("seed", range(3))
def test_scales_taken_over_the_batch_are_a_dependence(seed):
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    model = torch.ao.quantization.quantize_dynamic(layers, {nn.Linear})
    other = BATCH.clone()
    other[1:] *= 100
    assert float((model(BATCH)[0] - model(other)[0]).abs().max()) > 1e-2  # the oracle
    result, findings = verdict_of(model)
    assert result.verdict.value == "broken"
    assert [(found.code, found.place.module) for found in findings] == [("EM171", "0")]
    assert "fp64" not in findings[0].seen
    assert "static" in findings[0].fix


def test_an_operator_without_fp64_is_named_where_nothing_can_be_said():
    torch.manual_seed(0)
    large, findings = verdict_of(Centred(0.5))
    assert large.verdict.value == "broken"
    assert [found.code for found in findings] == ["EM171"]
    small, findings = verdict_of(Centred(1e-6))
    assert small.verdict.value == "undecided"
    assert "evalmode_tests.centred" in small.evidence


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_nudging_moves_by_one_unit_in_the_last_place(values):
    tensor = torch.tensor(values)
    moved = (nudged(tensor).double() - tensor.double()).abs()
    assert bool((moved <= 2 * torch.finfo(torch.float32).eps * tensor.double().abs() + 1e-44).all())
