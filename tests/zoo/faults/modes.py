"""Modules and flags that `eval()` leaves in training mode, and graphs that carry it."""

from __future__ import annotations

import functools
import warnings
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from tests.zoo.faults.fault import fault, register, taken
from torch import nn

CLAUSE = "mode-complete"
BATCH_STATISTICS = "EM127 EM142 EM151 EM171 EM172 EM173"


class StochasticGate(nn.Module):
    """Keeps a flag of its own and turns it off in `eval`, which no parent calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stochastic = True

    def train(self, mode: bool = True) -> StochasticGate:
        super().train(mode)
        return self

    def eval(self) -> StochasticGate:
        self.stochastic = False
        super().eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.2, training=self.stochastic)  # planted


class BakedDropout(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.3, training=self.training)


class TracedDropout(nn.Module):
    """Holds a dropout that was traced in training mode."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.graph = torch.jit.trace(BakedDropout().train(), torch.zeros(2, 3), check_trace=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.graph(x)
        return out


def _plain(module: nn.Module, x: torch.Tensor) -> bool:
    """A module that may get a child: one more item in a container would be run as a part of it."""
    return not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _channels(module: nn.Module, x: torch.Tensor) -> bool:
    return _plain(module, x) and x.dim() >= 2 and x.shape[1] >= 2


def _dropout(module: Any, x: torch.Tensor) -> None:
    module.planted = nn.Dropout(0.3)


def _batch_norm(module: Any, x: torch.Tensor) -> None:
    norm = nn.BatchNorm1d(x.shape[1])
    norm.running_mean, norm.running_var = torch.randn(x.shape[1]), torch.rand(x.shape[1]) + 0.5
    norm.num_batches_tracked = torch.tensor(100)
    module.planted = norm


def _recurrent(module: Any, x: torch.Tensor) -> None:
    module.planted = nn.GRU(x.shape[-1], x.shape[-1], 2, dropout=0.5, batch_first=True)


def _dropout_in_list(module: Any, x: torch.Tensor) -> None:
    module.planted = [nn.Identity(), nn.Dropout(0.3)]


def _batch_norm_in_dict(module: Any, x: torch.Tensor) -> None:
    _batch_norm(module, x)
    norm = module.planted
    del module.planted
    module.planted = {"norm": norm}


def _dropout_in_object(module: Any, x: torch.Tensor) -> None:
    module.planted = SimpleNamespace(regulariser=nn.Dropout(0.3))


def _gate(module: Any, x: torch.Tensor) -> None:
    module.planted = StochasticGate().train(mode=False)  # what a parent in eval() calls


def _own_flag(module: Any, x: torch.Tensor) -> None:
    module.train_mode = True


def _eval_dropout(module: Any, x: torch.Tensor) -> None:
    module.planted = nn.Dropout(0.3).eval()


def _symbolic_trace(module: Any, x: torch.Tensor) -> None:
    module.planted = torch.fx.symbolic_trace(BakedDropout().train()).eval()


def _trace(module: Any, x: torch.Tensor) -> None:
    module.planted = TracedDropout().eval()


def _with_dropout(module: nn.Module, x: torch.Tensor) -> bool:
    return isinstance(module, nn.Dropout | nn.Dropout2d) and module.p > 0


def _with_statistics(module: nn.Module, x: torch.Tensor) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _train(module: Any, x: torch.Tensor) -> None:
    module.train()


register("root-left-in-training", CLAUSE, "EM101", "training", at_root=True, prepare=_train, also="EM102")
register("own-dropout-left-in-training", CLAUSE, "EM102", "training", also="EM127", prepare=_train, suits=_with_dropout)
register(
    "own-batch-norm-left-in-training",
    CLAUSE,
    "EM102",
    "training",
    also=BATCH_STATISTICS,
    prepare=_train,
    suits=_with_statistics,
)


