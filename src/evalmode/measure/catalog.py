"""The metrics that can be asked for by name."""

from __future__ import annotations

import difflib
from types import MappingProxyType

from evalmode.errors import TaskError
from evalmode.measure.accuracy import ACCURACY, BINARY_ACCURACY
from evalmode.measure.log_loss import BINARY_LOG_LOSS, LOG_LOSS, LOG_LOSS_OF_PROBABILITIES
from evalmode.measure.mean_absolute_error import MEAN_ABSOLUTE_ERROR
from evalmode.measure.metric import Metric
from evalmode.measure.root_mean_squared_error import ROOT_MEAN_SQUARED_ERROR

__all__ = ["METRICS", "metric_named"]

METRICS = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            ACCURACY,
            BINARY_ACCURACY,
            LOG_LOSS,
            BINARY_LOG_LOSS,
            LOG_LOSS_OF_PROBABILITIES,
            MEAN_ABSOLUTE_ERROR,
            ROOT_MEAN_SQUARED_ERROR,
        )
    }
)
"""Every metric by name."""


def metric_named(name: str) -> Metric:
    """The metric of that name; case, hyphens and underscores do not count.

    Raises:
        TaskError: there is no such metric; the nearest name is suggested.

    Example:
        >>> metric_named("log_loss").name
        'log loss'
    """
    plain = name.strip().lower().replace("_", " ").replace("-", " ")
    if plain in METRICS:
        return METRICS[plain]
    initials = {"".join(word[0] for word in known.split()): known for known in METRICS}
    near = [initials[plain]] if plain in initials else difflib.get_close_matches(plain, METRICS, n=1)
    raise TaskError(
        f"there is no metric {name!r}",
        expected="one of " + ", ".join(METRICS),
        fix=f"did you mean {near[0]!r}?" if near else "or a function (outputs, target) -> one value per sample",
    )
