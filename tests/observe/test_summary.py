from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evalmode.observe import summary
from evalmode.observe.summary import differ, summary_of


@pytest.mark.parametrize("size", [0, 1, summary._PIECE, summary._PIECE + 1, 2 * summary._PIECE + 77])
def test_a_summary_is_the_same_whether_taken_whole_or_in_pieces(size: int) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size)).double()
    order = np.arange(size)
    weighted = math.fsum(values.numpy() * (1.0 + 0.5 * np.cos(order * 1.7 + 0.3)))
    found = summary_of(values)
    assert found[0] == pytest.approx(weighted, rel=1e-10, abs=1e-9)
    assert found[1] == pytest.approx(math.fsum(values.abs().numpy()), rel=1e-12)
    assert found[2:] == (0.0, 0.0, float(size))


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=40),
    st.integers(0, 39),
    st.sampled_from([1.0, float("nan"), float("inf")]),
)
def test_one_other_value_makes_another_summary(values: list[float], position: int, value: float) -> None:
    one = torch.tensor(values, dtype=torch.float64)
    other = one.clone()
    other[position % len(values)] += value
    assert not differ(summary_of(one), summary_of(one.clone()))
    assert differ(summary_of(one), summary_of(other))


def test_the_order_counts() -> None:
    assert differ(summary_of(torch.tensor([1.0, 2.0])), summary_of(torch.tensor([2.0, 1.0])))
