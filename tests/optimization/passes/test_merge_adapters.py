from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

NAME = "merge-adapters"
few = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Adapted(nn.Module):
    """`layer(x) + scale * up(down(x))`, the way adapters are written."""

    def __init__(self, layer, down, up, scale: float, form: str = "sum") -> None:
        super().__init__()
        self.layer, self.down, self.up, self.scale, self.form = layer, down, up, scale, form

    def forward(self, x):
        x = x.tanh()
        adapter = self.up(self.down(x)) * self.scale
        return {
            "sum": lambda: self.layer(x) + adapter,
            "turned": lambda: adapter + self.layer(x),
            "alpha": lambda: torch.add(self.layer(x), adapter, alpha=2),
            "difference": lambda: self.layer(x) - adapter,
        }[self.form]().sigmoid()


forms = st.sampled_from(["sum", "turned", "alpha", "difference"])


@few
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.booleans(), st.booleans(), forms, st.floats(-3, 3))
def test_a_low_rank_adapter_becomes_part_of_its_layer(
    rewrite, rounding_alone, inputs, outputs, rank, bias, own_bias, form, scale
):
    torch.manual_seed(inputs * 100 + outputs)
    down, up = nn.Linear(inputs, rank, bias=own_bias), nn.Linear(rank, outputs, bias=own_bias)
    done = rewrite(
        NAME, Adapted(nn.Linear(inputs, outputs, bias=bias), down, up, scale, form), torch.randn(3, 2, inputs)
    )
    assert done.result.changed == 1
    assert len(done.operators) == 3
    rounding_alone(done)


@few
@given(st.sampled_from([1, 2]), st.integers(1, 3), st.integers(0, 1), st.integers(1, 2), st.booleans(), forms)
def test_a_convolution_takes_its_adapter(rewrite, rounding_alone, spatial, kernel, padding, stride, bias, form):
    torch.manual_seed(kernel)
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[spatial]
    layer = kind(3, 5, kernel, stride, padding, bias=bias)
    down, up = kind(3, 2, kernel, stride, padding, bias=bias), kind(2, 5, 1, bias=False)
    done = rewrite(NAME, Adapted(layer, down, up, 0.5, form), torch.randn(2, 3, *(6,) * spatial))
    assert done.result.changed == 1
    rounding_alone(done)


def test_matrix_products_are_adapters_too(rewrite, rounding_alone):
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 6)
            self.a, self.b = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 6))
            self.whole = nn.Parameter(torch.randn(4, 6))

        def forward(self, x):
            return x @ self.whole + 0.25 * (x @ self.a @ self.b)

    done = rewrite(NAME, Product(), torch.randn(3, 4))
    assert done.result.changed == 1
    assert len(done.operators) == 1
    rounding_alone(done)


class Written(nn.Module):
    def __init__(self, forward, **parts) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self._forward(self, x)


def square() -> nn.Linear:
    return nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda m, x: m.a(x) + (y := m.b(x)) + y.tanh(), "also used elsewhere"),
        (lambda m, x: m.a(x) + m.b(x) + m.a(x * 2), ""),
        (lambda m, x: m.a(x) + m.b(x + 1), ""),
        (lambda m, x: m.a(x) + m.b(m.a(x)), ""),
        (lambda m, x: m.b(m.c(x)) + m.a(m.d(x)), ""),
    ],
    ids=["shared output", "shared layer", "other inputs", "no adapter", "two products"],
)
def test_what_is_no_adapter_stays(rewrite, rounding_alone, forward, words):
    torch.manual_seed(0)
    model = Written(forward, a=square(), b=square(), c=square(), d=square())
    done = rewrite(NAME, model, torch.randn(3, 4))
    assert done.result.changed == 0
    assert words in done.reasons
    rounding_alone(done)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=2, dilation=2)),
        (nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)),
        (nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)),
    ],
)
def test_convolutions_of_another_geometry_stay_apart(rewrite, first, second):
    done = rewrite(NAME, Written(lambda m, x: m.a(x) + m.b(x), a=first, b=second), torch.randn(2, 4, 5, 5))
    assert done.result.changed == 0