def _dropped(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    return outputs(self.planted(x))


def _normalised(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    return outputs(self.planted(x.reshape(*x.shape[:2], -1)).reshape(x.shape))


def _listed(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    for part in self.planted:
        x = part(x)
    return outputs(x)


def _named(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    norm = self.planted["norm"]
    return outputs(norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape))


def _regularised(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    return outputs(self.planted.regulariser(x))


def _recurred(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    return outputs(x + self.planted(x.reshape(len(x), -1, x.shape[-1]))[0].reshape(x.shape))


def _small(module: nn.Module, x: torch.Tensor) -> bool:
    return _plain(module, x) and x.dim() >= 2 and x.shape[-1] <= 128 and x[0].numel() // x.shape[-1] <= 256


def _child(
    kind: str, forward: Any, prepare: Any, *, hidden: str = "", also: str = "EM127", suits: Any = _plain
) -> None:
    code = "EM103" if hidden else "EM102"
    child = f".planted{hidden}"
    register(kind, CLAUSE, code, "training", also=also, forward=forward, prepare=prepare, suits=suits, child=child)


_child("dropout-left-in-training", _dropped, _dropout)
_child("batch-norm-left-in-training", _normalised, _batch_norm, also=BATCH_STATISTICS, suits=_channels)
_child("recurrent-left-in-training", _recurred, _recurrent, also="EM124 EM127", suits=_small)
_child("dropout-hidden-in-list", _listed, _dropout_in_list, hidden="[1]")
_child(
    "batch-norm-hidden-in-dict", _named, _batch_norm_in_dict, hidden="['norm']", also=BATCH_STATISTICS, suits=_channels
)
_child("dropout-hidden-in-object", _regularised, _dropout_in_object, hidden=".regulariser")


@fault(
    CLAUSE,
    "EM104 EM122",
    "random",
    prepare=_gate,
    suits=_plain,
    child=".planted",
    blames=[StochasticGate.forward],
    line_required=False,
)
def eval_of_a_child_never_called(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    return outputs(self.planted(x))


@fault(CLAUSE, "EM104 EM122", "random", prepare=_own_flag, line_required=False)
def own_flag_switches_dropout(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    if self.train_mode:
        x = F.dropout(x, 0.2, training=True)  # planted
    return outputs(x)


@fault(CLAUSE, "EM104 EM171", "companions", also="EM173", prepare=_own_flag, per_sample=True, line_required=False)
def own_flag_switches_batch_statistics(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    if self.train_mode:
        x = x - x.mean(0, keepdim=True)  # planted
    return outputs(x)


@fault(
    CLAUSE,
    "EM102 EM104 EM121 EM122 EM127 EM201",
    "random",
    prepare=_eval_dropout,
    suits=_plain,
    child=".planted",
    line_required=False,
)
def forward_sets_a_child_to_training(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    self.planted.train()  # planted
    return outputs(self.planted(x))  # planted


register(
    "training-baked-into-fx-graph",
    CLAUSE,
    "EM105 EM122",
    "random",
    forward=_dropped,
    prepare=_symbolic_trace,
    suits=_plain,
    child=".planted",
)
register(
    "training-baked-into-trace",
    CLAUSE,
    "EM105 EM122",
    "random",
    forward=_dropped,
    prepare=_trace,
    suits=_plain,
    child=".planted.graph",
)


class AlwaysDropout(nn.Dropout):
    """Stays in training whatever it is told: Monte Carlo dropout without saying so."""

    def train(self, mode: bool = True) -> AlwaysDropout:
        super().train(mode=True)
        return self


def _always(module: Any, x: torch.Tensor) -> None:
    module.planted = AlwaysDropout(0.3)


def _dropout_in_partial(module: Any, x: torch.Tensor) -> None:
    module.planted = functools.partial(nn.Dropout(0.3))


def _dropout_in_closure(module: Any, x: torch.Tensor) -> None:
    regulariser = nn.Dropout(0.3)
    module.planted = lambda states: regulariser(states)  # noqa: PLW0108 - the closure is the hiding place


def _dropout_nested(module: Any, x: torch.Tensor) -> None:
    module.planted = {"stages": [(nn.Identity(), nn.Dropout(0.3))]}


def _mode_string(module: Any, x: torch.Tensor) -> None:
    module.mode = "train"


def _staged(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    for part in self.planted["stages"][0]:
        x = part(x)
    return outputs(x)


_child("train-override-ignores-the-mode", _dropped, _always)
_child("dropout-hidden-in-partial", _dropped, _dropout_in_partial, hidden=".func")
_child("dropout-hidden-in-closure", _dropped, _dropout_in_closure, hidden=".regulariser")
_child("dropout-hidden-in-nested-containers", _staged, _dropout_nested, hidden="['stages'][0][1]")


@fault(CLAUSE, "EM104 EM125", "random", prepare=_mode_string, line_required=False)
def own_mode_string_switches_noise(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    if self.mode == "train":
        x = x + 0.1 * torch.randn_like(x)  # planted
    return outputs(x)
