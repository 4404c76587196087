"""Where a dependence on the batch is put: a decision over the batch, a reduction before what it spreads by."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import evalmode


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)


class UntilAllConverge(Layer):
    def forward(self, x):
        z = torch.zeros_like(x)
        for _ in range(50):
            following = torch.tanh(0.6 * self.linear(z) + x)
            if (following - z).abs().max() < 1e-2:  # planted
                break
            z = following
        return z


class IfAny(Layer):
    def forward(self, x):
        large = x[..., 0] > 2.0
        return x * 2 if large.any() else x  # planted


class DecidedEarly(Layer):
    def forward(self, x):
        large = bool(x.amax() > 2.5)  # planted
        y = self.linear(x).relu()
        y = self.linear(y)
        if large:
            y = self.linear(y)
        return y


class CountedTurns(Layer):
    def forward(self, x):
        turns = int(x.abs().max().ceil())  # planted
        for _ in range(turns):
            x = torch.tanh(self.linear(x))
        return x


class DecidedForEach(Layer):
    def forward(self, x):
        y = torch.stack([self.linear(row) if row.sum() > 0 else row for row in x])
        return y - y.mean((0, 1))  # planted


class IdleGuard(Layer):
    def forward(self, x):
        if x.amax() > 2.0:
            x = x.clamp(max=1e9)
        mean = x.mean(0)  # planted
        return x - mean


class DynamicScale(Layer):
    def forward(self, x):
        scale = x.abs().max() / 127  # planted
        return (x / scale).round().clamp(-128, 127) * scale


class Deviation(Layer):
    def forward(self, x):
        deviation = x.std(0, unbiased=False).mean()  # planted
        return torch.cat([x[..., :15], deviation.expand(*x.shape[:2], 1)], -1)


class DroppedTokens(Layer):
    def forward(self, x):
        flat = x.reshape(-1, 16)
        kept = flat.norm(dim=-1).topk(len(flat) // 2).indices  # planted
        out = torch.zeros_like(flat)
        out[kept] = flat[kept]
        return out.view_as(x)


PLANTED = (
    UntilAllConverge,
    IfAny,
    DecidedEarly,
    CountedTurns,
    DecidedForEach,
    IdleGuard,
    DynamicScale,
    Deviation,
    DroppedTokens,
)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("build", PLANTED)
def test_the_line_that_mixes_the_samples_is_blamed(build, deep):
    torch.manual_seed(1)
    planted = build()
    model = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.ReLU(), planted), nn.Linear(16, 3)) if deep else planted
    (found, *_) = evalmode.check(model.eval(), torch.randn(6, 9, 16), clauses=["batch-independent"]).findings
    assert found.code == "EM171"
    assert found.place.module == ("1.1" if deep else "")
    assert "# planted" in found.place.source


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixing = nn.MultiheadAttention(16, 4)

    def forward(self, x):
        return self.mixing(x, x, x)[0]


class Recurrence(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixing = nn.LSTM(16, 16)

    def forward(self, x):
        return self.mixing(x)[0]


@pytest.mark.parametrize("build", [Attention, Recurrence])
def test_what_takes_the_first_axis_for_positions_is_told_so(build):
    (found,) = evalmode.check(build().eval(), torch.randn(6, 9, 16), clauses=["batch-independent"]).findings
    assert (found.code, found.place.module) == ("EM171", "mixing")
    assert found.fix.startswith("batch_first=True")
