"""Token loss: how improbable the model held the right tokens, in nats a token.

What it does
------------
Minus the logarithm of the probability given to each target token, from logits in float64, summed over all tokens of
all samples, over the number of tokens (`token loss`): long samples weigh more.

Why it matters
--------------
It is what language models are trained on; a mean of batch means would weigh tokens by their neighbours' padding.

Example
-------
    >>> import torch
    >>> rows = token_loss_rows(torch.zeros(1, 3, 2), torch.tensor([[0, 1, -100]]))
    >>> round(TOKEN_LOSS.figure(rows.numpy()), 4)
    0.6931

Use instead
-----------
Perplexity, its exponential; log loss where a sample has one class.

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
torch.nn.functional.cross_entropy over all tokens with ignore_index=-100.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evalmode.measure.metric import Aggregate, Metric
from evalmode.measure.sums import SumStatistic
from evalmode.measure.tokens import losses_of_tokens

__all__ = ["TOKEN_LOSS", "token_loss_rows"]


def token_loss_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """The summed loss of each sample's tokens, and their number.

    Shapes: outputs `(N, T, C)` scores; target `(N, T)` class indices, -100 where no token counts; gives `(N, 2)`
    float64. Units: nats, tokens.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a score is NaN.
    """
    return losses_of_tokens(outputs, target, metric="token loss")


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(sums[:, 0] / sums[:, 1], np.float64)


TOKEN_LOSS = Metric(
    "token loss",
    token_loss_rows,
    Aggregate.STATISTIC,
    False,
    SumStatistic("token loss", _ratio, "no token counts: every target is -100", "a token to answer"),
    least=0.0,
)
