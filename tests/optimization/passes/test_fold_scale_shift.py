from __future__ import annotations

import operator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

NAME = "fold-scale-shift"
few = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
OPERATIONS = {
    "x * c": lambda x, c: x * c,
    "c * x": lambda x, c: c * x,
    "x / c": lambda x, c: x / c,
    "x + c": lambda x, c: x + c,
    "c - x": lambda x, c: c - x,
    "x - c": lambda x, c: x - c,
    "alpha": lambda x, c: torch.add(x, c, alpha=3),
    "rsub": lambda x, c: torch.rsub(x, c, alpha=2),
    "-x": lambda x, c: -x,
}


class Chain(nn.Module):
    """Operations with constants before and after a layer; a constant is a number or has one value a channel."""

    def __init__(self, layer, before, after, spatial, generator) -> None:
        super().__init__()
        self.layer = layer
        self.before, self.after = before, after
        for side, steps, channels in (("before", before, layer_inputs(layer)), ("after", after, layer_outputs(layer))):
            for number, (_, wide) in enumerate(steps):
                values = torch.rand(channels if wide else 1, generator=generator) + 0.5
                shape = (-1,) + (1,) * spatial if not isinstance(layer, nn.Linear) else (-1,)
                self.register_buffer(f"{side}{number}", values.reshape(shape if wide else ()))

    def forward(self, x):
        x = x.tanh()
        for number, (name, _) in enumerate(self.before):
            x = OPERATIONS[name](x, getattr(self, f"before{number}"))
        x = self.layer(x)
        for number, (name, _) in enumerate(self.after):
            x = OPERATIONS[name](x, getattr(self, f"after{number}"))
        return x.sigmoid()


def layer_inputs(layer):
    return getattr(layer, "in_channels", None) or getattr(layer, "in_features", None) or layer.num_features


def layer_outputs(layer):
    return getattr(layer, "out_channels", None) or getattr(layer, "out_features", None) or layer.num_features


steps = st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.booleans()), max_size=3)


@few
@given(steps, steps, st.sampled_from(["convolution", "transposed", "linear", "norm"]), st.integers(0, 2**20))
def test_chains_on_both_sides_of_a_layer_vanish(rewrite, rounding_alone, randomized, before, after, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    layer, spatial = {
        "convolution": (nn.Conv2d(4, 6, 3, groups=2), 2),
        "transposed": (nn.ConvTranspose1d(4, 6, 1, groups=2), 1),
        "linear": (nn.Linear(4, 5), 0),
        "norm": (nn.BatchNorm2d(4), 2),
    }[kind]
    x = torch.randn(3, 4, *(5,) * spatial, generator=generator)
    model = randomized(Chain(layer, before, after, spatial, generator), generator)
    done = rewrite(NAME, model, x)
    assert done.result.refused == ()
    assert len(done.operators) == 3
    assert done.result.changed >= bool(before or after)
    rounding_alone(done)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        query = self.query(x).view(*x.shape[:2], 2, 4).transpose(1, 2) / 2.0
        key = self.key(x).unflatten(-1, (2, 4)).permute(0, 2, 3, 1)
        return query @ key


def test_a_number_passes_through_views(rewrite, rounding_alone):
    done = rewrite(NAME, Attention(), torch.randn(2, 3, 8))
    assert done.result.changed == 1
    assert not any("div" in name for name in done.operators)
    rounding_alone(done)


class Written(nn.Module):
    def __init__(self, forward, **parts) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self._forward(self, x)


@pytest.mark.parametrize(
    ("forward", "parts", "words"),
    [
        (lambda m, x: m.layer(x.tanh() + m.c), {"layer": nn.Conv2d(3, 4, 3, padding=1)}, "zero padding"),
        (lambda m, x: m.layer(x.tanh() + 1.0), {"layer": nn.ConvTranspose2d(3, 4, 2)}, "borders"),
        (lambda m, x: (y := m.layer(x)) * 2 + y, {"layer": nn.Conv2d(3, 4, 3)}, "also used elsewhere"),
        (lambda m, x: m.layer(x) * 2 + m.layer(x + x), {"layer": nn.Conv2d(3, 4, 3)}, "used 2 times"),
        (lambda m, x: m.layer(x) * float("inf"), {"layer": nn.Conv2d(3, 4, 3)}, "NaN or infinite"),
        (lambda m, x: m.layer(x) * 1e38 * 1e3, {"layer": nn.Conv2d(3, 4, 3)}, "would overflow"),
        (lambda m, x: x * 1e30 * 1e30, {}, "on purpose"),
        (lambda m, x: (x + 12582912.0) - 12582912.0, {}, "a way of rounding"),
    ],
)
def test_what_would_be_wrong_is_refused(rewrite, forward, parts, words):
    torch.manual_seed(0)
    model = Written(forward, c=nn.Parameter(torch.tensor([1.0, -2.0, 3.0]).reshape(3, 1, 1)), **parts)
    done = rewrite(NAME, model, torch.randn(2, 3, 6, 6))
    assert words in done.reasons
    assert torch.equal(done.got.isfinite(), done.expected.isfinite())
    finite = done.expected.isfinite()
    # What is finite after 1e41 were sums near 0, of which rounding is a larger part.
    rtol = 1e-5 if bool(finite.all()) else 1e-2
    assert torch.allclose(done.got[finite], done.expected[finite], rtol=rtol, atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [torch.rand(6, 6), torch.rand(6), torch.rand(2, 1, 1, 1), torch.ones(4, 1, 1, dtype=torch.float64)],
    ids=["every position", "a row", "a sample", "another dtype"],
)
def test_what_is_no_scale_by_channel_stays(rewrite, rounding_alone, other):
    model = Written(lambda m, x: m.layer(x) * m.other, layer=nn.Conv2d(3, 4, 3, padding=1))
    model.register_buffer("other", other)
    done = rewrite(NAME, model, torch.randn(2, 3, 6, 6))
    assert done.result.changed == 0
    assert done.error <= 1e-5


def test_numbers_on_integers_are_let_be(rewrite):
    done = rewrite(NAME, Written(lambda m, x: x * 2 * 3 + 1 + 1), torch.arange(6))
    assert done.result.changed == 0
    assert done.got.tolist() == done.expected.tolist()


@pytest.mark.parametrize("operation", [operator.mul, operator.add])
def test_of_several_scales_or_shifts_one_is_left(rewrite, rounding_alone, operation):
    model = Written(
        lambda m, x: operation(operation(x, m.c), 3.0).tanh(), c=nn.Parameter(torch.tensor([0.5, 2.0, 3.0]))
    )
    done = rewrite(NAME, model, torch.randn(4, 3))
    assert done.result.changed == 1
    assert len(done.operators) == 2
    rounding_alone(done)
