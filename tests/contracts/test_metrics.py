"""What every metric of the catalog promises: exact figures, the same bits for any cut and order of the data."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evalmode.errors import BatchError, UndefinedFigureError
from evalmode.measure.catalog import METRICS
from evalmode.measure.metric import Aggregate
from evalmode.measure.summary import metric_record
from evalmode.page import read_page

MASKS = {"mean IoU", "binary IoU", "Dice", "binary Dice"}
TOKENS = {"token loss", "perplexity", "token accuracy"}
REGRESSION = {"mean absolute error", "root mean squared error", "R\u00b2"}


def data(name, size, seed=0, *, classes=4):
    """Outputs and target that fit a metric; scores are coarse, so that they tie."""
    torch.manual_seed(seed)
    wide = torch.randn(size, classes).mul(4).round().div(4)
    one = torch.randn(size).mul(4).round().div(4)
    labels = (torch.arange(size) + seed) % classes
    if name in REGRESSION:
        return one, torch.randn(size)
    if name in MASKS:
        channels = 2 if "binary" in name else 3
        target = torch.randint(0, channels, (size, 3, 5))
        target[torch.rand(size, 3, 5) < 0.1] = 255
        return torch.randn(size, channels, 3, 5), target
    if name in TOKENS:
        target = torch.randint(0, classes, (size, 6))
        target[torch.rand(size, 6) < 0.3] = -100
        return torch.randn(size, 6, classes), target
    if "binary" in name:
        return (one.sigmoid() if "probabilities" in name else one), labels % 2
    return (wide.softmax(1) if "probabilities" in name else wide), labels


def figure_or_why(metric, rows):
    try:
        return metric.figure(rows)
    except UndefinedFigureError as error:
        return type(error)


def cut(total, lengths):
    """Slices of the given lengths in turn, until all is covered."""
    start, parts = 0, []
    while start < total:
        stop = start + lengths[len(parts) % len(lengths)]
        parts.append(slice(start, stop))
        start = stop
    return parts


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(1, 120),
    seed=st.integers(0, 1000),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_bits_do_not_depend_on_batches_or_order(name, size, seed, lengths, shuffle):
    metric, (outputs, target) = METRICS[name], data(name, size, seed)
    whole = metric.per_sample(outputs, target)
    parts = [metric.per_sample(outputs[part], target[part]) for part in cut(size, lengths)]
    assert torch.equal(whole, torch.cat(parts))
    order = shuffle.sample(range(size), size)
    elsewhere = metric.per_sample(outputs[order], target[order])
    assert torch.equal(whole[order], elsewhere)
    assert figure_or_why(metric, whole.numpy()) == figure_or_why(metric, elsewhere.numpy())


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 30), seed=st.integers(0, 1000))
def test_a_resampled_figure_is_the_figure_of_the_repeated_rows(name, size, seed):
    metric, (outputs, target) = METRICS[name], data(name, size, seed)
    rows = metric.per_sample(outputs, target).numpy()
    weights = np.random.default_rng(seed).integers(0, 3, (4, size))
    weights[0] = 1
    weights[:, 0] = weights[:, 0].clip(1)  # a resample is never empty
    for got, weight in zip(metric.resampled(rows, weights), weights, strict=True):
        expected = figure_or_why(metric, np.repeat(rows, weight, axis=0))
        assert (
            np.isnan(got) if expected is UndefinedFigureError else got == pytest.approx(expected, rel=1e-9, abs=1e-12)
        )


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("clustered", [False, True])
def test_the_whole_record_has_the_same_bits_in_any_order(name, clustered):
    metric, (outputs, target) = METRICS[name], data(name, 60)
    rows = metric.per_sample(outputs, target).numpy()
    clusters = np.arange(60) // 4 if clustered else None
    order = np.random.default_rng(1).permutation(60)
    record = metric_record(metric, rows, 0.9, clusters)
    assert metric_record(metric, rows[order], 0.9, None if clusters is None else clusters[order]) == record
    assert record.low < record.high, record.method
    assert record.low <= record.value <= record.high or "ECE" in name
    assert (record.total, record.confidence, record.name) == (60, 0.9, name)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_gives_one_row_per_sample_and_leaves_its_arguments(name):
    metric, (outputs, target) = METRICS[name], data(name, 12)
    kept = outputs.clone(), target.clone()
    rows = metric.per_sample(outputs, target)
    assert len(rows) == 12
    assert rows.ndim == (2 if metric.aggregate is Aggregate.STATISTIC else 1)
    assert rows.dtype is (torch.bool if metric.aggregate is Aggregate.PROPORTION else torch.float64)
    assert torch.equal(outputs, kept[0])
    assert torch.equal(target, kept[1])


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_which_side_is_better(name):
    metric, (outputs, target) = METRICS[name], data(name, 60)
    if name in REGRESSION:
        good, bad = target.clone(), target.flip(0) * 3
    elif name in MASKS | TOKENS:
        axis = 1 if name in MASKS else 2
        right = torch.nn.functional.one_hot(target.clamp(0, outputs.shape[axis] - 1) % outputs.shape[axis])
        right = right.movedim(-1, axis).double()
        good, bad = 9 * right, -9 * right
    elif outputs.ndim == 1:
        good, bad = (target.float(), 1 - target.float()) if "prob" in name else (18.0 * target - 9, 9 - 18.0 * target)
        good, bad = (good.clamp(0.01, 0.99), bad.clamp(0.01, 0.99)) if "prob" in name else (good, bad)
    else:
        right = torch.nn.functional.one_hot(target, 8).double()
        target_last = torch.nn.functional.one_hot(target + 4, 8).double()
        good, bad = 9 * right, 9 * target_last - 9 * right
        if "prob" in name:
            good, bad = good.softmax(1), bad.softmax(1)
    values = [metric.figure(metric.per_sample(answers, target).numpy()) for answers in (good, bad)]
    assert values[0] > values[1] if metric.higher_is_better else values[0] < values[1]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_a_page(name):
    page = read_page(Path(sys.modules[METRICS[name].per_sample.__module__].__file__))
    assert ">>>" in page.sections["Example"]
    shown = page.sections["What it does"] + page.title
    assert name in shown or name.replace("top 5", "top-k") in shown or "of probabilities" in name or name in REGRESSION


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_refuses_nan_and_unequal_lengths(name):
    metric, (outputs, target) = METRICS[name], data(name, 12)
    with pytest.raises(BatchError):
        metric.per_sample(outputs, target[:5])
    with pytest.raises(BatchError):
        metric.per_sample(outputs[:0], target[:0])
    spoilt = outputs.clone()
    spoilt[3] = torch.nan
    with pytest.raises(BatchError, match=r"1 of 12 samples \(first: 3\)"):
        metric.per_sample(spoilt, target)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_takes_outputs_with_a_graph_and_half_precision(name):
    metric, (outputs, target) = METRICS[name], data(name, 12)
    assert not metric.per_sample(outputs.requires_grad_(), target).requires_grad
    halved = metric.per_sample(outputs.detach().bfloat16(), target)
    assert halved.dtype in {torch.bool, torch.float64}


@pytest.mark.parametrize("name", METRICS)
def test_one_sample_gives_a_number_without_an_interval_or_a_clear_error(name):
    metric, (outputs, target) = METRICS[name], data(name, 1)
    rows = metric.per_sample(outputs, target).numpy()
    found = figure_or_why(metric, rows)
    if found is UndefinedFigureError:
        with pytest.raises(UndefinedFigureError, match="expected"):
            metric_record(metric, rows)
        return
    record = metric_record(metric, rows)
    assert np.isfinite(record.value)
    assert record.method == "Clopper-Pearson" or record.method.startswith("no interval: one sample")
