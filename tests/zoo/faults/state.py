"""Forward passes that change what the model owns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from tests.zoo.faults.fault import fault, taken
from torch import nn

CLAUSE = "no-state-change"


def _plain(module: nn.Module, x: torch.Tensor) -> bool:
    return not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _channels(module: nn.Module, x: torch.Tensor) -> bool:
    return _plain(module, x) and x.dim() >= 2 and x.shape[1] >= 2


def _batch_norm(module: Any, x: torch.Tensor) -> None:
    norm = nn.BatchNorm1d(x.shape[1]).eval()
    norm.running_mean, norm.running_var = 0.1 * torch.randn(x.shape[1]), torch.rand(x.shape[1]) + 0.5
    norm.num_batches_tracked = torch.tensor(100)
    module.planted = norm


def _counter(module: Any, x: torch.Tensor) -> None:
    module.register_buffer("planted_calls", torch.zeros((), dtype=torch.long))


def _average(module: Any, x: torch.Tensor) -> None:
    module.register_buffer("planted_average", torch.zeros(()), persistent=False)


def _scale(module: Any, x: torch.Tensor) -> None:
    module.planted_scale = nn.Parameter(torch.ones(()))


def _observer(module: Any, x: torch.Tensor) -> None:
    module.planted = Observer().eval()


def _nothing(module: Any, x: torch.Tensor) -> None:
    module.planted_cache = None


def _list(module: Any, x: torch.Tensor) -> None:
    module.planted_history = []


def _dict(module: Any, x: torch.Tensor) -> None:
    module.planted_history = {}


def _number(module: Any, x: torch.Tensor) -> None:
    module.planted_calls = 0


class Observer(nn.Module):
    """A quantisation observer, as torch's: remembers the range of what it saw."""

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(float("inf")))
        self.register_buffer("high", torch.tensor(float("-inf")))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.low.copy_(torch.minimum(self.low, x.min()))  # planted
        self.high.copy_(torch.maximum(self.high, x.max()))  # planted
        return x


@fault(CLAUSE, "EM151", "state", prepare=_batch_norm, suits=_channels, also="EM152")
def statistics_updated_in_evaluation(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    norm: Any = self.planted
    rows = x.reshape(*x.shape[:2], -1)
    F.batch_norm(rows.repeat(2, 1, 1), norm.running_mean, norm.running_var, training=True)  # planted
    return outputs(norm(rows).reshape(x.shape))


@fault(CLAUSE, "EM152", "state", prepare=_counter)
def counter_in_a_buffer(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    self.planted_calls.add_(1)  # planted
    return outputs(x)


@fault(CLAUSE, "EM152", "state", prepare=_counter)
def buffer_rebound(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    self.planted_calls = self.planted_calls + 1  # planted
    return outputs(x)


@fault(CLAUSE, "EM152", "state", prepare=_average)
def moving_average_through_data(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    self.planted_average.data.mul_(0.9).add_(0.1 * x.detach().abs().mean())  # planted
    return outputs(x)


@fault(CLAUSE, "EM152", "state", prepare=_scale, also="EM181")
def parameter_written(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    self.planted_scale.data.mul_(0.99)  # planted
    return outputs(x * self.planted_scale)


@fault(CLAUSE, "EM152", "state", prepare=_observer, suits=_plain, child=".planted", blames=[Observer.forward])
def observer_left_on(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    return outputs(self.planted(x))


@fault(CLAUSE, "EM153 EM164", "state", prepare=_nothing, also="EM181")
def tensor_cached_for_the_next_call(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    previous = self.planted_cache
    self.planted_cache = x.mean()  # planted
    return outputs(x if previous is None else x + 0.3 * previous + 0.1)


@fault(CLAUSE, "EM154 EM153 EM164", "state", prepare=_list)
def activations_kept_in_a_list(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    self.planted_history.append(x)  # planted
    return outputs(x)


@fault(CLAUSE, "EM154", "state", prepare=_list)
def numbers_kept_in_a_list(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    self.planted_history.append(float(x.mean()))  # planted
    return outputs(x)


@fault(CLAUSE, "EM154 EM153 EM164", "state", prepare=_dict, also="EM181 EM171 EM172 EM173")
def stale_cache_by_shape(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    kept = self.planted_history.setdefault(tuple(x.shape), x)  # planted
    return outputs(x + 0.5 * kept)


@fault(CLAUSE, "EM154 EM181", "state", prepare=_number)
def call_counter_in_python(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    self.planted_calls += 1  # planted
    return outputs(x * (1.0 + 0.1 * (self.planted_calls % 7)))  # planted


def _buffer_of_one(module: Any, x: torch.Tensor) -> None:
    module.register_buffer("planted_trace", torch.zeros(1))


def _object(module: Any, x: torch.Tensor) -> None:
    module.planted_totals = SimpleNamespace(sum=0.0, seen={"calls": 0})


@fault(CLAUSE, "EM152", "state", prepare=_scale, also="EM181")
def parameter_rebound(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    self.planted_scale = nn.Parameter(self.planted_scale.detach() * 0.99)  # planted
    return outputs(x * self.planted_scale)


@fault(CLAUSE, "EM152", "state", prepare=_buffer_of_one)
def buffer_grows(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    self.planted_trace = torch.cat([self.planted_trace, x.mean().reshape(1)])  # planted
    return outputs(x)


@fault(CLAUSE, "EM151 EM152", "state", prepare=_average, also="EM171 EM172 EM173 EM181")
def statistics_kept_by_hand(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    self.planted_average.lerp_(x.mean(), 0.1)  # planted
    return outputs(x - self.planted_average)


@fault(CLAUSE, "EM154", "state", prepare=_object)
def numbers_kept_in_an_object(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    self.planted_totals.sum += float(x.mean())  # planted
    self.planted_totals.seen["calls"] += 1  # planted
    return outputs(x)


@fault(CLAUSE, "EM153 EM164", "state", prepare=_nothing)
def attention_map_kept_for_later(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    self.planted_cache = x.detach().softmax(-1)  # planted
    return outputs(x)
