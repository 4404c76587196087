"""Rows of tensors that are not plain, against the same rows picked from their dense form."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evalmode.observe.batching import find_batch_axis, select_samples
from evalmode.observe.layouts import dense_parts, is_plain, picked_rows, replaced_rows, through_dense
from evalmode.observe.tree import same_bits, tensor_bytes

pytestmark = pytest.mark.filterwarnings("ignore:.*(beta|prototype|deprecated)")

DENSE = torch.arange(24.0).reshape(6, 4) - 7


def ragged(layout):
    return torch.nested.nested_tensor([torch.full((n + 1, 3), float(n)) for n in range(4)], layout=layout)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch calls these layouts a beta
    LAYOUTS = {
        "coo": DENSE.to_sparse(),
        "csr": DENSE.to_sparse_csr(),
        "csc": DENSE.to_sparse_csc(),
        "mkldnn": DENSE.to_mkldnn(),
        "quantised": torch.quantize_per_tensor(DENSE, 1.0, 10, torch.quint8),
        "transposed": DENSE.t().contiguous().t(),
        "uint16": (DENSE + 7).to(torch.uint16),
        "float8": DENSE.to(torch.float8_e5m2),
    }


@pytest.mark.parametrize("name", LAYOUTS)
@given(positions=st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_picked_rows_are_those_of_the_dense_form_in_the_same_layout(name, positions):
    tensor = LAYOUTS[name]
    picked = picked_rows(tensor, 0, positions)
    assert picked.layout == tensor.layout
    assert picked.dtype == tensor.dtype
    (whole,), (rows,) = dense_parts(tensor), dense_parts(picked)
    assert [row.tolist() for row in rows.to(torch.float32)] == [
        whole.to(torch.float32)[at].tolist() for at in positions
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_replaced_rows_leave_the_others_as_they_are(name):
    tensor = LAYOUTS[name]
    replaced = replaced_rows(tensor, 0, [1, 4], lambda rows: rows * 0 + 2)
    (before,), (after,) = (dense_parts(one) for one in (tensor, replaced))
    assert replaced.layout == tensor.layout
    assert same_bits(before[[0, 2, 3, 5]], after[[0, 2, 3, 5]])
    assert not same_bits(before[[1, 4]], after[[1, 4]])


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_is_one_dense_tensor_a_sample(layout):
    tensor = ragged(layout)
    axis = find_batch_axis(tensor)
    assert axis.size == 4
    picked = select_samples(tensor, axis, [3, 0])
    assert [part.tolist() for part in dense_parts(picked)] == [[[3.0] * 3] * 4, [[0.0] * 3]]
    assert [len(part) for part in dense_parts(through_dense(lambda part: part + 1, tensor))] == [1, 2, 3, 4]
    assert same_bits(tensor, ragged(layout))
    assert not same_bits(tensor, picked)
    assert tensor_bytes(tensor) == b"".join(tensor_bytes(part) for part in dense_parts(tensor))


def test_what_has_no_numbers_has_no_parts():
    assert dense_parts(torch.empty(3, device="meta")) == []
    assert not is_plain(torch.empty(3, device="meta"))


def test_block_sparse_tensors_are_not_divided_and_the_reason_is_said():
    assert (
        find_batch_axis(DENSE.to_sparse_bsr((2, 2)))
        == "it holds a block-sparse tensor, which cannot be divided into samples"
    )
