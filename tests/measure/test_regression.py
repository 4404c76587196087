"""Mean absolute and root mean squared error against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, mean_squared_error, root_mean_squared_error

from evalmode.errors import BatchError
from evalmode.measure.catalog import METRICS
from evalmode.measure.mean_absolute_error import absolute_error_per_sample
from evalmode.measure.root_mean_squared_error import squared_error_per_sample
from evalmode.measure.summary import metric_record

BOTH = [absolute_error_per_sample, squared_error_per_sample]


def figure(name, outputs, target):
    metric = METRICS[name]
    return metric_record(metric, metric.per_sample(outputs, target).numpy()).value


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_agree_with_scikit_learn_for_one_output(seed, samples):
    outputs, target = np.random.default_rng(seed).standard_normal((2, samples))
    ours = [figure(name, torch.tensor(outputs), torch.tensor(target)) for name in METRICS if name.endswith("error")]
    assert ours == [
        pytest.approx(mean_absolute_error(target, outputs), rel=1e-12),
        pytest.approx(root_mean_squared_error(target, outputs), rel=1e-12),
    ]


def test_several_outputs_are_pooled():
    outputs, target = np.random.default_rng(3).standard_normal((2, 20, 4))
    pair = torch.tensor(outputs), torch.tensor(target)
    assert figure("mean absolute error", *pair) == pytest.approx(mean_absolute_error(target, outputs), rel=1e-12)
    pooled = math.sqrt(mean_squared_error(target, outputs))
    assert figure("root mean squared error", *pair) == pytest.approx(pooled, rel=1e-12)


@pytest.mark.parametrize("per_sample", BOTH)
def test_a_column_and_a_row_are_never_broadcast_against_each_other(per_sample):
    values = per_sample(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 3.0]))
    assert values.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("per_sample", BOTH)
@pytest.mark.parametrize("width", [1, 3, 1000, 70_000])
def test_a_sample_has_the_same_bits_alone_and_in_a_batch(per_sample, width):
    generator = torch.Generator().manual_seed(width)
    outputs, target = torch.randn(2, 5, width, generator=generator)
    alone = torch.cat([per_sample(outputs[i : i + 1], target[i : i + 1]) for i in range(5)])
    strided = per_sample(outputs.t().contiguous().t(), target)
    assert torch.equal(per_sample(outputs, target), alone)
    assert torch.equal(strided, alone)


@pytest.mark.parametrize("per_sample", BOTH)
@pytest.mark.parametrize(
    ("outputs", "target", "words"),
    [
        (torch.zeros(3, 2), torch.zeros(3), r"shape \(3, 2\) against a target of shape \(3,\)"),
        (torch.zeros(3), torch.zeros(2), "3 outputs"),
        (torch.tensor([1.0, torch.nan]), torch.zeros(2), "outputs are NaN in 1 of 2 samples"),
        (torch.zeros(2), torch.tensor([1.0, torch.nan]), "targets are NaN"),
        (torch.zeros(2, dtype=torch.complex64), torch.zeros(2), "real-valued"),
    ],
)
def test_what_does_not_fit_is_said(per_sample, outputs, target, words):
    with pytest.raises(BatchError, match=words):
        per_sample(outputs, target)
