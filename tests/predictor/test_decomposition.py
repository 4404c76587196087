"""The cut of a batch into executions is the cheapest there is."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from evalmode.predictor.decomposition import Decomposition

SIZES = st.dictionaries(st.integers(1, 9), st.floats(0.1, 10.0), min_size=1, max_size=4)


def cheapest(costs: dict[int, float], samples: int) -> float:
    """By trying every number of executions of every size."""
    counts = [range(-(-samples // size) + 1) for size in costs]
    return min(
        sum(count * cost for count, cost in zip(choice, costs.values(), strict=True))
        for choice in itertools.product(*counts)
        if sum(count * size for count, size in zip(choice, costs, strict=True)) >= samples
    )


@given(SIZES, st.integers(0, 20))
def test_no_cut_is_cheaper(costs: dict[int, float], samples: int) -> None:
    cut = Decomposition(tuple(costs), tuple(costs.values())).sizes_for(samples)
    assert sum(cut) >= samples and list(cut) == sorted(cut, reverse=True)
    assert sum(cut[:-1]) < samples or samples == 0
    assert abs(sum(costs[size] for size in cut) - cheapest(costs, samples)) < 1e-9


@given(SIZES, st.integers(0, 5000))
def test_far_beyond_the_table_the_cut_stays_the_cheapest(costs: dict[int, float], samples: int) -> None:
    table = [0.0]
    for number in range(1, samples + 1):
        table.append(min(cost + table[max(0, number - size)] for size, cost in costs.items()))
    cut = Decomposition(tuple(costs), tuple(costs.values())).sizes_for(samples)
    assert sum(cut) >= samples
    assert sum(costs[size] for size in cut) <= table[samples] * (1 + 1e-9) + 1e-9


def test_the_same_number_of_samples_is_always_cut_alike() -> None:
    first, second = Decomposition((1, 3, 8), (1.0, 2.5, 4.0)), Decomposition((1, 3, 8), (1.0, 2.5, 4.0))
    forwards = [first.sizes_for(samples) for samples in range(100)]
    backwards = [second.sizes_for(samples) for samples in reversed(range(100))]
    assert forwards == backwards[::-1]


def test_a_huge_batch_is_cut_at_once() -> None:
    cut = Decomposition((1, 64), (1.0, 8.0)).sizes_for(1_000_003)
    assert cut.count(64) == 15625 and cut.count(1) == 3
