from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BatchEncoding
from transformers.modeling_outputs import SequenceClassifierOutput

from evalmode.observe.tree import describe, leaves, map_tensors, same_bits, tensor_leaves


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Outputs:
    logits: torch.Tensor
    names: list[str]


ONE = torch.ones(2)


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        (ONE, [""]),
        ((ONE, [ONE, 3]), ["[0]", "[1][0]"]),
        ({"a": ONE, "b": {"c": ONE}}, ["['a']", "['b']['c']"]),
        (Pair(ONE, ONE), [".first", ".second"]),
        (Outputs(ONE, ["x"]), [".logits"]),
        ([Outputs(ONE, [])], ["[0].logits"]),
        (BatchEncoding({"ids": ONE}), ["['ids']"]),
        (SequenceClassifierOutput(logits=ONE), ["['logits']"]),
    ],
)
def test_containers_are_opened_and_rebuilt_with_their_types(tree: Any, paths: list[str]) -> None:
    assert [path for path, _ in tensor_leaves(tree)] == paths
    changed = map_tensors(lambda tensor: tensor + 1, tree)
    assert type(changed) is type(tree)
    assert all(leaf.eq(2).all() for _, leaf in tensor_leaves(changed))
    assert all(leaf.eq(1).all() for _, leaf in tensor_leaves(tree))
    assert len(leaves(changed)) == len(leaves(tree))


@given(st.lists(st.floats(width=32), min_size=1), st.lists(st.floats(width=32), min_size=1))
def test_same_bits_agrees_with_numpys_bytes(first: list[float], second: list[float]) -> None:
    one, other = (torch.tensor(values, dtype=torch.float32) for values in (first, second))
    expected = np.array(first, np.float32).tobytes() == np.array(second, np.float32).tobytes()
    assert same_bits(one, other) == expected
    assert same_bits(one, one.clone())


def test_bits_compare_across_strides_and_kinds() -> None:
    table = torch.randn(3, 4)
    assert same_bits(table.t(), table.t().contiguous())
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert not same_bits(torch.zeros(2), torch.zeros(3))
    assert same_bits(torch.zeros(0), torch.zeros(0))
    assert same_bits(torch.eye(2).to_sparse(), torch.eye(2).to_sparse())
    assert not same_bits(torch.tensor([1 + 2j]), torch.tensor([1 - 2j]))


def test_a_batch_is_described_by_its_shapes() -> None:
    assert describe((ONE, {"n": 3})) == "(float32[2], {'n': 3})"
