"""Inputs reach an execution with the plan's dtype and shape, and with standard strides and alignment."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from evalmode.errors import BatchError
from evalmode.predictor.canonical import InputCheck, canonical
from evalmode.predictor.plan import TensorPlan

CPU = torch.device("cpu")


class Image(torch.Tensor):
    pass


@given(
    st.lists(st.integers(0, 3), max_size=4),
    st.randoms(use_true_random=False),
    st.integers(0, 20),
    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64]),
)
def test_values_stay_and_strides_become_standard(shape: list[int], random, offset: int, dtype: torch.dtype) -> None:
    count = torch.Size(shape).numel()
    plain = (torch.arange(count + offset, dtype=torch.float32) - 1).to(dtype)[offset:].reshape(shape)
    order = random.sample(range(len(shape)), len(shape))
    tensor = plain.permute(order)
    if len(shape) and random.random() < 0.5:
        tensor = tensor.flip(0)[::2] if tensor.shape[0] > 1 else tensor
    found = canonical(tensor)
    assert torch.equal(found, tensor)
    assert found.stride() == torch.empty(tensor.shape).stride()
    assert found.data_ptr() % 64 == 0 or not found.numel()


def test_nothing_is_copied_that_is_canonical() -> None:
    tensor = torch.randn(3, 4)
    assert canonical(tensor) is tensor
    assert canonical(nn.Parameter(tensor)).data_ptr() == tensor.data_ptr()


def test_channels_last_with_one_channel_counts_as_contiguous_and_is_made_standard() -> None:
    tensor = torch.randn(2, 1, 4, 4).to(memory_format=torch.channels_last)
    tensor = tensor.as_strided((2, 1, 4, 4), (16, 1, 4, 1))
    assert tensor.is_contiguous() and tensor.stride() != (16, 16, 4, 1)
    assert canonical(tensor).stride() == (16, 16, 4, 1)


def test_a_tensor_of_another_class_becomes_plain() -> None:
    assert type(canonical(torch.randn(2).as_subclass(Image))) is torch.Tensor
    assert not canonical(torch.ones(2, requires_grad=True)).requires_grad
    assert not canonical(torch.ones(2, dtype=torch.complex64).conj()).is_conj()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            torch.zeros(2, 3, dtype=torch.float64),
            r"float64\[2, 3\][\s\S]*float32\[any, 3\][\s\S]*x.to\(torch.float32\)",
        ),
        (torch.zeros(2, 3, dtype=torch.float16), "nothing is cast silently"),
        (torch.zeros(2, 4), "only the number of samples is free"),
        (torch.zeros(3), "only the number of samples"),
        (torch.tensor(1.0), "only the number of samples"),
        (torch.zeros(2, 3, 1), "only the number of samples"),
        (torch.zeros(2, 3).to_sparse(), "to_dense"),
        (torch.zeros(2, 3, device="meta"), r"on meta[\s\S]*x.to\('cpu'\)"),
    ],
)
def test_another_input_is_refused_with_what_to_do(tensor: torch.Tensor, message: str) -> None:
    check = InputCheck(TensorPlan("x", "float32", (None, 3), 0), CPU)
    with pytest.raises(BatchError, match=message):
        check(tensor)


def test_the_number_of_samples_is_read_from_the_axis() -> None:
    assert InputCheck(TensorPlan("x", "float32", (None, 3), 0), CPU)(torch.zeros(7, 3)) == 7
    assert InputCheck(TensorPlan("x", "float32", (3, None), 1), CPU)(torch.zeros(3, 5)) == 5
    assert InputCheck(TensorPlan("x", "float32", (3, 2), None), CPU)(torch.zeros(3, 2)) is None
    assert InputCheck(TensorPlan("x", "float32", (None, 9), 0), CPU, {1})(torch.zeros(4, 2)) == 4
