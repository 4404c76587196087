"""Rewrites that would be wrong: what a user could notice, and where the passes must hold back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import evalmode
from evalmode.observe.tree import same_bits
from evalmode.optimization.exporting import program_of
from evalmode.optimization.rewriting import apply_passes


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Unexportable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 1e9 else self.layer(x).relu()


def test_a_module_that_forward_closes_over_stays_as_it_is() -> None:
    head = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.Dropout(0.5)).eval()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    batch = torch.randn(4, 8)
    fast = evalmode.optimize(
        Unexportable(), batch, forward=lambda model, given: head(model(given)), backends=["eager"], budget_s=8
    )
    fast(batch)
    assert type(head[1]) is nn.Dropout
    assert parametrize.is_parametrized(head[0], "weight")
    assert all(parameter.requires_grad for parameter in head.parameters())
    assert all(same_bits(value, before[name]) for name, value in head.state_dict().items())
    head.train()
    assert not torch.equal(head(torch.ones(64, 8)), head(torch.ones(64, 8)))


class Branches(nn.Module):
    """Without a graph; on one branch, which no example takes, it uses the layer without its norm."""

    def __init__(self, by_call: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4))
        self.by_call = by_call

    def forward(self, x: torch.Tensor, domain: torch.Tensor) -> torch.Tensor:
        if (domain == 1).any():
            layer = self.body[0]
            return (layer(x) if self.by_call else nn.functional.linear(x, layer.weight, layer.bias))[:, :4]
        return self.body(x)


@pytest.mark.parametrize("by_call", [True, False])
def test_a_branch_that_no_example_took_keeps_the_layers_own_weights(by_call: bool, randomized: Any) -> None:
    model = randomized(Branches(by_call), torch.Generator().manual_seed(0))
    x, domain = torch.randn(6, 8), torch.zeros(6, dtype=torch.long)
    program, report = apply_passes(program_of(model, (x, domain)).program)
    assert program.exported is None
    assert report.changed["fold-batch-norm"] == 2
    for which in (0, 1):
        given = (x, torch.full_like(domain, which))
        with torch.no_grad():
            torch.testing.assert_close(program.module(*given)[0], model(*given), rtol=1e-4, atol=1e-5)
    assert type(model.body) is nn.Sequential


@pytest.mark.parametrize("bias", [True, False])
def test_a_number_that_rounds_stays_beside_a_layer(bias: bool, rewrite: Any) -> None:
    class Rounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 5, bias=bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.linear(x) * 1.0 + 12582912.0) - 12582912.0

    torch.manual_seed(0)
    x = 100 * torch.randn(4, 6)
    done = rewrite("fold-scale-shift", Rounds(), x)
    assert same_bits(done.got, done.expected)
    assert "rounding" in done.reasons


def test_a_shift_that_is_taken_away_again_stays_beside_a_layer(rewrite: Any) -> None:
    class Rounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.linear(x) + 4096.0) - 4096.0

    done = rewrite("fold-scale-shift", Rounds(), torch.randn(4, 6))
    assert same_bits(done.got, done.expected)
    assert "cancel" in done.reasons

    class Between(Rounds):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(super().forward(x)[:, [0, 1, 2, 3, 4, 0]])

    done = rewrite("fold-scale-shift", Between(), torch.randn(4, 6))
    assert same_bits(done.got, done.expected)


@pytest.mark.parametrize("value", [300.0, 1e-4])
def test_constants_of_16_bits_are_merged_only_where_they_fit(value: float, rewrite: Any) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("first", torch.full((3,), value, dtype=torch.float16))
            self.register_buffer("second", torch.full((3,), value, dtype=torch.float16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.first * self.second

    x = torch.full((2, 3), 1e-3 if value > 1 else 1000.0, dtype=torch.float16)
    done = rewrite("fold-scale-shift", Twice(), x)
    torch.testing.assert_close(done.got, done.expected)
    assert "overflow or underflow" in done.reasons


def test_a_write_within_a_region_of_autocast_is_seen() -> None:
    class Region(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("factor", torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            steps = torch.arange(8).float() + 1
            with torch.autocast("cpu", enabled=False):
                steps.div_(self.factor)
                return x.float() * steps

    model, x = Region(), torch.randn(4, 8)
    program, _ = apply_passes(program_of(model, x).program)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(program.module(x)[0], model(x))


def test_a_model_that_writes_into_its_input_leaves_the_examples_alone(randomized: Any) -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 1e9:
                return x
            x.sub_(0.5)
            return self.body(x)

    model = randomized(Writes(), torch.Generator().manual_seed(0))
    x = torch.randn(6, 8)
    program = program_of(model, x.clone()).program
    before = [tensor.clone() for tensor in program.inputs]
    rewritten, report = apply_passes(program)
    assert report.changed["fold-batch-norm"] == 1 and not report.problem
    assert all(map(same_bits, program.inputs, before))
    with torch.no_grad():
        torch.testing.assert_close(rewritten.module(x.clone())[0], model(x.clone()))


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.linear(x) - self.linear(x).clone().ge_(0.1),
        lambda self, x: self.linear(x).clone().logical_not_() + 1.5,
        lambda self, x: self.linear(x).add_(self.wide) * 2,
    ],
    ids=["ge_", "logical_not_", "add_ of float64"],
)
def test_what_is_written_in_place_keeps_its_dtype(forward: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 5)
            self.register_buffer("wide", torch.ones(5, dtype=torch.float64))

    Model.forward = forward
    model, x = Model().eval(), torch.randn(4, 6)
    program = program_of(model, x).program
    assert program.exported is not None, program.export_error
    rewritten, report = apply_passes(program)
    assert not report.problem
    with torch.no_grad():
        torch.testing.assert_close(rewritten.module(x)[0], model(x))


def test_an_adapter_beside_a_layer_with_a_bias_of_zeros_is_merged(rewrite: Any, rounding_alone: Any) -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4, 6))
            self.b = nn.Parameter(torch.zeros(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.addmm(self.b, x, self.w) + x @ self.v

    done = rewrite("merge-adapters", Adapted(), torch.randn(3, 4))
    rounding_alone(done)
    assert done.result.changed == 1


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x.t() * 1.0,
        lambda x: (x * 1.0).view(-1),
        lambda x: ((y := x + 1), y.view(-1) * 1.0),
        lambda x: torch.einsum("ij->ji", x).clone(),
        lambda x: (x + 1, torch.sin(torch.arange(4.0)).expand(5, 4)),
    ],
    ids=["product of a view", "view of a product", "two outputs", "einsum", "view of a constant"],
)
def test_outputs_come_to_share_no_memory(forward: Any) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return forward(x)

    model, x = Model(), torch.randn(4, 4)
    program, _ = apply_passes(program_of(model, (x,)).program)
    with torch.no_grad():
        first, again = program.module(x), program.module(x)
    places = [storage(x), *map(storage, first), *map(storage, again)]
    assert len(set(places)) == len(places)


def test_shifts_along_different_axes_are_no_way_of_rounding(rewrite: Any, rounding_alone: Any) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 4)
            self.row, self.column = nn.Parameter(torch.randn(7, 1)), nn.Parameter(torch.randn(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) + self.row + self.column

    rounding_alone(rewrite("fold-scale-shift", Positions(), torch.randn(3, 7, 5)))


def test_a_sequential_of_ones_own_class_stays_one(randomized: Any) -> None:
    class Stage(nn.Sequential):
        @property
        def width(self) -> int:
            return self[0].out_features

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = Stage(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 1e9:
                return x
            assert isinstance(self.stage, Stage)
            return self.stage(x) * self.stage.width

    model, x = randomized(Model(), torch.Generator().manual_seed(0)), torch.randn(6, 8)
    program, report = apply_passes(program_of(model, x).program)
    assert report.changed["fold-batch-norm"] == 1
    assert not report.problem
    with torch.no_grad():
        torch.testing.assert_close(program.module(x)[0], model(x))


def test_folded_layers_are_cast_with_the_model(randomized: Any) -> None:
    from evalmode.backends.eager import _copied_as

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.stage(x) if x.sum() < 1e9 else x

    model, x = randomized(Model(), torch.Generator().manual_seed(0)), torch.randn(6, 8)
    program, _ = apply_passes(program_of(model, x).program)
    with torch.no_grad():
        found = _copied_as(program.module, torch.bfloat16)(x.bfloat16())[0]
        torch.testing.assert_close(found.float(), model(x), rtol=0.05, atol=0.1)
