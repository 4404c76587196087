"""What a model gives counts as numbers, however it holds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import evalmode
from evalmode.observe.values import value_leaves


@given(st.lists(st.floats(allow_nan=False), max_size=6), st.integers(-(2**40), 2**40), st.booleans())
def test_every_number_is_found_once(numbers, count, flag):
    found = dict(value_leaves({"list": numbers, "array": np.array(numbers), "mixed": (torch.ones(1), count, flag)}))
    expected = {"['array']", "['mixed'][0]", "['mixed'][1]", "['mixed'][2]"} | ({"['list']"} if numbers else set())
    assert found.keys() == expected
    assert found["['array']"].tolist() == found.get("['list']", torch.zeros(0)).tolist() == numbers
    assert (int(found["['mixed'][1]"]), bool(found["['mixed'][2]"])) == (count, flag)


def test_what_is_no_number_is_passed_over():
    odd = ["a", None, 10**30, np.array(["b"]), np.array([1 + 2j], dtype=np.clongdouble), object()]
    assert value_leaves({"x": odd}) == []


class Giving(nn.Module):
    def __init__(self, give, center):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.give, self.center = give, center

    def forward(self, x):
        y = self.linear(x)
        return self.give(y - y.amax(0) if self.center else y)


GIVEN = {
    "array": lambda y: y.numpy(),
    "lists": lambda y: y.tolist(),
    "numbers": lambda y: {"scores": [float(row.sum()) for row in y]},
}


@pytest.mark.parametrize("name", GIVEN)
def test_numbers_outside_of_tensors_are_compared(name):
    batch = torch.randn(6, 4)
    clean = evalmode.check(Giving(GIVEN[name], center=False).eval(), batch)
    assert {result.verdict.value for result in clean.certificate.clauses} == {"kept"}
    report = evalmode.check(Giving(GIVEN[name], center=True).eval(), batch)
    assert [found.code for found in report.findings] == ["EM171"]
