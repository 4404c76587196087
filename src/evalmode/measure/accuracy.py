"""Accuracy: the share of samples whose answer is right.

What it does
------------
The answer is the class with the highest score (`accuracy`), the class index itself where the outputs are integers,
or, for one logit per sample, the positive class where the logit is above 0 (`binary accuracy`), or, only where it is
asked for by name, where a probability is above one half (`binary accuracy of probabilities`).

Why it matters
--------------
It is the figure most classification results are stated in, and it is a count: its interval is exact.

Example
-------
    >>> import torch
    >>> accuracy_per_sample(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    tensor([ True, False])

Use instead
-----------
Log loss where confidence matters; a per-class figure where classes are rare.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing.

Limits
------
Of equal highest scores the one that torch.argmax names counts. One answer per sample: for dense outputs
(segmentation, tokens) write a function that gives one value per sample.

Source
------
sklearn.metrics.accuracy_score, whose figures it reproduces.
"""

from __future__ import annotations

from torch import Tensor

from evalmode.measure.decisions import decided_binary_of_probabilities
from evalmode.measure.metric import Aggregate, Metric, class_indices, class_scores, columns, equal_length

__all__ = [
    "ACCURACY",
    "BINARY_ACCURACY",
    "BINARY_ACCURACY_OF_PROBABILITIES",
    "accuracy_per_sample",
    "binary_accuracy_of_probabilities_per_sample",
    "binary_accuracy_per_sample",
]


def accuracy_per_sample(outputs: Tensor, target: Tensor) -> Tensor:
    """Whether each sample's answer is its target.

    Shapes: outputs `(N, C)` scores or `(N,)` class indices (integers or booleans); target `(N,)` or `(N, 1)`;
    gives `(N,)` booleans.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a score is NaN.
    """
    equal_length(outputs, target, metric="accuracy")
    if outputs.is_floating_point():
        scores = class_scores(outputs, metric="accuracy")
        return scores.argmax(1) == class_indices(target, classes=scores.shape[1], metric="accuracy")
    answers = class_indices(outputs, classes=None, metric="accuracy of the predictions")
    return answers == class_indices(target, classes=None, metric="accuracy")


def binary_accuracy_per_sample(logits: Tensor, target: Tensor) -> Tensor:
    """Whether each sample's logit is above 0 exactly where its target is 1.

    Shapes: logits `(N,)` or `(N, 1)`; target the same, of 0 and 1; gives `(N,)` booleans.

    Raises:
        BatchError: shapes or lengths do not fit, a target is neither 0 nor 1, a logit is NaN.
    """
    equal_length(logits, target, metric="binary accuracy")
    positive = columns(logits, metric="binary accuracy", what="logits") > 0
    return positive == class_indices(target, classes=2, metric="binary accuracy").bool()


def binary_accuracy_of_probabilities_per_sample(probabilities: Tensor, target: Tensor) -> Tensor:
    """Whether each sample's probability is above one half exactly where its target is 1.

    Shapes: probabilities `(N,)` or `(N, 1)`; target the same, of 0 and 1; gives `(N,)` booleans.

    Raises:
        BatchError: shapes or lengths do not fit, a target is neither 0 nor 1, a number is outside 0 to 1.
    """
    rows = decided_binary_of_probabilities(probabilities, target, metric="binary accuracy of probabilities")
    return rows[:, 0] == rows[:, 1]


ACCURACY = Metric("accuracy", accuracy_per_sample, Aggregate.PROPORTION, higher_is_better=True, decides=True)
BINARY_ACCURACY = Metric(
    "binary accuracy", binary_accuracy_per_sample, Aggregate.PROPORTION, higher_is_better=True, decides=True
)
BINARY_ACCURACY_OF_PROBABILITIES = Metric(
    "binary accuracy of probabilities",
    binary_accuracy_of_probabilities_per_sample,
    Aggregate.PROPORTION,
    higher_is_better=True,
    decides=True,
)
