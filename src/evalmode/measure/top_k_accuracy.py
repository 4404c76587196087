"""Top-k accuracy: the share of samples whose class is among the k highest scores.

What it does
------------
A sample counts where fewer than k classes have a higher score than its own class. `top 5 accuracy` is in the
catalog; any other k is asked for by name, as in `top 3 accuracy`.

Why it matters
--------------
It tells near misses among many classes from answers that are far off, and it is a count: its interval is exact.

Example
-------
    >>> import torch
    >>> top_k_accuracy(2).per_sample(torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.2, 0.0]]), torch.tensor([2, 2]))
    tensor([ True, False])

Use instead
-----------
Accuracy where one answer is given; log loss where the whole ranking counts.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing.

Limits
------
Of equal scores the class with the lower index ranks first, as for `accuracy`, so that k classes count and no more;
scikit-learn ranks the higher index first. With k of at least the number of classes every sample counts.

Source
------
sklearn.metrics.top_k_accuracy_score, whose figures it reproduces where no scores tie.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalmode.errors import TaskError
from evalmode.measure.metric import Aggregate, Metric, class_indices, class_scores, equal_length

__all__ = ["TOP_5_ACCURACY", "top_k_accuracy"]


def top_k_accuracy(k: int) -> Metric:
    """The metric `top k accuracy` for one k.

    Raises:
        TaskError: k is below 1.

    Example:
        >>> top_k_accuracy(3).name
        'top 3 accuracy'
    """
    if k < 1:
        raise TaskError(f"top {k} accuracy", expected="k of at least 1", fix="metrics = ['top 5 accuracy']")
    name = f"top {k} accuracy"

    def per_sample(outputs: Tensor, target: Tensor) -> Tensor:
        """Whether each sample's class is among its k highest scores.

        Shapes: outputs `(N, C)`; target `(N,)` or `(N, 1)`; gives `(N,)` booleans.

        Raises:
            BatchError: shapes or lengths do not fit, a class index is out of range, a score is NaN.
        """
        equal_length(outputs, target, metric=name)
        scores = class_scores(outputs, metric=name)
        indices = class_indices(target, classes=scores.shape[1], metric=name)
        own = scores.gather(1, indices[:, None])
        earlier = torch.arange(scores.shape[1])[None, :] < indices[:, None]
        ahead = (scores > own) | ((scores == own) & earlier)
        return ahead.sum(1) < k

    return Metric(name, per_sample, Aggregate.PROPORTION, higher_is_better=True)


TOP_5_ACCURACY = top_k_accuracy(5)
