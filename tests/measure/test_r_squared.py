"""R² against scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from evalmode.errors import BatchError, UndefinedFigureError
from evalmode.measure.catalog import metric_named

R_SQUARED = metric_named("r2")


def figure(outputs, target):
    return R_SQUARED.figure(R_SQUARED.per_sample(outputs, target).numpy())


@given(st.integers(0, 1000), st.integers(2, 40), st.integers(1, 4), st.sampled_from([0.0, 1e6]))
def test_is_that_of_scikit_learn(seed, size, quantities, offset):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(size, quantities, generator=generator, dtype=torch.float64) + offset
    outputs = target + torch.randn(size, quantities, generator=generator, dtype=torch.float64)
    assume(len(target.unique()) > 1)
    assert figure(outputs, target) == pytest.approx(r2_score(target, outputs), rel=1e-7)
    weights = np.random.default_rng(seed).integers(0, 3, (1, size))
    rows = R_SQUARED.per_sample(outputs, target).numpy()
    repeated = np.repeat(rows, weights[0], axis=0)
    assume(len(repeated) > 1 and len(np.unique(repeated[:, -1])) > 1)
    assert R_SQUARED.resampled(rows, weights)[0] == pytest.approx(R_SQUARED.figure(repeated), rel=1e-5)


def test_perfect_and_mean_answers():
    target = torch.tensor([1.0, 2.0, 6.0])
    assert figure(target[:, None], target) == 1.0
    assert figure(torch.full((3,), 3.0), target) == 0.0


def test_shapes_of_a_samples_own_count_as_quantities():
    target = torch.arange(12.0).reshape(3, 2, 2)
    assert R_SQUARED.per_sample(target + 1, target).shape == (3, 8)


def test_equal_targets_are_refused():
    for size in (1, 5):
        with pytest.raises(UndefinedFigureError, match="targets are all 2"):
            figure(torch.arange(float(size)), torch.full((size,), 2.0))
    with pytest.raises(BatchError):
        figure(torch.zeros(3, 2), torch.zeros(3))
