"""Perplexity: between how many equally likely tokens the model hesitates.

What it does
------------
The exponential of the token loss (`perplexity`): of the mean over all tokens of all samples, not the mean of the
samples' own perplexities.

Why it matters
--------------
It is the figure that language models are compared by; 1 is perfect, the size of the vocabulary is a blind guess.

Example
-------
    >>> import torch
    >>> rows = perplexity_rows(torch.zeros(1, 3, 2), torch.tensor([[0, 1, -100]]))
    >>> round(PERPLEXITY.figure(rows.numpy()), 4)
    2.0

Use instead
-----------
Token loss where differences are to be added up; neither compares models of different tokenizers.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing.

Limits
------
Places whose target is -100 do not count. Targets stand at the place that answers them: for next-token models shift
them in `split`. A sample without a token that counts adds nothing; without any token the figure is refused. The
interval resamples whole samples, whose tokens are not independent.

Source
------
Jelinek et al., "Perplexity: a measure of the difficulty of speech recognition tasks", J. Acoust. Soc. Am. 62 (1977).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evalmode.measure.metric import Aggregate, Metric
from evalmode.measure.sums import SumStatistic
from evalmode.measure.tokens import losses_of_tokens

__all__ = ["PERPLEXITY", "perplexity_rows"]


def perplexity_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """The summed loss of each sample's tokens, and their number.

    Shapes: outputs `(N, T, C)` scores; target `(N, T)` class indices, -100 where no token counts; gives `(N, 2)`
    float64. Units: nats, tokens.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a score is NaN.
    """
    return losses_of_tokens(outputs, target, metric="perplexity")


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.exp(sums[:, 0] / sums[:, 1]), np.float64)


PERPLEXITY = Metric(
    "perplexity",
    perplexity_rows,
    Aggregate.STATISTIC,
    False,
    SumStatistic("perplexity", _ratio, "no token counts: every target is -100", "a token to answer"),
    least=1.0,
)
