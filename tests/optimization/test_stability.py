from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.optimization.gate_models import Flat, run_of
from torch import Tensor, nn

from evalmode.optimization.probes import probe_samples
from evalmode.optimization.stability import Stability

PLAIN = nn.Linear(6, 4).eval()


def stability(output_axes=(0,), **options) -> Stability:
    (samples,) = probe_samples((torch.randn(5, 6, generator=torch.Generator().manual_seed(1)),), (0,), ("x",))
    return Stability(samples, output_axes, **options)


def alone(x: Tensor) -> Tensor:
    """Bits that depend on nothing beside a sample: elementwise sums in a fixed order."""
    total = torch.zeros(len(x))
    for place in range(x.shape[1]):
        total = total + x[:, place] * (place + 0.1)
    return total


@settings(max_examples=12)
@given(groups=st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=6))
def test_sizes_are_parted_by_their_bits(groups: list[int]) -> None:
    found = stability(seeds=1)
    for size, group in enumerate(groups, 1):
        assert found.add(size, run_of(lambda x, group=group: (alone(x) * (1 + group * 2.0**-23),))).stable
    report = found.report()
    assert sorted(size for members in report.classes for size in members) == list(range(1, len(groups) + 1))
    for size, group in enumerate(groups, 1):
        same = tuple(other for other, its in enumerate(groups, 1) if its == group)
        assert report.class_of(size) == same
    assert [len(members) for members in report.classes] == sorted(map(len, report.classes), reverse=True)
    assert report.samples >= 64


def test_sizes_that_agree_on_most_samples_but_not_all_are_two_classes() -> None:
    found = stability()
    found.add(1, run_of(lambda x: (alone(x),)))
    found.add(2, run_of(lambda x: (torch.where(x[:, 0] == 0, 1e-30, alone(x)),)))
    assert found.report().classes == ((1,), (2,))


def test_every_output_counts_and_zero_has_a_sign() -> None:
    found = stability((0, 0))
    found.add(1, run_of(lambda x: (alone(x), torch.zeros(len(x)))))
    found.add(2, run_of(lambda x: (alone(x), -torch.zeros(len(x)))))
    found.add(4, run_of(lambda x: (alone(x), torch.zeros(len(x)))))
    assert found.report().classes == ((1, 4), (2,))


def test_one_nan_is_as_good_as_another() -> None:
    other_nan = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    found = stability()
    found.add(1, run_of(lambda x: (x[:, :1] * 0 + float("nan"),)))
    found.add(2, run_of(lambda x: (other_nan.expand(len(x), 1).clone(),)))
    assert found.report().classes == ((1, 2),)


LEAKS: dict[str, Flat] = {
    "companions": lambda x: (alone(x) + x.nan_to_num().sum() * 1e-7,),
    "NaN beside it": lambda x: (alone(x) + (float("nan") if bool(x.isnan().all(1).any()) else 0.0),),
    "position": lambda x: (alone(x) + torch.arange(len(x)) * 1e-3,),
    "the last position": lambda x: (torch.cat([alone(x)[:-1], alone(x)[-1:] + 1e-3]),),
    "repetition": lambda x: (alone(x) + (1e-3 if torch.equal(x[0], x[-1]) else 0.0),),
    "rank in the batch": lambda x: (alone(x) + x[:, 0].nan_to_num().argsort().argsort() * 1e-3,),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_sample_that_depends_on_others_makes_a_size_unstable(name: str) -> None:
    found = stability()
    record = found.add(8, run_of(LEAKS[name]))
    assert not record.stable
    assert "output 0 of a sample" in record.reason
    assert found.report().classes == ()
    assert found.report().unstable == (record,)
    assert found.report().class_of(8) == ()


def test_answers_that_change_from_call_to_call_are_unstable_even_alone() -> None:
    calls = iter(range(10**6))
    record = stability().add(1, run_of(lambda x: (alone(x) + next(calls),)))
    assert not record.stable
    assert "once more" in record.reason


def test_an_output_that_belongs_to_no_sample_has_to_stay() -> None:
    table = torch.randn(3)
    found = stability((0, None), names=("scores", "table"))
    assert found.add(4, run_of(lambda x: (alone(x), table))).stable
    record = found.add(8, run_of(lambda x: (alone(x), x.nan_to_num().mean(0))))
    assert not record.stable
    assert record.reason.startswith("table belongs to no sample")


def test_a_size_measured_again_counts_anew() -> None:
    found = stability()
    assert not found.add(4, run_of(LEAKS["position"])).stable
    assert found.add(4, run_of(lambda x: (alone(x),))).stable
    assert found.report().classes == ((4,),)
    assert found.report().unstable == ()
    assert not found.add(4, run_of(LEAKS["position"])).stable
    assert found.report().classes == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64])
def test_outputs_of_every_type(dtype: torch.dtype) -> None:
    found = stability()
    assert found.add(4, run_of(lambda x: (x.nan_to_num(0, 1, -1).clamp(-9, 9).to(dtype),))).stable


def test_samples_along_another_axis() -> None:
    (samples,) = probe_samples((torch.randn(6, 5),), (1,), ("x",))
    found = Stability(samples, (1,))
    assert found.add(3, run_of(lambda x: (x * 2,))).stable
    assert not found.add(4, run_of(lambda x: (x + torch.arange(x.shape[1]),))).stable
