from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from evalmode.optimization.companions import LOUD
from evalmode.optimization.judge import FEWEST
from evalmode.optimization.probes import LEAST, REGULAR, probe_samples
from evalmode.optimization.samples import Samples, executions, ran, rows_of


def column(samples: Samples, kind: str) -> torch.Tensor:
    return samples.at([place for place, found in enumerate(samples.kinds) if found == kind])[0]


@given(
    count=st.integers(1, 20),
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int64, torch.bool]),
    axis=st.integers(0, 3),
)
def test_samples_have_the_shape_and_type_of_the_given_ones(count: int, shape: list[int], dtype, axis: int) -> None:
    axis = min(axis, len(shape))
    given_batch = torch.randn(*shape[:axis], count, *shape[axis:]).mul(3).to(dtype)
    samples, *rest = probe_samples((given_batch,), (axis,), ("x",))
    assert not rest
    assert len(samples) >= LEAST
    (made,) = samples.at([3, 1])
    assert made.dtype == dtype
    assert made.shape == (*shape[:axis], 2, *shape[axis:])
    own = [place for place, kind in enumerate(samples.kinds) if kind == "given"]
    assert torch.equal(samples.at(own)[0], given_batch.narrow(axis, 0, min(count, 16)))


def test_the_first_few_samples_hold_what_tells_most() -> None:
    """A slow model is tested with few samples: these are among them, whatever its search can afford."""
    for given_batch in (torch.randn(3, 5), torch.rand(3, 5)):
        (samples,) = probe_samples((given_batch,), (0,), ("x",))
        assert {"given", "zeros", "one NaN", "one infinity", LOUD, "random"} <= set(samples.kinds[:FEWEST])


def test_edges_hold_what_they_say() -> None:
    (samples,) = probe_samples((torch.randn(5, 7),), (0,), ("x",))
    assert bool((column(samples, "zeros") == 0).all())
    assert bool(column(samples, "NaN throughout").isnan().all())
    assert int(column(samples, "one NaN").isnan().sum()) == 1
    assert column(samples, "both infinities").isinf().sum() == 2
    assert bool((column(samples, "denormal").abs() < torch.finfo(torch.float32).tiny).all())
    assert bool((column(samples, "denormal") != 0).all())
    assert column(samples, "a constant").unique().numel() == 1
    sound = samples.finite()
    assert {kind for kind, good in zip(samples.kinds, sound, strict=True) if not good} == {
        "one NaN",
        "NaN throughout",
        "one infinity",
        "one minus infinity",
        "both infinities",
    }


def test_random_values_are_like_the_given_ones() -> None:
    given_batch = torch.randn(8, 400) * 5 + 100
    (samples,) = probe_samples((given_batch,), (0,), ("x",))
    made = column(samples, "random")
    assert abs(float(made.mean()) - 100) < 1
    assert 4 < float(made.std()) < 6


def test_values_that_are_never_negative_stay_so() -> None:
    (samples,) = probe_samples((torch.rand(8, 40),), (0,), ("x",))
    assert "negated" not in samples.kinds
    ordinary = [place for place, kind in enumerate(samples.kinds) if kind in REGULAR]
    assert float(samples.at(ordinary)[0].min()) >= 0


def test_an_example_of_zeros_still_gives_samples_that_differ() -> None:
    (samples,) = probe_samples((torch.zeros(1, 30),), (0,), ("x",))
    assert float(column(samples, "random").std()) > 0.5
    assert float(column(samples, "1,000,000 times larger").abs().max()) > 1e4


@given(low=st.integers(-5, 5), spread=st.integers(0, 9), seed=st.integers(0, 99))
def test_whole_numbers_stay_in_the_range_that_was_seen(low: int, spread: int, seed: int) -> None:
    given_batch = torch.randint(low, low + spread + 1, (4, 6), generator=torch.Generator().manual_seed(seed))
    (samples,) = probe_samples((given_batch,), (0,), ("input_ids",), seed=seed)
    made = samples.inputs[0]
    assert int(made.min()) >= int(given_batch.min())
    assert int(made.max()) <= int(given_batch.max())


@given(padded_before=st.booleans(), real=st.sampled_from([0, 1]), dtype=st.sampled_from([torch.int64, torch.bool]))
def test_masks_are_filled_on_their_side_and_never_throughout(padded_before: bool, real: int, dtype) -> None:
    mask = torch.full((3, 6), real)
    mask[1, :2] = 1 - real
    if not padded_before:
        mask = mask.flip(1)
    values = torch.randint(0, 9, (3, 6))
    (samples,) = probe_samples((values, mask.to(dtype)), (0, 0), ("input_ids", "attention_mask"))
    rows = (samples.inputs[1].long() == real).long()
    rows = rows.flip(1) if padded_before else rows
    lengths = rows.sum(1)
    assert bool((lengths >= 1).all())
    assert torch.equal(rows, (torch.arange(6) < lengths[:, None]).long())
    assert len(lengths.unique()) > 3
    assert "one position alone" in samples.kinds


def test_a_mask_of_scores_keeps_its_rows() -> None:
    causal = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    given_batch = causal.expand(2, 5, 5).contiguous()
    (samples,) = probe_samples((torch.randn(2, 5), given_batch), (0, 0), ("x", "bias"))
    assert all(torch.equal(row, causal) for row in samples.inputs[1])
    assert sum(samples.finite()) == len(samples) - 5


def test_an_input_of_no_sample_is_kept_and_then_varied() -> None:
    table, scale = torch.arange(4), torch.tensor(2.0)
    first, second = probe_samples((torch.randn(3, 4), table, scale), (0, None, None), ("x", "positions", "scale"))
    assert torch.equal(first.inputs[1], table)
    assert not torch.equal(second.inputs[1], table)
    assert sorted(second.inputs[1].tolist()) == table.tolist()
    assert not torch.equal(second.inputs[2], scale)


def test_samples_are_the_same_for_the_same_seed_and_leave_the_global_stream() -> None:
    batch = torch.randn(3, 4)
    stream = torch.get_rng_state()
    one, other = (probe_samples((batch,), (0,), ("x",), seed=5)[0].inputs[0] for _ in range(2))
    assert torch.equal(one.nan_to_num(), other.nan_to_num())
    assert torch.equal(stream, torch.get_rng_state())


@given(count=st.integers(1, 30), size=st.integers(1, 12))
def test_executions_hold_every_sample_and_are_filled_with_their_own(count: int, size: int) -> None:
    cut = list(executions(range(count), size))
    assert all(len(positions) == size for positions in cut)
    assert sorted({position for positions in cut for position in positions}) == list(range(count))
    flat = [position for positions in cut for position in positions]
    assert flat[:count] == list(range(count))
    assert set(cut[-1]) == set(range((len(cut) - 1) * size, count))


@given(axis=st.integers(0, 2), count=st.integers(1, 9), size=st.integers(1, 5))
def test_what_is_run_comes_back_beside_its_sample(axis: int, count: int, size: int) -> None:
    shape = [2, 3]
    shape.insert(axis, count)
    inputs = torch.arange(6 * count).reshape(shape)
    samples = Samples((inputs,), (axis,), ("given",) * count)
    for positions, (output,) in ran(lambda chunks: [(chunk[0] * 2,) for chunk in chunks], samples, range(count), size):
        expected = inputs.index_select(axis, torch.tensor(positions)) * 2
        assert torch.equal(rows_of(output, axis), rows_of(expected, axis))
