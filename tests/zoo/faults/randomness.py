"""Forward passes that draw random numbers in evaluation mode."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tests.zoo.faults.fault import fault, taken
from torch import nn

CLAUSE = "no-randomness"


def _sequence(module: nn.Module, x: torch.Tensor) -> bool:
    return x.dim() >= 2 and x.shape[-1] <= 256 and x[0].numel() // x.shape[-1] <= 256


def _wide(module: nn.Module, x: torch.Tensor) -> bool:
    return x.dim() >= 2 and x.shape[1] >= 4


def _plain_sequence(module: nn.Module, x: torch.Tensor) -> bool:
    return _sequence(module, x) and not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _recurrent_weights(module: Any, x: torch.Tensor) -> None:
    module.planted = nn.LSTM(x.shape[-1], x.shape[-1], 2, dropout=0.5, batch_first=True).eval()


def _numpy_generator(module: Any, x: torch.Tensor) -> None:
    module.planted_generator = np.random.default_rng(0)


@fault(CLAUSE, "EM122", "random")
def functional_dropout_by_default(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = F.dropout(x, 0.2)  # planted
    return outputs(x)


@fault(CLAUSE, "EM122", "random")
def functional_dropout_training_true(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = F.dropout(x, p=0.2, training=True)  # planted
    return outputs(x)


@fault(CLAUSE, "EM122", "random")
def torch_dropout_train_true(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = torch.dropout(x, 0.2, True)  # planted
    return outputs(x)


@fault(CLAUSE, "EM122", "random")
def alpha_dropout_training_true(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = F.alpha_dropout(x, 0.1, training=True)  # planted
    return outputs(x)


@fault(CLAUSE, "EM122", "random", suits=_wide)
def channel_dropout_by_default(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = F.dropout2d(x.reshape(*x.shape[:2], -1, 1), 0.3).reshape(x.shape)  # planted
    return outputs(x)


def _drop(x: torch.Tensor, probability: float) -> torch.Tensor:
    return F.dropout(x, probability)  # planted


@fault(CLAUSE, "EM122", "random", blames=[_drop])
def dropout_in_a_function(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = _drop(x, 0.2)
    return outputs(x)


@fault(CLAUSE, "EM121", "random")
def dropout_built_in_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = nn.Dropout(0.2)(x)  # planted
    return outputs(x)


@fault(CLAUSE, "EM123", "random", suits=_sequence)
def attention_dropout_constant(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    rows = x.reshape(len(x), -1, x.shape[-1])
    mixed = F.scaled_dot_product_attention(rows, rows, rows, dropout_p=0.3)  # planted
    return outputs(x + mixed.reshape(x.shape))


@fault(CLAUSE, "EM124", "random", suits=_plain_sequence, prepare=_recurrent_weights)
def recurrent_dropout_train_true(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    rows = x.reshape(len(x), -1, x.shape[-1])
    start = x.new_zeros(2, len(x), x.shape[-1])
    weights = self.planted._flat_weights
    states = torch.lstm(rows, (start, start), weights, True, 2, 0.5, True, False, True)[0]  # planted
    return outputs(x + states.reshape(x.shape))


@fault(CLAUSE, "EM125", "random")
def stochastic_depth(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x * (torch.rand(len(x), *[1] * (x.dim() - 1)) < 0.7)  # planted
    return outputs(x)


@fault(CLAUSE, "EM125", "random")
def additive_noise(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x + 0.1 * torch.randn_like(x)  # planted
    return outputs(x)


@fault(CLAUSE, "EM125", "random")
def noise_written_in_place(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    noise = torch.empty_like(x).uniform_(0.8, 1.2)  # planted
    return outputs(x * noise)


@fault(CLAUSE, "EM125", "random")
def gumbel_sampling(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x + F.gumbel_softmax(x, tau=1.0, dim=-1)  # planted
    return outputs(x)


@fault(CLAUSE, "EM125", "random", suits=_sequence)
def multinomial_sampling(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    chosen = torch.multinomial(x.reshape(len(x), -1).softmax(-1), 1)  # planted
    return outputs(x + chosen.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype) / x[0].numel())


@fault(CLAUSE, "EM125", "random")
def bernoulli_sampling(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x * torch.bernoulli(torch.sigmoid(x))  # planted
    return outputs(x)


@fault(CLAUSE, "EM125", "random", suits=_wide)
def random_permutation(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    order = torch.randperm(x.shape[1])  # planted
    return outputs(x[:, order])


@fault(CLAUSE, "EM122 EM125", "random")
def randomised_slope(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = F.rrelu(x, training=True)  # planted
    return outputs(x)


@fault(CLAUSE, "EM125 EM202", "draws")
def reseeded_noise(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    torch.manual_seed(0)  # planted
    x = x + 0.1 * torch.randn_like(x)  # planted
    return outputs(x)


@fault(CLAUSE, "EM125", "draws")
def idle_draw(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    skip = torch.rand(()) < 0.1  # planted
    return outputs(x * 0.0 if self.training and skip else x)


@fault(CLAUSE, "EM126", "random")
def python_randomness(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x * random.uniform(0.8, 1.2)  # planted
    return outputs(x)


@fault(CLAUSE, "EM126", "random")
def numpy_randomness(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x * float(np.random.uniform(0.8, 1.2))  # planted
    return outputs(x)


@fault(CLAUSE, "EM126 EM154 EM181", "unstable", prepare=_numpy_generator)
def own_numpy_generator(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x * self.planted_generator.uniform(0.8, 1.2)  # planted
    return outputs(x)


@fault(CLAUSE, "EM126 EM181", "unstable")
def operating_system_randomness(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x * (1.0 + int.from_bytes(os.urandom(2)) / 2**18)  # planted
    return outputs(x)


@fault(CLAUSE, "EM125", "random")
def distribution_sampled(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    noise = torch.distributions.Normal(0.0, 0.1).sample(x.shape)  # planted
    return outputs(x + noise)


@fault(CLAUSE, "EM125", "random")
def noise_by_initialiser(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    noise = nn.init.trunc_normal_(torch.empty_like(x), std=0.1)  # planted
    return outputs(x + noise)


@fault(CLAUSE, "EM126", "random")
def layer_drop_by_python(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    if random.random() < 0.5:  # planted
        x = 0.5 * x
    return outputs(x)
