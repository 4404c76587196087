from __future__ import annotations

import dataclasses

import pytest

from evalmode.errors import UsageError
from evalmode.optimization.tolerance import Tolerance


@pytest.mark.parametrize("name", ["fp32", "task", " Task ", "FP32"])
def test_a_tolerance_is_named_or_given(name: str) -> None:
    found = Tolerance.of(name)
    assert found.kind == name.strip().lower()
    assert Tolerance.of(found) is found


def test_the_margins_are_those_of_the_contract() -> None:
    found = Tolerance.of("task")
    assert (found.decisions, found.metric_loss, found.confidence) == (0.02, 0.01, 0.95)


@pytest.mark.parametrize("wrong", ["fp16", "", None, 3])
def test_another_word_is_refused(wrong: object) -> None:
    with pytest.raises(UsageError, match="'fp32', 'task'"):
        Tolerance.of(wrong)


@pytest.mark.parametrize(
    ("margin", "value"),
    [
        ("multiple", 0.5),
        ("floor", -1),
        ("decisions", 1.5),
        ("metric_loss", -0.1),
        ("confidence", 1.0),
        ("confidence", 0.2),
        ("multiple", float("nan")),
        ("multiple", "4"),
        ("decisions", True),
    ],
)
def test_a_margin_out_of_range_is_refused_by_name(margin: str, value: object) -> None:
    with pytest.raises(UsageError, match=margin):
        Tolerance(**{margin: value})


def test_a_tolerance_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Tolerance().multiple = 9
