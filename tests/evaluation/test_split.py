"""Inputs and target of a batch."""

from collections import UserDict
from typing import NamedTuple

import pytest
import torch

from evalmode.errors import TaskError
from evalmode.evaluation.split import checked_split, default_split


class Pair(NamedTuple):
    image: int
    label: int


@pytest.mark.parametrize("batch", [(1, 2), [1, 2], Pair(1, 2)])
def test_a_batch_of_two_is_inputs_and_target(batch):
    assert default_split(batch)[:2] == (1, 2)


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target"])
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_target_key_is_split_off_and_the_batch_left_alone(key, kind):
    batch = kind({"input_ids": 1, key: 2, "mask": 3})
    inputs, target, said = default_split(batch)
    assert (inputs, target) == ({"input_ids": 1, "mask": 3}, 2)
    assert repr(key) in said
    assert key in batch


@pytest.mark.parametrize("batch", [(1, 2, 3), (1,), torch.zeros(4), {"x": 1}, {"label": 1, "labels": 2}, "text", None])
def test_anything_else_is_an_error_that_shows_a_split(batch):
    with pytest.raises(TaskError) as caught:
        default_split(batch)
    assert caught.value.fix.startswith("def split(batch):")


def test_what_the_users_split_returns_is_checked():
    assert checked_split(lambda batch: [batch, 1], 0) == (0, 1)
    for wrong in (lambda batch: None, lambda batch: (1, 2, 3), lambda batch: torch.zeros(2)):
        with pytest.raises(TaskError, match="split\\(batch\\) returned"):
            checked_split(wrong, 0)
