from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.optimization.gate_models import convolutional
from torch import nn

from evalmode.optimization.rounding_noise import RoundingNoise, nudged


@given(
    values=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64]),
    seed=st.integers(0, 999),
)
def test_a_number_moves_by_at_most_one_unit_in_its_last_place(values: list[float], dtype, seed: int) -> None:
    tensor = torch.tensor(values).to(dtype)
    moved = nudged(tensor, torch.Generator().manual_seed(seed))
    assert moved.dtype == dtype
    kind = torch.float32 if dtype.is_complex else dtype
    pairs = (torch.view_as_real(x) if dtype.is_complex else x for x in (tensor, moved))
    before, after = (x.double() for x in pairs)
    tiny = torch.finfo(kind).tiny
    assert bool(((after - before).abs() <= torch.finfo(kind).eps * before.abs() + tiny).all())
    whole = (before == before.round()) & (before.abs() < 2**20)
    assert torch.equal(before[whole], after[whole])


def test_special_values_and_whole_numbers_stay() -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 7.0, torch.finfo(torch.float32).max])
    for seed in range(20):
        moved = nudged(values, torch.Generator().manual_seed(seed))
        assert moved.isfinite().tolist() == values.isfinite().tolist()
        assert torch.equal(moved[3:6], values[3:6])
    assert nudged(torch.arange(3), torch.Generator()).tolist() == [0, 1, 2]


def test_the_noise_of_a_model_is_of_the_order_of_its_rounding() -> None:
    model, x = convolutional(), torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        plain = model(x)[0]
        true = model.double()(x.double())[0]
        model.float()
        with RoundingNoise(seed=3):
            moved = model(x)[0]
    rounding = float((plain - true).abs().max())
    noise = float((moved - plain).abs().max())
    assert 0 < noise < 50 * rounding + 1e-6


def test_same_seed_same_noise_and_no_other_stream_moves() -> None:
    layer, x = nn.Linear(5, 5), torch.randn(2, 5)
    stream = torch.get_rng_state()
    results = []
    for seed in (1, 1, 2):
        with torch.no_grad(), RoundingNoise(seed):
            results.append(layer(x))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(stream, torch.get_rng_state())


@pytest.mark.parametrize("in_place", [lambda x: x.relu_(), lambda x: x.add_(0.5)])
def test_what_is_written_in_place_is_not_moved(in_place) -> None:
    x = torch.randn(50)
    with torch.no_grad():
        expected = in_place(x.clone())
        with RoundingNoise():
            copy = x.clone()
            found = in_place(copy)
    assert found is copy
    assert torch.equal(found, expected)
