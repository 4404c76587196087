"""Forward passes in which a sample's output depends on its companions, its position or on being alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tests.zoo.faults.fault import fault, taken
from torch import nn

CLAUSE = "batch-independent"
ALSO = "EM171 EM172 EM173"


def _moderate(module: nn.Module, x: torch.Tensor) -> bool:
    return x.dim() >= 2


@fault(CLAUSE, "EM171", "companions", also=f"{ALSO} EM191", per_sample=True)
def divided_by_the_largest_of_the_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x / x.abs().amax()  # planted
    return outputs(x)


@fault(CLAUSE, "EM171", "companions", also=ALSO, per_sample=True)
def mean_over_the_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x - x.mean(0)  # planted
    return outputs(x)


@fault(CLAUSE, "EM171", "companions", also=ALSO, per_sample=True)
def standardised_over_everything(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    mean, deviation = x.mean(), x.std() + 1e-5  # planted
    x = (x - mean) / deviation  # planted
    return outputs(x)


@fault(CLAUSE, "EM171", "companions", also=ALSO, per_sample=True)
def softmax_over_the_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    weights = F.softmax(x, dim=0)  # planted
    return outputs(x * weights)


@fault(CLAUSE, "EM171", "companions", also=ALSO, per_sample=True, suits=_moderate)
def attention_across_the_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    rows = x.reshape(len(x), -1)
    mixed = F.scaled_dot_product_attention(rows[None], rows[None], rows[None])[0]  # planted
    return outputs(x + mixed.reshape(x.shape))


@fault(CLAUSE, "EM171", "companions", also=ALSO, per_sample=True, suits=_moderate)
def similarity_to_the_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    rows = x.reshape(len(x), -1)
    weights = (rows @ rows.T / rows.shape[1] ** 0.5).softmax(-1)  # planted
    return outputs((weights @ rows).reshape(x.shape))


@fault(CLAUSE, "EM171 EM172", "companions", also=ALSO, per_sample=True)
def running_sum_over_the_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x.cumsum(0)  # planted
    return outputs(x)


@fault(CLAUSE, "EM172", "companions", also=ALSO, per_sample=True)
def position_in_the_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    position = torch.arange(len(x), dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 1))  # planted
    x = x * (1.0 + 0.2 * position)  # planted
    return outputs(x)


@fault(CLAUSE, "EM172 EM171", "companions", also=ALSO, per_sample=True)
def first_sample_is_special(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x - 0.5 * x[:1]  # planted
    return outputs(x)


@fault(CLAUSE, "EM171 EM172", "companions", also=ALSO, per_sample=True)
def values_sorted_over_the_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x.sort(0).values  # planted
    return outputs(x)


@fault(CLAUSE, "EM171 EM172", "companions", also=ALSO, per_sample=True)
def samples_left_sorted(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    order = x.reshape(len(x), -1).square().sum(1).argsort()  # planted
    x = x[order]  # planted
    return outputs(x)


@fault(CLAUSE, "EM171 EM172", "companions", also=ALSO, per_sample=True)
def neighbour_mixed_in(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = 0.7 * x + 0.3 * x.roll(1, 0)  # planted
    return outputs(x)


@fault(CLAUSE, "EM171 EM172", "companions", also=ALSO, per_sample=True, suits=_moderate)
def reshaped_across_the_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x.reshape(len(x), -1).T.reshape(x.shape)  # planted
    return outputs(x)


@fault(CLAUSE, "EM171 EM172", "companions", also=ALSO, per_sample=True)
def capacity_limited(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    wanted = x.reshape(len(x), -1)[:, 0] > x.reshape(len(x), -1).mean(1)
    admitted = wanted & (wanted.cumsum(0) <= 2)  # planted
    return outputs(x * (1.0 - 0.5 * admitted.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))))


@fault(CLAUSE, "EM171", "companions", also=ALSO, per_sample=True)
def scaled_by_a_batch_wide_number(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x * (1.0 / (1e-3 + float(x.abs().max())))  # planted
    return outputs(x)


@fault(CLAUSE, "EM173", "companions", also="EM171", per_sample=True)
def alone_takes_another_branch(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    if len(x) == 1:
        x = 1.25 * x  # planted
    return outputs(x)


@fault(CLAUSE, "EM173", "companions", also="EM171", per_sample=True, suits=_moderate)
def squeeze_fails_alone(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    gates = x.reshape(len(x), -1).mean(1, keepdim=True).sigmoid().squeeze()
    x = x * gates.reshape(len(gates), *[1] * (x.dim() - 1))  # planted
    return outputs(x)


@fault(CLAUSE, "EM171 EM173", "companions", also=ALSO, per_sample=True)
def scaled_by_the_batch_size(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x * (1.0 + 1.0 / len(x))  # planted
    return outputs(x)


@fault(CLAUSE, "EM171 EM174 EM175", "padding", also=ALSO, per_sample=True, suits=lambda module, x: x.dim() == 3)
def padding_leaks(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x + x.mean(1, keepdim=True)  # planted
    return outputs(x)


@fault(CLAUSE, "EM171", "companions", also=ALSO, per_sample=True)
def winner_takes_more(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    winner = x.reshape(len(x), -1).sum(1).argmax()
    gains = torch.ones(len(x), *[1] * (x.dim() - 1), dtype=x.dtype).index_fill(0, winner, 2.0)  # planted
    x = x * gains  # planted
    return outputs(x)


@fault(CLAUSE, "EM171 EM172", "companions", also=ALSO, per_sample=True)
def halves_centred_apart(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = torch.cat([part - part.mean(0, keepdim=True) for part in x.chunk(2)])  # planted
    return outputs(x)


@fault(CLAUSE, "EM171", "companions", also=ALSO, per_sample=True, suits=_moderate)
def normalised_along_the_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = F.normalize(x, dim=0)  # planted
    return outputs(x)


@fault(CLAUSE, "EM171 EM172 EM173", "companions", also=ALSO, per_sample=True)
def branch_on_any_sample(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    if float(x.max()) > 2.5 * float(x.std()):  # planted
        x = 0.7 * x  # planted
    return outputs(x)


@fault(CLAUSE, "EM171 EM172 EM173", "sizes", also=ALSO, per_sample=True)
def large_batches_take_another_branch(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    if len(x) > 7:
        x = 0.7 * x  # planted
    return outputs(x)


@fault(CLAUSE, "EM171", "extremes", also=ALSO, per_sample=True)
def extreme_companion_sets_the_scale(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x / x.abs().amax().clamp(min=30.0)  # planted
    return outputs(x)


@fault(CLAUSE, "EM171", "poison", also=ALSO, per_sample=True)
def nan_of_a_companion_spreads(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x + 0.0 * x.mean(0, keepdim=True)  # planted
    return outputs(x)


def _centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(0, keepdim=True)  # planted


@fault(CLAUSE, "EM171", "companions", also=ALSO, per_sample=True, blames=[_centred])
def centred_in_a_function(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    return outputs(_centred(x))
