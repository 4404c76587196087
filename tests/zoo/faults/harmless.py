"""Forward passes that look like defects and break no clause: each must go without a finding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tests.zoo.faults.fault import fault, taken
from torch import nn


def _sound(module: Any, x: torch.Tensor) -> None:
    norm = nn.BatchNorm1d(x.shape[1]).eval()
    norm.running_mean, norm.running_var = 0.1 * torch.randn(x.shape[1]), torch.rand(x.shape[1]) + 0.5
    norm.num_batches_tracked = torch.tensor(100)
    module.planted = norm


def _modes(module: Any, x: torch.Tensor) -> None:
    module.planted = nn.LSTM(x.shape[-1], x.shape[-1], 2, dropout=0.5, batch_first=True).eval()


def _channels(module: nn.Module, x: torch.Tensor) -> bool:
    return _rows(module, x) and x.shape[1] >= 2


def _rows(module: nn.Module, x: torch.Tensor) -> bool:
    container = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    return not container and x.dim() >= 2 and x.shape[-1] <= 128 and x[0].numel() // x.shape[-1] <= 256


@fault("", "", "harmless")
def dropout_that_follows_the_mode(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = F.dropout(x, 0.5, training=self.training)
    x = F.rrelu(x + 1.0, training=self.training) - 1.0
    return outputs(nn.Dropout(0.0)(F.dropout(x, 0.0)))


@fault("", "", "harmless", suits=_rows)
def attention_within_a_sample(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    rows = x.reshape(len(x), -1, x.shape[-1])
    mixed = F.scaled_dot_product_attention(rows, rows, rows, dropout_p=0.2 if self.training else 0.0)
    return outputs(x + mixed.reshape(x.shape))


@fault("", "", "harmless", suits=_rows, prepare=_modes)
def recurrent_dropout_off(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    states = self.planted(x.reshape(len(x), -1, x.shape[-1]))[0]
    return outputs(x + states.reshape(x.shape))


@fault("", "", "harmless", suits=_channels)
def instance_statistics(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    rows = x.reshape(len(x), -1)
    x = (x - rows.mean(1).reshape(-1, *[1] * (x.dim() - 1))) / (
        1.0 + rows.abs().amax(1).reshape(-1, *[1] * (x.dim() - 1))
    )
    return outputs(F.group_norm(x, 1))


@fault("", "", "harmless", suits=_channels, prepare=_sound)
def sound_batch_norm(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    return outputs(self.planted(x.reshape(*x.shape[:2], -1)).reshape(x.shape))


@fault("", "", "harmless")
def written_in_place_on_a_copy(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x.clone()
    x.mul_(0.5).add_(x.abs())
    self.planted_shape = tuple(x.shape[1:])
    return outputs(x)


@fault("", "", "harmless")
def no_grad_inside(self: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        x, outputs = taken(type(self).forward(self, *args, **kwargs))
    with torch.enable_grad():
        return outputs(x.detach() * 1.5)


@fault("", "", "harmless", per_sample=True)
def samples_one_by_one(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    return outputs(torch.stack([sample / (1.0 + sample.abs().amax()) for sample in x]))
