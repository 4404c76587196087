from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.optimization.gate_models import Recurrent, Routed, convolutional, reference
from torch import Tensor, nn

from evalmode.errors import ModelRunError
from evalmode.optimization.leaf_reference import LeafReference, kinds_of_value, most_likely_unseen, row_errors
from evalmode.optimization.probes import probe_samples
from evalmode.optimization.reference import accepted_samples, reference_of


def test_the_answers_are_those_of_the_model_in_double() -> None:
    model, images = convolutional(), torch.randn(4, 3, 12, 12)
    truth = reference(model, (images,))
    (leaf,) = truth.leaves
    wanted = model.double()(truth.parts[0].inputs[0].double())[0].detach()
    assert torch.allclose(leaf.wide, wanted, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert truth.exact
    assert 0 < leaf.usual("largest", as_it_is=True) < 5e-6


def test_samples_along_another_axis_are_rows_too() -> None:
    torch.manual_seed(0)
    model = Recurrent().eval()
    truth = reference(model, (torch.randn(3, 5, 6),), output_axes=(0, 1, 1))
    samples = truth.parts[0].inputs[0].double()
    _, hidden, _ = model.double()(samples)
    wanted = hidden.detach().movedim(1, 0).reshape(len(samples), -1)
    assert torch.allclose(truth.leaves[1].wide, wanted, atol=1e-12, equal_nan=True)


def test_a_model_that_asks_for_its_dtype_in_python() -> None:
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            if x.dtype != self.weight.dtype:
                raise ValueError("the dtypes differ")
            return (x @ self.weight,)

    model = Strict()
    batch = (torch.randn(4, 4),)
    assert reference(model, batch, model=model).exact
    without = reference(model, batch)
    assert not without.exact
    assert "the dtypes differ" in without.notes[0]
    assert model.weight.dtype is torch.float32


def test_a_size_at_which_the_model_fails_is_left_out() -> None:
    def at_least_two(x: Tensor) -> tuple[Tensor, ...]:
        if len(x) < 2:
            raise ValueError("too few")
        return (x * 2,)

    parts = probe_samples((torch.randn(4, 3),), (0,), ("x",))
    truth = reference_of(at_least_two, parts, (0,), sizes=(1, 2, 4))
    assert truth.sizes == (2, 4)
    assert "batch sizes 1" in truth.notes[0]
    with pytest.raises(ModelRunError, match="too few"):
        reference_of(at_least_two, parts, (0,), sizes=(1,))


def test_kinds_that_the_model_refuses_are_left_out_and_said() -> None:
    def no_nan(x: Tensor) -> tuple[Tensor, ...]:
        if bool(x.isnan().any()):
            raise ValueError("NaN is refused")
        return (x,)

    kept, refused = accepted_samples(no_nan, probe_samples((torch.randn(4, 3),), (0,), ("x",)), 4)
    assert not any("NaN" in kind for kind in kept[0].kinds)
    assert dict(refused)["one NaN"] == "ValueError: NaN is refused"


def test_a_model_that_refuses_the_given_samples_is_an_error() -> None:
    def never(x: Tensor) -> tuple[Tensor, ...]:
        raise ValueError("never")

    with pytest.raises(ModelRunError, match="never"):
        accepted_samples(never, probe_samples((torch.randn(4, 3),), (0,), ("x",)), 4)


def test_samples_that_do_not_fit_together_are_the_given_ones_alone() -> None:
    """As where every sample has to hold the same number of end marks."""

    def same_count(ids: Tensor) -> tuple[Tensor, ...]:
        counts = (ids == 1).sum(1)
        if bool((counts != counts[0]).any()):
            raise ValueError("all examples must have the same number of end marks")
        return (ids.float(),)

    ids = torch.randint(2, 9, (4, 6))
    ids[:, -1] = 1
    kept, refused = accepted_samples(same_count, probe_samples((ids,), (0,), ("ids",)), 4)
    assert set(kept[0].kinds) == {"given"}
    assert refused


def test_a_tie_is_discontinuous_and_its_neighbours_are_not() -> None:
    torch.manual_seed(5)
    batch = (torch.randn(4, 3, 16),)
    calm = reference(Routed().eval(), batch, output_axes=(0, 0))
    tied = reference(Routed(ties=True).eval(), batch, output_axes=(0, 0), sizes=(1, 2, 4, 8))
    assert int(calm.leaves[0].discontinuous.sum()) == 0
    assert 0 < int(tied.leaves[1].discontinuous.sum()) < len(tied)
    assert tied.leaves[0].usual("largest") < 1e-5


@given(once=st.integers(0, 2000), runs=st.integers(1, 8))
def test_what_may_be_unseen_follows_what_was_seen_once(once: int, runs: int) -> None:
    from scipy.stats import poisson

    found = most_likely_unseen(once, runs)
    assert (found == 0) == (once == 0 or poisson.cdf(0, once / runs) >= 0.999)
    if once:
        assert abs(found - poisson.ppf(0.999, once / runs)) <= 1 + 0.02 * found


@given(st.lists(st.lists(st.floats(0, 1e30), min_size=3, max_size=3), min_size=1, max_size=5))
def test_errors_of_a_row(rows: list[list[float]]) -> None:
    gaps = torch.tensor(rows, dtype=torch.float64)
    found = row_errors(gaps)
    assert torch.equal(found.largest, gaps.amax(1))
    assert torch.allclose(found.root_mean_square, (gaps / 1e15).pow(2).mean(1).sqrt() * 1e15, rtol=1e-9, atol=1e-140)
    assert torch.equal(found.median, gaps.median(1).values)


def test_values_are_agreed_upon_only_where_every_run_tells_the_same() -> None:
    wide = torch.tensor([[1.0, float("nan"), 1e39, float("inf")]], dtype=torch.float64)
    leaf = LeafReference("y", 0, torch.float32, (4,), wide, torch.tensor([True]))
    leaf.add_run(wide.float())  # 1e39 is infinite in fp32
    assert leaf.agreed.tolist() == [[True, True, False, True]]
    assert kinds_of_value(wide).tolist() == [[0, 1, 0, 2]]


def test_runs_that_differ_in_the_bits_of_nan_or_the_sign_of_zero_count_once() -> None:
    nan = torch.tensor([0x7FC00000, 0x7FC00001, -0x400000], dtype=torch.int32).view(torch.float32)
    seen: list[int] = []

    def plain(x: Tensor) -> tuple[Tensor, ...]:
        seen.append(len(x))
        strange = nan[len(x) % 3].expand(len(x), 1)
        zero = torch.full((len(x), 1), 0.0 if len(x) % 2 else -0.0)
        return (torch.cat([x[:, :1].sign(), strange, zero], 1),)

    parts = probe_samples((torch.randn(4, 3),), (0,), ("x",))
    found = reference_of(plain, parts, (0,), sizes=(1, 2, 8), known=(2, 8))
    assert seen[0] == 1  # at sizes that are known it is not tried
    assert found.leaves[0].runs == 1


def test_sizes_that_are_known_to_work_are_not_tried_before() -> None:
    tried: list[int] = []

    def plain(x: Tensor) -> tuple[Tensor, ...]:
        tried.append(len(x))
        return (x * 2,)

    parts = probe_samples((torch.randn(4, 3),), (0,), ("x",), count=12)
    reference_of(plain, parts, (0,), sizes=(1, 5), known=(1, 5))
    alone = tried.count(5)
    tried.clear()
    reference_of(plain, parts, (0,), sizes=(1, 5))
    assert tried.count(5) == alone + 1
