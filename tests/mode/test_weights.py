"""Weights that no registration sees are found by what the model computes with; what a pass leaves behind is not."""

from __future__ import annotations

import collections
import copy
import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from evalmode import evaluating
from evalmode.errors import StalePredictorError
from evalmode.mode import derived
from evalmode.mode.weights import unregistered_weights
from evalmode.observe.fingerprint import fingerprint
from evalmode.optimization.code_digest import code_digest


class Holding(nn.Module):
    """Computes with whatever it holds as `held`."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.own = nn.Linear(4, 4)
        self.held = held

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(x) + _first(self.held)


class Bare(nn.Module):
    scale = torch.ones(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def _first(held: Any) -> torch.Tensor:
    return torch.zeros(4) if held is None else torch.ones(4)


def closure(tensor: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x @ tensor


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


HELD: dict[str, Callable[[], tuple[Any, torch.Tensor]]] = {
    "a layer in a list": lambda: (layer := linear(), ([layer], layer.weight))[1],
    "a layer in a dict in a tuple": lambda: (layer := linear(), (({"a": layer},), layer.bias))[1],
    "a layer in a set": lambda: (layer := linear(), ({layer}, layer.bias))[1],
    "a layer in an object": lambda: (layer := linear(), (types.SimpleNamespace(layer=layer), layer.weight))[1],
    "a buffer of a layer in a list": lambda: (layer := nn.BatchNorm1d(4), ([layer], layer.running_mean))[1],
    "a parameter in a list": lambda: (tensor := nn.Parameter(torch.ones(4)), ([tensor], tensor))[1],
    "a parameter in an object": lambda: (
        tensor := nn.Parameter(torch.ones(4)),
        (types.SimpleNamespace(w=tensor), tensor),
    )[1],
    "a tensor": lambda: (tensor := torch.ones(4), (tensor, tensor))[1],
    "a tensor in a deque": lambda: (tensor := torch.ones(4), (collections.deque([tensor]), tensor))[1],
    "a tensor in a closure": lambda: (tensor := torch.ones(4, 4), (closure(tensor), tensor))[1],
    "a tensor in a partial": lambda: (
        tensor := torch.ones(4, 4),
        (functools.partial(torch.matmul, other=tensor), tensor),
    )[1],
}


@pytest.mark.parametrize("name", HELD)
def test_a_change_of_what_is_held_is_seen(name: str) -> None:
    held, tensor = HELD[name]()
    model = Holding(held)
    before, predictor = fingerprint(model), nn.Identity()
    derived.register(model, predictor)
    with evaluating(model):
        assert fingerprint(model) == before
    kept = tensor.data.clone()
    tensor.data.view(-1)[1] += 1
    assert fingerprint(model) != before
    with pytest.raises(StalePredictorError), evaluating(model):
        pass
    tensor.data.copy_(kept)
    assert fingerprint(model) == before and derived.fresh(predictor)


def test_a_tensor_of_the_class_is_a_weight_and_may_be_shadowed() -> None:
    model = Bare()
    before = fingerprint(model)
    model.scale = torch.ones(4)
    assert fingerprint(model) == before
    model.scale = torch.zeros(4)
    assert fingerprint(model) != before


def test_a_forward_of_the_instance_counts() -> None:
    weight = torch.ones(4, 4)
    model = nn.Identity()
    model.forward = closure(weight)  # type: ignore[method-assign]
    before = fingerprint(model)
    weight[0, 0] = 2
    assert fingerprint(model) != before


def test_registered_weights_alone_keep_their_digest() -> None:
    model = Holding(None)
    model.alias = [model.own, model.own.weight]  # beside their registration: nothing new
    plain = nn.ModuleDict({"own": model.own})
    assert unregistered_weights(model) == [] and fingerprint(model) == fingerprint(plain)


class Caching(nn.Module):
    """Keeps what a pass computes, in every way that is common."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.calls, self.count = torch.zeros(1), torch.zeros(1), torch.zeros(1)
        self.kept: dict[int, torch.Tensor] = {}
        self.history: list[torch.Tensor] = []
        self.seen = torch.zeros(8)
        self.parts = [torch.zeros(2)]
        self.total = self._counter()

    @staticmethod
    def _counter() -> Callable[[torch.Tensor], None]:
        total = torch.zeros(())

        def add(x: torch.Tensor) -> None:
            nonlocal total
            total = total + x.sum()

        return add

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = x * 2
        self.calls += 1
        self.count.add_(1)
        self.kept[len(x)] = x
        self.history.append(x + 1)
        self.seen[0] += 1
        self.total(x)
        self._note(x)
        self.extra = x - 1
        return self.last + self.seen[0] * 0

    def _note(self, x: torch.Tensor) -> None:
        parts = self.parts
        parts[0] = x


class Masked(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(Masked(4, 4)), nn.utils.spectral_norm(Masked(4, 4)).eval())


@pytest.mark.parametrize("made", [Caching, normed, functools.partial(nn.LSTM, 4, 4)])
def test_what_a_pass_leaves_behind_is_no_weight(made: Callable[[], nn.Module]) -> None:
    model = made()
    before = fingerprint(model)
    for _ in range(2):
        with evaluating(model):
            model(torch.randn(2, 4))
        assert fingerprint(model) == before


def test_no_name_of_a_set_depends_on_its_order() -> None:
    torch.manual_seed(0)
    layers = [linear() for _ in range(5)]
    model, other = Holding(set(layers)), Holding(set(copy.deepcopy(layers)))
    other.load_state_dict(model.state_dict())
    assert fingerprint(model) == fingerprint(other) and len(unregistered_weights(model)) == 10


def test_the_code_of_a_layer_that_is_held_is_part_of_the_key_of_plans() -> None:
    assert code_digest(Holding([nn.Linear(4, 4)])) != code_digest(Holding([Bare()]))
