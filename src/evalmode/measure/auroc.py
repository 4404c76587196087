"""AUROC: the chance that a sample of the class is scored above one that is not.

What it does
------------
Of all pairs of a positive and a negative sample, the share that the scores put in order; a tie counts one half. One
score per sample, logit or probability, ranks as it is; of two class scores their difference ranks; of three or more
classes it is the mean over the classes, each against the rest, ranked by the softmax of the logits
(`AUROC of probabilities`: by the probabilities as they are).

Why it matters
--------------
It judges the ranking alone: no threshold, no calibration and no share of positives enters.

Example
-------
    >>> import torch
    >>> rows = auroc_rows(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    >>> AUROC.figure(rows.numpy())
    0.75

Use instead
-----------
Average precision where positives are rare and the top of the ranking is what is used.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing.

Limits
------
With targets of one class alone it is undefined, and refused (scikit-learn warns and gives NaN). A class of several
that does not occur is left out of the mean. Where every pair is in order, the interval is that of as many disjoint
pairs as there are samples of the rarer class.

Source
------
Hanley and McNeil, "The meaning and use of the area under a ROC curve", Radiology 143 (1982);
sklearn.metrics.roc_auc_score (multi_class="ovr", average="macro"), whose figures it reproduces.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evalmode.measure.metric import Aggregate, Metric
from evalmode.measure.ranks import RankStatistic, ranked, ranked_probabilities

__all__ = ["AUROC", "AUROC_OF_PROBABILITIES", "auroc_of_probabilities_rows", "auroc_rows"]


def auroc_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """Each sample's scores and, last, its target.

    Shapes: outputs `(N,)`, `(N, 1)` or `(N, C)`; target `(N,)` or `(N, 1)`; gives `(N, 2)`, from three classes on
    `(N, C + 1)`, float64.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a score is NaN.
    """
    return ranked(outputs, target, metric="AUROC")


def auroc_of_probabilities_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """Each sample's probabilities and, last, its target.

    Shapes: outputs `(N, C)`, rows that sum to 1; target `(N,)` or `(N, 1)`; gives `(N, 2)`, from three classes on
    `(N, C + 1)`, float64.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a row is no distribution.
    """
    return ranked_probabilities(outputs, target, metric="AUROC of probabilities")


def _exact(above: NDArray[np.int64], below: NDArray[np.int64]) -> float:
    pairs = int(above.sum()) * int(below.sum())
    twice = int((above * (2 * np.cumsum(below) - below)).sum())  # below 2^63 up to four thousand million samples
    return twice / (2 * pairs) if pairs else float("nan")


def _many(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    ordered = np.einsum("rt,rt->r", above, np.cumsum(below, axis=1) - below / 2)
    return np.asarray(ordered / (above.sum(1) * below.sum(1)), np.float64)


_STATISTIC = RankStatistic("AUROC", _exact, _many, pairs=True)
AUROC = Metric("AUROC", auroc_rows, Aggregate.STATISTIC, True, _STATISTIC, least=0.0, most=1.0)
AUROC_OF_PROBABILITIES = Metric(
    "AUROC of probabilities", auroc_of_probabilities_rows, Aggregate.STATISTIC, True, _STATISTIC, least=0.0, most=1.0
)
