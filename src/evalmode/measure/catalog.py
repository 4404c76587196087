"""The metrics that can be asked for by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from types import MappingProxyType

from evalmode.errors import TaskError
from evalmode.measure.accuracy import ACCURACY, BINARY_ACCURACY, BINARY_ACCURACY_OF_PROBABILITIES
from evalmode.measure.auroc import AUROC, AUROC_OF_PROBABILITIES
from evalmode.measure.average_precision import AVERAGE_PRECISION, AVERAGE_PRECISION_OF_PROBABILITIES
from evalmode.measure.balanced_accuracy import (
    BALANCED_ACCURACY,
    BINARY_BALANCED_ACCURACY,
    BINARY_BALANCED_ACCURACY_OF_PROBABILITIES,
)
from evalmode.measure.brier_score import (
    BINARY_BRIER_SCORE,
    BINARY_BRIER_SCORE_OF_PROBABILITIES,
    BRIER_SCORE,
    BRIER_SCORE_OF_PROBABILITIES,
)
from evalmode.measure.dice import BINARY_DICE, DICE, dice_of_classes
from evalmode.measure.expected_calibration_error import (
    BINARY_ECE,
    BINARY_ECE_OF_PROBABILITIES,
    ECE,
    ECE_OF_PROBABILITIES,
)
from evalmode.measure.f1 import BINARY_F1, BINARY_F1_OF_PROBABILITIES, MACRO_F1, MICRO_F1, WEIGHTED_F1
from evalmode.measure.intersection_over_union import BINARY_IOU, MEAN_IOU, intersection_over_union_of_classes
from evalmode.measure.log_loss import (
    BINARY_LOG_LOSS,
    BINARY_LOG_LOSS_OF_PROBABILITIES,
    LOG_LOSS,
    LOG_LOSS_OF_PROBABILITIES,
)
from evalmode.measure.mean_absolute_error import MEAN_ABSOLUTE_ERROR
from evalmode.measure.metric import Metric
from evalmode.measure.perplexity import PERPLEXITY
from evalmode.measure.r_squared import R_SQUARED
from evalmode.measure.root_mean_squared_error import ROOT_MEAN_SQUARED_ERROR
from evalmode.measure.token_accuracy import TOKEN_ACCURACY
from evalmode.measure.token_loss import TOKEN_LOSS
from evalmode.measure.top_k_accuracy import TOP_5_ACCURACY, top_k_accuracy

__all__ = ["METRICS", "is_listed", "metric_named", "plain_name"]

METRICS = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            ACCURACY,
            BINARY_ACCURACY,
            BINARY_ACCURACY_OF_PROBABILITIES,
            TOP_5_ACCURACY,
            BALANCED_ACCURACY,
            BINARY_BALANCED_ACCURACY,
            BINARY_BALANCED_ACCURACY_OF_PROBABILITIES,
            BINARY_F1,
            BINARY_F1_OF_PROBABILITIES,
            MACRO_F1,
            MICRO_F1,
            WEIGHTED_F1,
            AUROC,
            AUROC_OF_PROBABILITIES,
            AVERAGE_PRECISION,
            AVERAGE_PRECISION_OF_PROBABILITIES,
            LOG_LOSS,
            BINARY_LOG_LOSS,
            LOG_LOSS_OF_PROBABILITIES,
            BINARY_LOG_LOSS_OF_PROBABILITIES,
            BRIER_SCORE,
            BINARY_BRIER_SCORE,
            BRIER_SCORE_OF_PROBABILITIES,
            BINARY_BRIER_SCORE_OF_PROBABILITIES,
            ECE,
            BINARY_ECE,
            ECE_OF_PROBABILITIES,
            BINARY_ECE_OF_PROBABILITIES,
            MEAN_ABSOLUTE_ERROR,
            ROOT_MEAN_SQUARED_ERROR,
            R_SQUARED,
            MEAN_IOU,
            BINARY_IOU,
            DICE,
            BINARY_DICE,
            TOKEN_LOSS,
            PERPLEXITY,
            TOKEN_ACCURACY,
        )
    }
)
"""Every metric by name."""

NUMBERED: tuple[tuple[str, Callable[[int], Metric]], ...] = (
    (r"top (\d+) accuracy", top_k_accuracy),
    (r"mean iou of (\d+) classes", intersection_over_union_of_classes),
    (r"dice of (\d+) classes", dice_of_classes),
)
"""Names with a number in them, and what makes their metric."""


def metric_named(name: str) -> Metric:
    """The metric of that name; case, hyphens and underscores do not count.

    Raises:
        TaskError: there is no such metric; the nearest name is suggested.

    Example:
        >>> metric_named("log_loss").name, metric_named("top 3 accuracy").name
        ('log loss', 'top 3 accuracy')
    """
    plain = plain_name(name)
    known = {plain_name(metric): metric for metric in METRICS}
    if plain in known:
        return METRICS[known[plain]]
    for pattern, make in NUMBERED:
        if match := re.fullmatch(pattern, plain):
            return make(int(match[1]))
    initials = {"".join(word[0] for word in other.split()): other for other in known}
    near = [initials[plain]] if plain in initials else difflib.get_close_matches(plain, known, n=1)
    if not near:
        near = [other for other in known if plain and plain in other.split()][:1]
    raise TaskError(
        f"there is no metric {name!r}",
        expected="one of " + ", ".join(METRICS),
        fix=f"did you mean {known[near[0]]!r}?" if near else "or a function (outputs, target) -> one value per sample",
    )


def is_listed(name: str) -> bool:
    """Whether there is a metric of that name.

    Example:
        >>> is_listed("accuracy"), is_listed("happiness")
        (True, False)
    """
    try:
        metric_named(name)
    except TaskError:
        return False
    return True


def plain_name(name: str) -> str:
    """A metric's name as it is looked up by: case, hyphens, underscores and raised digits do not count.

    Example:
        >>> plain_name("Log_Loss"), plain_name("R\u00b2")
        ('log loss', 'r2')
    """
    return " ".join(name.lower().replace("_", " ").replace("-", " ").replace("\u00b2", "2").split())
