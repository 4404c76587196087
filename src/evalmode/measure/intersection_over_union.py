"""Mean IoU: how far answered and true areas of each class coincide, averaged over the classes.

What it does
------------
Of each class the places (pixels, voxels) that have it both in answer and target, over those that have it in either,
both summed over all samples; then the mean over the classes. `binary IoU` is that of class 1 of two. Answers are taken
from class scores `(N, C, ...)`, from one logit per place, or from class indices; of these nobody can tell how many
classes there are, so that more than two are named: `mean IoU of 21 classes`.

Why it matters
--------------
A small object that is missed costs as much as a large one; the large background does not hide it.

Example
-------
    >>> import torch
    >>> rows = intersection_over_union_rows(torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 0, 0, 0]]))
    >>> round(MEAN_IOU.figure(rows.numpy()), 4)
    0.5833

Use instead
-----------
Dice where areas are small and the field states it; a mean over images needs a function of one's own.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing.

Limits
------
Places whose target is -100, or 255 where there are fewer than 256 classes, are left out of both answer and target.
A class in no target and no answer is left out of the mean. The areas of all samples are pooled, so that large images
weigh more. The interval resamples whole images.

Source
------
Everingham et al., "The PASCAL visual object classes challenge", Int. J. Comput. Vis. 111 (2015), section 4.3;
sklearn.metrics.jaccard_score over all places, whose figures it reproduces.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalmode.errors import TaskError
from evalmode.measure.masks import Overlaps, mean_of_ratios, overlaps
from evalmode.measure.metric import Metric, share_of_decisions
from evalmode.measure.sums import SumStatistic

__all__ = [
    "BINARY_IOU",
    "MEAN_IOU",
    "foreground_intersection_over_union_rows",
    "intersection_over_union_of_classes",
    "intersection_over_union_rows",
]


def intersection_over_union_rows(outputs: Tensor, target: Tensor, *, classes: int | None = None) -> Tensor:
    """Each sample's intersection and union, by class.

    Shapes: target `(N, ...)` class indices; outputs `(N, C, ...)` scores, or of the target's shape: a logit per place,
    or class indices (of `classes`, two where it is None); gives `(N, 2 C)` float64. Units: places.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a score is NaN.
    """
    name = "mean IoU" if classes is None else f"mean IoU of {classes} classes"
    return torch.from_numpy(np.concatenate(_parts(overlaps(outputs, target, metric=name, classes=classes)), axis=1))


def foreground_intersection_over_union_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """Each sample's intersection and union, of class 1 of two.

    Shapes: target `(N, ...)` of 0 and 1; outputs `(N, 2, ...)` scores, or of the target's shape; gives `(N, 2)`
    float64. Units: places.

    Raises:
        BatchError: shapes or lengths do not fit, there are more than two classes, a score is NaN.
    """
    parts = _parts(overlaps(outputs, target, metric="binary IoU", classes=2))
    return torch.from_numpy(np.stack([part[:, 1] for part in parts], axis=1))


def intersection_over_union_of_classes(classes: int) -> Metric:
    """The metric for answers that are class indices, of which nobody can tell how many classes there are.

    Raises:
        TaskError: there are fewer than two classes.

    Example:
        >>> intersection_over_union_of_classes(21).name
        'mean IoU of 21 classes'
    """
    if classes < 2:
        raise TaskError(f"mean IoU of {classes} classes", expected="at least 2 classes")
    name = f"mean IoU of {classes} classes"

    def per_sample(outputs: Tensor, target: Tensor) -> Tensor:
        """As `intersection_over_union_rows`, of a known number of classes."""
        return intersection_over_union_rows(outputs, target, classes=classes)

    return share_of_decisions(name, per_sample, _STATISTIC)


def _parts(found: Overlaps) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intersections and unions."""
    return found.both, found.answered + found.wanted - found.both


_STATISTIC = SumStatistic(
    "mean IoU", mean_of_ratios, "no place counts: every target is one to ignore", "a place with a class"
)
MEAN_IOU = share_of_decisions("mean IoU", intersection_over_union_rows, _STATISTIC)
BINARY_IOU = share_of_decisions(
    "binary IoU",
    foreground_intersection_over_union_rows,
    SumStatistic("binary IoU", mean_of_ratios, "class 1 is in no target and no answer", "a place of class 1"),
)
