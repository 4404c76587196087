"""Metrics by name, and what every one of them promises."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evalmode.errors import BatchError, TaskError
from evalmode.measure.catalog import METRICS, metric_named
from evalmode.measure.metric import Aggregate
from evalmode.page import read_page


def example(name):
    generator = torch.Generator().manual_seed(0)
    one, many = torch.randn(12, generator=generator), torch.randn(12, 4, generator=generator)
    labels = torch.arange(12)
    return {
        "accuracy": (many, labels % 4),
        "binary accuracy": (one, labels % 2),
        "log loss": (many, labels % 4),
        "binary log loss": (one, labels % 2),
        "log loss of probabilities": (many.softmax(1), labels % 4),
        "mean absolute error": (one, one.flip(0)),
        "root mean squared error": (one, one.flip(0)),
    }[name]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_gives_one_value_per_sample_and_leaves_its_arguments(name):
    metric, (outputs, target) = METRICS[name], example(name)
    kept = outputs.clone(), target.clone()
    values = metric.per_sample(outputs, target)
    assert values.shape == (12,)
    assert values.dtype is (torch.bool if metric.aggregate is Aggregate.PROPORTION else torch.float64)
    assert torch.equal(outputs, kept[0]) and torch.equal(target, kept[1])
    parts = [metric.per_sample(o, t) for o, t in zip(outputs.split(5), target.split(5), strict=True)]
    assert torch.equal(values, torch.cat(parts))


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_samples_bits_do_not_depend_on_how_the_data_is_cut(name, data):
    metric, (outputs, target) = METRICS[name], example(name)
    repeats = data.draw(st.integers(1, 40), label="repeats")
    generator = torch.Generator().manual_seed(repeats)
    outputs, target = (torch.cat([x] * repeats) for x in (outputs, target))
    if "probabilities" not in name:
        outputs = outputs + torch.randn(outputs.shape, generator=generator)
    whole = metric.per_sample(outputs, target)
    start, parts = 0, []
    while start < len(outputs):
        length = data.draw(st.integers(1, 70), label="length")
        parts.append(metric.per_sample(outputs[start : start + length], target[start : start + length]))
        start += length
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_a_page(name):
    page = read_page(Path(sys.modules[METRICS[name].per_sample.__module__].__file__))
    assert ">>>" in page.sections["Example"]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_refuses_nan_and_unequal_lengths(name):
    metric, (outputs, target) = METRICS[name], example(name)
    with pytest.raises(BatchError):
        metric.per_sample(outputs, target[:5])
    spoilt = outputs.clone()
    spoilt[3] = torch.nan
    with pytest.raises(BatchError, match=r"1 of 12 samples \(first: 3\)"):
        metric.per_sample(spoilt, target)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_takes_outputs_with_a_graph(name):
    outputs, target = example(name)
    assert not METRICS[name].per_sample(outputs.requires_grad_(), target).requires_grad


@pytest.mark.parametrize(("typed", "name"), [("Log_Loss", "log loss"), ("mean-absolute-error", "mean absolute error")])
def test_spelling_does_not_matter(typed, name):
    assert metric_named(typed).name == name


@pytest.mark.parametrize(
    ("typed", "near"), [("acuracy", "'accuracy'"), ("rmse", "'root mean squared error'"), ("zzz", "or a function")]
)
def test_an_unknown_name_suggests_the_nearest(typed, near):
    with pytest.raises(TaskError) as caught:
        metric_named(typed)
    assert near in caught.value.fix
    assert "log loss" in caught.value.expected
