"""Log loss: how improbable the model held the right class, in nats.

What it does
------------
Minus the logarithm of the probability given to the target class, from logits in float64 (`log loss`), from one
logit per sample (`binary log loss`), or, only where it is asked for by name, from probabilities
(`log loss of probabilities`).

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

from evalmode.errors import BatchError
from evalmode.measure.metric import Metric, class_indices, class_scores, columns, equal_length, first_samples

__all__ = [
    "BINARY_LOG_LOSS",
    "LOG_LOSS",
    "LOG_LOSS_OF_PROBABILITIES",
    "binary_log_loss_per_sample",
    "log_loss_of_probabilities_per_sample",
    "log_loss_per_sample",
]

PROBABILITY_SUM_TOLERANCE = 1e-2  # float16 and bfloat16 softmax rows are off 1 by up to about 4e-3


def log_loss_per_sample(logits: Tensor, target: Tensor) -> Tensor:
    """Each sample's log loss from unnormalised scores (logits).

    Shapes: logits `(N, C)`; target `(N,)` or `(N, 1)` class indices; gives `(N,)` float64. Units: nats.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a logit is NaN.
    """
    equal_length(logits, target, metric="log loss")
    scores = class_scores(logits, metric="log loss").double()
    if bool((bad := scores == torch.inf).any() or (bad := (scores == -torch.inf).all(1)).any()):
        raise BatchError(
            f"log loss: the logits leave no probabilities (Inf) in {first_samples(bad)}",
            expected="finite logits",
            fix="evalmode check TASK   # its clause `finite` points at the line",
            explain="finite",
        )
    indices = class_indices(target, classes=scores.shape[1], metric="log loss")
    # numpy, not torch: torch computes the last few elements of a tensor with other functions than the rest, so that a
    # sample's bits would depend on how many samples are beside it.
    rows = np.ascontiguousarray(scores.numpy())
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
    rows = class_scores(probabilities, metric=name).double()
    bad = (rows < 0).any(1) | ((rows.sum(1) - 1).abs() > PROBABILITY_SUM_TOLERANCE)
    if bool(bad.any()):
        raise BatchError(
            f"{name}: the outputs are no probabilities in {first_samples(bad)}",
            expected="rows of numbers from 0 to 1 that sum to 1",
            fix="for logits use metrics = ['log loss']",
        )
    indices = class_indices(target, classes=rows.shape[1], metric=name)
    with np.errstate(divide="ignore"):  # the true class at probability 0: an infinite loss, and rightly so
        return torch.from_numpy(-np.log(rows.gather(1, indices[:, None])[:, 0].numpy()) + 0.0)


LOG_LOSS = Metric("log loss", log_loss_per_sample, higher_is_better=False)
BINARY_LOG_LOSS = Metric("binary log loss", binary_log_loss_per_sample, higher_is_better=False)
LOG_LOSS_OF_PROBABILITIES = Metric(
    "log loss of probabilities", log_loss_of_probabilities_per_sample, higher_is_better=False
)
