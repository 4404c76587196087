"""Root mean squared error: how far a regression is off, with large errors weighing more.

What it does
------------
The squared difference of output and target, averaged over a sample's own elements, then over samples; then the
square root of that mean.

Why it matters
--------------
It reads in the unit of the target and it is what least squares minimises.

Example
-------
    >>> import torch
    >>> squared_error_per_sample(torch.tensor([2.0, 5.0]), torch.tensor([1.0, 5.0]))
    tensor([1., 0.], dtype=torch.float64)

Use instead
-----------
Mean absolute error where outliers are not the point.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing.

Limits
------
For several outputs it is the root of the pooled mean; scikit-learn averages the roots of each output instead.

Source
------
sklearn.metrics.root_mean_squared_error for one output.
"""

from __future__ import annotations

from torch import Tensor

from evalmode.measure.mean_absolute_error import mean_of_each_sample
from evalmode.measure.metric import Aggregate, Metric, equal_length, same_shape

__all__ = ["ROOT_MEAN_SQUARED_ERROR", "squared_error_per_sample"]


def squared_error_per_sample(outputs: Tensor, target: Tensor) -> Tensor:
    """Each sample's mean squared error.

    Shapes: outputs and target `(N, ...)`, equal; `(N, 1)` and `(N,)` meet; gives `(N,)` float64. Units: the target's,
    squared.

    Raises:
        BatchError: shapes or lengths differ, or a value is NaN.
    """
    equal_length(outputs, target, metric="root mean squared error")
    wide, wanted = same_shape(outputs, target, metric="root mean squared error")
    return mean_of_each_sample((wide - wanted).square())


ROOT_MEAN_SQUARED_ERROR = Metric(
    "root mean squared error", squared_error_per_sample, Aggregate.ROOT_MEAN, higher_is_better=False, least=0.0
)
