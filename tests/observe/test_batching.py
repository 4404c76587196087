from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evalmode.observe.batching import (
    BatchAxis,
    difference,
    find_batch_axis,
    layout_between,
    rows_agree,
    select_samples,
)


def axis_of(batch: object, axis: int | str = "auto") -> BatchAxis:
    found = find_batch_axis(batch, axis)
    assert isinstance(found, BatchAxis)
    return found


def test_the_axis_is_the_one_that_all_tensors_share() -> None:
    assert axis_of({"x": torch.zeros(4, 3), "y": torch.zeros(4), "scale": torch.tensor(2.0), "n": 3}).size == 4
    assert "differ" in str(find_batch_axis((torch.zeros(4, 3), torch.zeros(3))))
    assert "no tensor" in str(find_batch_axis({"n": 3}))
    assert "empty" in str(find_batch_axis(torch.zeros(0, 3)))
    assert axis_of([torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)]).listed


def test_a_declared_axis_leaves_tensors_of_another_size_shared() -> None:
    batch = (torch.arange(6).reshape(3, 2), torch.arange(3))
    axis = axis_of(batch, 1)
    chosen = select_samples(batch, axis, [1, 0, 1])
    assert chosen[0].tolist() == [[1, 0, 1], [3, 2, 3], [5, 4, 5]]
    assert chosen[1] is batch[1]


@given(st.integers(1, 6), st.integers(1, 4), st.data())
def test_selected_samples_are_numpys(size: int, width: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1))
    batch = torch.randn(size, width)
    chosen = select_samples({"x": batch, "n": 1}, axis_of({"x": batch}), positions)
    assert (chosen["x"].numpy() == batch.numpy()[positions]).all()
    assert chosen["n"] == 1


@given(st.integers(2, 5), st.integers(1, 3), st.booleans(), st.data())
def test_the_same_samples_are_found_in_either_order_of_rows(
    size: int, rows: int, sample_first: bool, data: st.DataObject
) -> None:
    permutation = data.draw(st.permutations(range(size)))
    samples = torch.randn(size, rows, 2)

    def flattened(chosen: torch.Tensor) -> torch.Tensor:
        return (chosen if sample_first else chosen.transpose(0, 1)).reshape(-1, 2)

    layout = layout_between((size * rows, 2), size, ((size + 1) * rows, 2), size + 1)
    assert layout is not None
    first, second = flattened(samples), flattened(samples[list(permutation)])
    assert rows_agree(first, size, permutation, second, size, range(size), layout)[0]
    spoilt = second.clone()
    spoilt += 1
    same, gap, _ = rows_agree(first, size, permutation, spoilt, size, range(size), layout)
    assert not same
    assert gap > 0


def test_an_axis_that_changes_otherwise_is_no_batch_axis() -> None:
    assert layout_between((4, 3), 4, (5, 3), 5) is not None
    assert layout_between((7, 3), 4, (9, 3), 5) is None
    assert layout_between((4, 3), 4, (4, 3), 5) is None


def test_differences_of_what_is_not_finite() -> None:
    nan, inf = float("nan"), float("inf")
    assert difference(torch.tensor([nan, inf, 2.0]), torch.tensor([nan, inf, 5.0])) == (3.0, 5.0)
    assert difference(torch.tensor([nan]), torch.tensor([1.0]))[0] == inf
    assert difference(torch.tensor([inf]), torch.tensor([-inf]))[0] == inf


@given(st.integers(1, 300_000), st.data())
@settings(max_examples=20)
def test_a_difference_is_found_wherever_it_lies(size: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, size - 1))
    first = torch.randn(size, generator=torch.Generator().manual_seed(size))
    second = first.clone()
    second[position] += 3.0
    oracle = np.abs(first.numpy().astype(np.float64) - second.numpy().astype(np.float64)).max()
    gap, scale = difference(first, second)
    assert gap == oracle
    assert scale == max(first.abs().max(), second.abs().max())
    assert difference(first, first.clone())[0] == 0.0


def test_sparse_tensors_are_compared():
    one = torch.eye(3).to_sparse()
    assert difference(one, one) == (0.0, 1.0)
    assert difference(one, (2 * torch.eye(3)).to_sparse()) == (1.0, 2.0)


@given(st.lists(st.floats(width=32), min_size=1, max_size=9))
def test_equal_tensors_have_the_scale_of_their_finite_values(values):
    tensor = torch.tensor(values)
    finite = tensor[tensor.isfinite()].abs()
    assert difference(tensor, tensor.clone()) == (0.0, float(finite.max()) if len(finite) else 0.0)
