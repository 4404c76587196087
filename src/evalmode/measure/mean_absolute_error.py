"""Mean absolute error: how far a regression is off, in the target's own unit.

What it does
------------
The absolute difference of output and target, averaged over a sample's own elements, then over samples.

Why it matters
--------------
It reads in the unit of the target and one outlier does not rule it.

Example
-------
    >>> import torch
    >>> absolute_error_per_sample(torch.tensor([2.0, 5.0]), torch.tensor([1.0, 5.0]))
    tensor([1., 0.], dtype=torch.float64)

Use instead
-----------
Root mean squared error where large errors cost more than their share.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing.

Limits
------
Outputs of several quantities are averaged as they are: scale them first where their units differ.

Source
------
sklearn.metrics.mean_absolute_error with multioutput="uniform_average".
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evalmode.measure.metric import Metric, equal_length, same_shape

__all__ = ["MEAN_ABSOLUTE_ERROR", "absolute_error_per_sample", "mean_of_each_sample"]


def mean_of_each_sample(values: Tensor) -> Tensor:
    """The mean over a sample's own elements, with bits that do not depend on the other samples.

    numpy adds up each row on its own; torch splits a lone long row over threads and would give it other bits.

    Shapes: `(N, ...)` float64 on the CPU; gives `(N,)`.
    """
    rows = np.ascontiguousarray(values.numpy().reshape(len(values), -1))
    if rows.shape[1] == 1:
        return torch.from_numpy(rows[:, 0].copy())
    return torch.tensor([row.sum() / row.size for row in rows], dtype=torch.float64)


def absolute_error_per_sample(outputs: Tensor, target: Tensor) -> Tensor:
    """Each sample's mean absolute error.

    Shapes: outputs and target `(N, ...)`, equal; `(N, 1)` and `(N,)` meet; gives `(N,)` float64. Units: the target's.

    Raises:
        BatchError: shapes or lengths differ, or a value is NaN.
    """
    equal_length(outputs, target, metric="mean absolute error")
    wide, wanted = same_shape(outputs, target, metric="mean absolute error")
    return mean_of_each_sample((wide - wanted).abs())


MEAN_ABSOLUTE_ERROR = Metric("mean absolute error", absolute_error_per_sample, higher_is_better=False, least=0.0)
