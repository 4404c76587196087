"""Token accuracy: the share of tokens whose highest score is the right one.

What it does
------------
The tokens of all samples whose target has the highest score, over the number of tokens (`token accuracy`): long
samples weigh more.

Why it matters
--------------
For tagging and masked language models it is what the loss means in answers.

Example
-------
    >>> import torch
    >>> rows = token_accuracy_rows(torch.tensor([[[0.1, 0.9], [0.8, 0.2]]]), torch.tensor([[1, 1]]))
    >>> TOKEN_ACCURACY.figure(rows.numpy())
    0.5

Use instead
-----------
Accuracy of whole sequences, as a function of one's own, where one wrong token spoils the sample.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing.

Limits
------
Places whose target is -100 do not count. Targets stand at the place that answers them: for next-token models shift
them in `split`. A sample without a token that counts adds nothing; without any token the figure is refused. The
interval resamples whole samples, whose tokens are not independent. Of equal highest scores the first one counts.

Source
------
sklearn.metrics.accuracy_score over all tokens, whose figures it reproduces.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evalmode.measure.metric import Aggregate, Metric
from evalmode.measure.sums import SumStatistic
from evalmode.measure.tokens import summed_over_tokens

__all__ = ["TOKEN_ACCURACY", "token_accuracy_rows"]


def token_accuracy_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """How many of each sample's tokens are right, and their number.

    Shapes: outputs `(N, T, C)` scores; target `(N, T)` class indices, -100 where no token counts; gives `(N, 2)`
    float64. Units: tokens.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a score is NaN.
    """
    return summed_over_tokens(outputs, target, _right, metric="token accuracy")


def _right(scores: NDArray[np.float64], wanted: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(scores.argmax(1) == wanted, np.float64)


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(sums[:, 0] / sums[:, 1], np.float64)


TOKEN_ACCURACY = Metric(
    "token accuracy",
    token_accuracy_rows,
    Aggregate.STATISTIC,
    True,
    SumStatistic("token accuracy", _ratio, "no token counts: every target is -100", "a token to answer"),
    least=0.0,
    most=1.0,
)
