"""Log loss: how improbable the model held the right class, in nats.

What it does
------------
Minus the logarithm of the probability given to the target class, from logits in float64 (`log loss`), from one
logit per sample (`binary log loss`), or, only where it is asked for by name, from probabilities
(`log loss of probabilities`, `binary log loss of probabilities`).

Why it matters
--------------
It moves long before accuracy does, and it punishes a model that is wrong and sure.

Example
-------
    >>> import torch
    >>> log_loss_per_sample(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor([0.6931], dtype=torch.float64)

Use instead
-----------
Accuracy where only the answer counts.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing. Half-precision logits are widened before the logarithm.

Limits
------
Probabilities of exactly 0 give an infinite loss, which is said and never clipped. The mean is over samples, without
class weights.

Source
------
Good, "Rational decisions", J. R. Stat. Soc. B 14 (1952); sklearn.metrics.log_loss.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evalmode.measure.metric import Metric, class_indices, columns, equal_length
from evalmode.measure.probabilities import checked_probabilities, checked_share, finite_logits

__all__ = [
    "BINARY_LOG_LOSS",
    "BINARY_LOG_LOSS_OF_PROBABILITIES",
    "LOG_LOSS",
    "LOG_LOSS_OF_PROBABILITIES",
    "binary_log_loss_of_probabilities_per_sample",
    "binary_log_loss_per_sample",
    "log_loss_of_probabilities_per_sample",
    "log_loss_per_sample",
]


def log_loss_per_sample(logits: Tensor, target: Tensor) -> Tensor:
    """Each sample's log loss from unnormalised scores (logits).

    Shapes: logits `(N, C)`; target `(N,)` or `(N, 1)` class indices; gives `(N,)` float64. Units: nats.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a logit is NaN.
    """
    equal_length(logits, target, metric="log loss")
    rows = finite_logits(logits, metric="log loss")
    indices = class_indices(target, classes=rows.shape[1], metric="log loss")
    highest = rows.max(1)
    chosen = rows[np.arange(len(rows)), indices.numpy()]
    # Adding 0.0 turns the -0.0 of a certain answer into 0.0.
    return torch.from_numpy(np.log(np.exp(rows - highest[:, None]).sum(1)) - (chosen - highest) + 0.0)


def binary_log_loss_per_sample(logits: Tensor, target: Tensor) -> Tensor:
    """Each sample's log loss from one logit of the positive class.

    Shapes: logits `(N,)` or `(N, 1)`; target the same, of 0 and 1; gives `(N,)` float64. Units: nats.

    Raises:
        BatchError: shapes or lengths do not fit, a target is neither 0 nor 1, a logit is NaN.
    """
    equal_length(logits, target, metric="binary log loss")
    scores = columns(logits, metric="binary log loss", what="logits")
    positive = class_indices(target, classes=2, metric="binary log loss").bool()
    towards_wrong = torch.where(positive, -scores, scores)
    return torch.from_numpy(np.logaddexp(towards_wrong.numpy(), 0.0))


def log_loss_of_probabilities_per_sample(probabilities: Tensor, target: Tensor) -> Tensor:
    """Each sample's log loss from class probabilities.

    Shapes: probabilities `(N, C)`, rows that sum to 1; target `(N,)` or `(N, 1)` class indices; gives `(N,)` float64.
    Units: nats.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a row is no distribution.
    """
    name = "log loss of probabilities"
    equal_length(probabilities, target, metric=name)
    rows = checked_probabilities(probabilities, metric=name)
    indices = class_indices(target, classes=rows.shape[1], metric=name)
    with np.errstate(divide="ignore"):  # the true class at probability 0: an infinite loss, and rightly so
        return torch.from_numpy(-np.log(rows[np.arange(len(rows)), indices.numpy()]) + 0.0)


def binary_log_loss_of_probabilities_per_sample(probabilities: Tensor, target: Tensor) -> Tensor:
    """Each sample's log loss from the probability of the positive class.

    Shapes: probabilities `(N,)` or `(N, 1)`; target the same, of 0 and 1; gives `(N,)` float64. Units: nats.

    Raises:
        BatchError: shapes or lengths do not fit, a target is neither 0 nor 1, a number is outside 0 to 1.
    """
    name = "binary log loss of probabilities"
    equal_length(probabilities, target, metric=name)
    shares = checked_share(probabilities, metric=name)
    positive = class_indices(target, classes=2, metric=name).bool().numpy()
    with np.errstate(divide="ignore"):
        return torch.from_numpy(-np.where(positive, np.log(shares), np.log1p(-shares)) + 0.0)


LOG_LOSS = Metric("log loss", log_loss_per_sample, higher_is_better=False, least=0.0)
BINARY_LOG_LOSS = Metric("binary log loss", binary_log_loss_per_sample, higher_is_better=False, least=0.0)
LOG_LOSS_OF_PROBABILITIES = Metric(
    "log loss of probabilities", log_loss_of_probabilities_per_sample, higher_is_better=False, least=0.0
)
BINARY_LOG_LOSS_OF_PROBABILITIES = Metric(
    "binary log loss of probabilities", binary_log_loss_of_probabilities_per_sample, higher_is_better=False, least=0.0
)
