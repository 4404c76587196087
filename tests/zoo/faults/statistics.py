"""Normalisation layers whose learned statistics are missing, unsound, or not used."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tests.zoo.faults.fault import fault, register, taken
from torch import nn

CLAUSE = "running-statistics"
COMPANIONS = "EM171 EM172 EM173"


def _channels(module: nn.Module, x: torch.Tensor) -> bool:
    container = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    return not container and x.dim() >= 2 and x.shape[1] >= 2


def _has_statistics(module: nn.Module, x: torch.Tensor) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _sound(channels: int) -> Any:
    norm: Any = nn.BatchNorm1d(channels).eval()
    norm.running_mean, norm.running_var = 0.1 * torch.randn(channels), torch.rand(channels) + 0.5
    norm.num_batches_tracked = torch.tensor(100)
    return norm


def _untracked(module: Any, x: torch.Tensor) -> None:
    module.planted = nn.BatchNorm1d(x.shape[1], track_running_stats=False).eval()


def _without_statistics(module: Any, x: torch.Tensor) -> None:
    norm = _sound(x.shape[1])
    norm.running_mean = norm.running_var = None
    module.planted = norm


def _never_updated(module: Any, x: torch.Tensor) -> None:
    norm = nn.BatchNorm1d(x.shape[1]).eval()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
    module.planted = norm


def _nan_variance(module: Any, x: torch.Tensor) -> None:
    module.planted = norm = _sound(x.shape[1])
    norm.running_var[0] = float("nan")


def _negative_variance(module: Any, x: torch.Tensor) -> None:
    module.planted = norm = _sound(x.shape[1])
    norm.running_var[-1] = -3.1e-6  # larger than -eps: the output stays finite


def _infinite_variance(module: Any, x: torch.Tensor) -> None:
    module.planted = norm = _sound(x.shape[1])
    norm.running_var.fill_(float("inf"))  # every output becomes the bias, and is finite


def _infinite_mean(module: Any, x: torch.Tensor) -> None:
    module.planted = norm = _sound(x.shape[1])
    norm.running_mean[0] = float("inf")


def _zero_variance(module: Any, x: torch.Tensor) -> None:
    module.planted = norm = _sound(x.shape[1])
    norm.running_var.zero_()


def _poison(module: Any, x: torch.Tensor) -> None:
    module.running_var[0] = float("nan")


def _normalised(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    return outputs(self.planted(x.reshape(*x.shape[:2], -1)).reshape(x.shape))


def _shifted(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    return outputs(self.planted((3.0 * x + 5.0).reshape(*x.shape[:2], -1)).reshape(x.shape))


def _child(kind: str, code: str, effect: str, prepare: Any, *, also: str = "", forward: Any = _normalised) -> None:
    register(
        kind,
        CLAUSE,
        code,
        effect,
        also=also,
        forward=forward,
        prepare=prepare,
        suits=_channels,
        child=".planted",
        per_sample=effect == "companions",
    )


_child("batch-norm-without-tracking", "EM142", "companions", _untracked, also=COMPANIONS)
_child("batch-norm-without-statistics", "EM142", "companions", _without_statistics, also=COMPANIONS)
_child("batch-norm-never-updated", "EM141", "changed", _never_updated, forward=_shifted)
_child("batch-norm-nan-variance", "EM141", "changed", _nan_variance, also="EM191")
_child("batch-norm-negative-variance", "EM141", "changed", _negative_variance, also="EM191")
_child("batch-norm-infinite-variance", "EM141", "changed", _infinite_variance, also="EM191")
_child("batch-norm-infinite-mean", "EM141", "changed", _infinite_mean, also="EM191")
_child("batch-norm-zero-variance", "EM141", "changed", _zero_variance, also="EM191")
register("own-batch-norm-poisoned", CLAUSE, "EM141", "changed", also="EM191", prepare=_poison, suits=_has_statistics)


@fault(CLAUSE, "EM142", "companions", also=COMPANIONS, per_sample=True, suits=_channels)
def functional_batch_norm_training_true(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = F.batch_norm(x, None, None, training=True)  # planted
    return outputs(x)


@fault(CLAUSE, "EM142 EM171", "companions", also=COMPANIONS, per_sample=True)
def batch_statistics_by_hand(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    variance, mean = torch.var_mean(x, 0, keepdim=True)  # planted
    x = (x - mean) / (variance + 1e-5).sqrt()  # planted
    return outputs(x)
