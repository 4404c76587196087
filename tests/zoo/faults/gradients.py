"""Forward passes that build graphs, move gradients or leave gradients on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tests.zoo.faults.fault import fault, taken
from torch import nn

CLAUSE = "no-gradients"


def _gain(module: Any, x: torch.Tensor) -> None:
    module.planted_gain = nn.Parameter(torch.ones(()))


def _gain_and_stream(module: Any, x: torch.Tensor) -> None:
    _gain(module, x)
    module.planted_streams = []


def _leaking(x: torch.Tensor) -> Iterator[torch.Tensor]:
    with torch.enable_grad():  # planted
        yield x  # planted


@fault(CLAUSE, "EM161", "graph", prepare=_gain)
def gradients_enabled_in_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    with torch.enable_grad():  # planted
        x = x * self.planted_gain  # planted
    return outputs(x)


@fault(CLAUSE, "EM162", "graph", also="EM161", prepare=_gain)
def gradients_left_on(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    torch.set_grad_enabled(True)  # planted
    return outputs(x)


@fault(CLAUSE, "EM162", "graph", also="EM161", prepare=_gain)
def gradient_context_never_left(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    torch.enable_grad().__enter__()  # planted
    return outputs(x)


@fault(CLAUSE, "EM162", "graph", also="EM161 EM154", prepare=_gain_and_stream, blames=[_leaking], line_required=False)
def gradients_leak_out_of_a_generator(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    stream = _leaking(x)
    self.planted_streams[:] = [stream]
    return outputs(next(stream))


@fault(CLAUSE, "EM161 EM164 EM153", "graph", prepare=_gain)
def tensor_kept_with_its_graph(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    with torch.enable_grad():  # planted
        self.planted_penalty = (x.detach() * self.planted_gain).square().mean()  # planted
    return outputs(x)


@fault(CLAUSE, "EM163", "graph", also="EM161", prepare=_gain)
def gradients_moved_in_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    with torch.enable_grad():  # planted
        loss = (x.detach() * self.planted_gain).square().mean()  # planted
        loss.backward()  # planted
    return outputs(x)


@fault(CLAUSE, "EM161", "graph", also="EM153 EM164")
def gradient_step_in_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    with torch.enable_grad():  # planted
        state = x.detach().requires_grad_()
        energy = state.square().sum()  # planted
        step = torch.autograd.grad(energy, state)[0]
        self.planted_energy = energy  # planted
    return outputs(x - 0.1 * step)
