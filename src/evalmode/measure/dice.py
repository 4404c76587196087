"""Dice: the overlap of answered and true areas over their mean size, averaged over the classes.

What it does
------------
Of each class twice the places (pixels, voxels) that have it both in answer and target, over those of the answer plus
those of the target, each summed over all samples; then the mean over the classes, the background among them.
`binary Dice` is that of class 1 of two. Answers are taken from class scores `(N, C, ...)`, from one logit per place,
or from class indices; of these nobody can tell how many classes there are, so that more than two are named:
`Dice of 4 classes`.

Why it matters
--------------
It is the F1 of places, the figure that medical segmentation is stated in.

Example
-------
    >>> import torch
    >>> rows = foreground_dice_rows(torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 0, 0, 0]]))
    >>> round(BINARY_DICE.figure(rows.numpy()), 4)
    0.6667

Use instead
-----------
Mean IoU, which orders answers of one class alike but punishes bad ones more.

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
Dice, "Measures of the amount of ecologic association between species", Ecology 26 (1945); sklearn.metrics.f1_score
over all places, whose figures it reproduces.
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

__all__ = ["BINARY_DICE", "DICE", "dice_of_classes", "dice_rows", "foreground_dice_rows"]


def dice_rows(outputs: Tensor, target: Tensor, *, classes: int | None = None) -> Tensor:
    """Each sample's doubled intersection and summed areas, by class.

    Shapes: target `(N, ...)` class indices; outputs `(N, C, ...)` scores, or of the target's shape: a logit per place,
    or class indices (of `classes`, two where it is None); gives `(N, 2 C)` float64. Units: places.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a score is NaN.
    """
    name = "Dice" if classes is None else f"Dice of {classes} classes"
    return torch.from_numpy(np.concatenate(_parts(overlaps(outputs, target, metric=name, classes=classes)), axis=1))


def foreground_dice_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """Each sample's doubled intersection and summed areas, of class 1 of two.

    Shapes: target `(N, ...)` of 0 and 1; outputs `(N, 2, ...)` scores, or of the target's shape; gives `(N, 2)`
    float64. Units: places.

    Raises:
        BatchError: shapes or lengths do not fit, there are more than two classes, a score is NaN.
    """
    parts = _parts(overlaps(outputs, target, metric="binary Dice", classes=2))
    return torch.from_numpy(np.stack([part[:, 1] for part in parts], axis=1))


def dice_of_classes(classes: int) -> Metric:
    """The metric for answers that are class indices, of which nobody can tell how many classes there are.

    Raises:
        TaskError: there are fewer than two classes.

    Example:
        >>> dice_of_classes(21).name
        'Dice of 21 classes'
    """
    if classes < 2:
        raise TaskError(f"Dice of {classes} classes", expected="at least 2 classes")
    name = f"Dice of {classes} classes"

    def per_sample(outputs: Tensor, target: Tensor) -> Tensor:
        """As `dice_rows`, of a known number of classes."""
        return dice_rows(outputs, target, classes=classes)

    return share_of_decisions(name, per_sample, _STATISTIC)


def _parts(found: Overlaps) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Doubled intersections and summed areas."""
    return 2 * found.both, found.answered + found.wanted


_STATISTIC = SumStatistic(
    "Dice", mean_of_ratios, "no place counts: every target is one to ignore", "a place with a class"
)
DICE = share_of_decisions("Dice", dice_rows, _STATISTIC)
BINARY_DICE = share_of_decisions(
    "binary Dice",
    foreground_dice_rows,
    SumStatistic("binary Dice", mean_of_ratios, "class 1 is in no target and no answer", "a place of class 1"),
)
