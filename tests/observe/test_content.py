from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evalmode.observe.content import content_digest, held_tensors

VALUES = st.recursive(
    st.integers() | st.booleans() | st.text() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_a_digest_is_equal_exactly_for_equal_content(first: Any, second: Any) -> None:
    assert (content_digest(first) == content_digest(second)) == (repr(first) == repr(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.zeros(2), torch.tensor([0.0, -0.0])),
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        ([torch.zeros(2)], [torch.ones(2)]),
        (SimpleNamespace(a=1), SimpleNamespace(a=2)),
        ({1, 2}, {1, 3}),
    ],
)
def test_other_content_has_another_digest(first: Any, second: Any) -> None:
    assert content_digest(first) != content_digest(second)


def test_the_order_of_a_set_does_not_count() -> None:
    assert content_digest({"a", "b", "c"}) == content_digest({"c", "b", "a"})


def test_tensors_are_found_in_containers_and_objects() -> None:
    one, two, three = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    held = held_tensors({"a": [one], "b": SimpleNamespace(c=(two,)), "d": deque([three])})
    assert [id(tensor) for tensor in held] == [id(one), id(two), id(three)]
