"""A predictor that lives keeps its model from being evaluated unnoticed with other weights."""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from evalmode import evaluating
from evalmode.errors import StalePredictorError
from evalmode.mode import derived


class Built:
    """Stands for a predictor."""

    def __repr__(self) -> str:
        return "<Built>"


class Merging(nn.Linear):
    """As an adapter: its weights hold other numbers in evaluation."""

    def train(self, mode: bool = True):
        if mode != self.training:
            self.weight.data.mul_(0.5 if mode else 2.0)
        return super().train(mode)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200), nn.Linear(200, 3, dtype=torch.bfloat16))


def linear(model: nn.Module) -> nn.Linear:
    return model[0]


def swap_rows(model: nn.Module) -> None:
    weight = linear(model).weight.data
    weight[[0, 8]] = weight[[8, 0]]


CHANGES = {
    "an optimiser's step": lambda model: torch.optim.SGD(model.parameters(), 1.0).step(_gradients(model)),
    "other weights": lambda model: model.load_state_dict(net().state_dict()),
    "one number through .data": lambda model: linear(model).weight.data[199, 299].add_(1e-3),
    "a sign through .data": lambda model: linear(model).bias.data[3].neg_(),
    "rows exchanged": swap_rows,
    "a statistic": lambda model: model[1].running_var[7].mul_(1.5),
    "the last byte of an odd length": lambda model: model[2].bias.data[2].add_(1.0),
    "a new parameter": lambda model: setattr(model[0], "bias", nn.Parameter(torch.randn(200))),
    "a parameter gone": lambda model: setattr(model[0], "bias", None),
    "another dtype": lambda model: model[0].double(),
}


def _gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


@pytest.mark.parametrize("change", CHANGES)
def test_an_evaluation_of_a_changed_model_is_refused(change: str) -> None:
    model, built = net(), Built()
    derived.register(model, built)
    with evaluating(model):
        pass
    assert derived.fresh(built) and derived.live_predictors(model) == [built]
    CHANGES[change](model)
    assert not derived.fresh(built)
    with (
        pytest.raises(StalePredictorError, match=r"Sequential have changed since <Built>[\s\S]*evalmode.refresh"),
        evaluating(model),
    ):
        pass
    assert all(module.training for module in model.modules())  # nothing was switched
    with pytest.raises(StalePredictorError):
        evaluating(model)(lambda: None)()


def test_the_same_weights_loaded_again_are_the_same() -> None:
    model, built = net(), Built()
    derived.register(model, built)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    model[0].weight.data = model[0].weight.data.t().contiguous().t()
    with evaluating(model):
        pass


@given(st.integers(0, 60_000 - 1), st.integers(0, 31))
def test_every_bit_counts(position: int, bit: int) -> None:
    model, built = nn.Linear(300, 200, bias=False), Built()
    derived.register(model, built)
    model.weight.data.view(-1).view(torch.int32)[position] ^= 1 << bit if bit < 31 else -(1 << 31)
    assert not derived.fresh(built)
    derived.unregister(built)


def test_a_predictor_that_is_gone_or_closed_asks_nothing() -> None:
    model, gone, closed = net(), Built(), Built()
    derived.register(model, gone)
    derived.register(model, closed)
    model[0].weight.data.zero_()
    del gone
    gc.collect()
    derived.unregister(closed)
    assert derived.live_predictors(model) == []
    with evaluating(model):
        pass


def test_other_models_are_not_asked() -> None:
    model, other, built = net(), net(), Built()
    derived.register(model, built)
    model[0].weight.data.zero_()
    with evaluating(other):
        pass
    with pytest.raises(StalePredictorError), evaluating(nn.Sequential(other, model)):  # a wrapper of it is asked
        pass


def test_the_way_to_a_new_predictor_is_open() -> None:
    model, built = net(), Built()
    derived.register(model, built)
    model[0].weight.data.zero_()
    with derived.staleness_unchecked(), evaluating(model):
        pass
    elsewhere: list[bool] = []

    def work() -> None:
        try:
            derived.require_fresh([model])
        except StalePredictorError:
            elsewhere.append(True)

    with derived.staleness_unchecked():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert elsewhere == [True]
    derived.register(model, built)  # refreshed
    with evaluating(model):
        pass


def test_a_model_that_merges_on_its_way_into_evaluation_is_not_stale() -> None:
    model, built = nn.Sequential(Merging(4, 4)), Built()
    derived.register(model, built)
    with evaluating(model), evaluating(model):
        assert derived.fresh(built)
    model.eval()
    with evaluating(model):
        pass
    model.train()
    model[0].weight.data.add_(1)
    with pytest.raises(StalePredictorError), evaluating(model):
        pass


def test_models_with_unusual_tensors_are_compared_too() -> None:
    model, built = nn.Module(), Built()
    model.lazy = nn.LazyLinear(3)
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("complex", torch.ones(2, dtype=torch.complex64))
    model.register_buffer("meta", torch.ones(2, device="meta"))
    model.register_buffer("empty", torch.ones(0))
    model.register_buffer("offset", torch.zeros(100_001)[1:])
    derived.register(model, built)
    assert derived.fresh(built)
    model.sparse = torch.diag(torch.tensor([1.0, 2.0, 1.0])).to_sparse()
    assert not derived.fresh(built)


class Freezing(nn.Module):
    """A `train()` of its own that moves no tensor, as a backbone with frozen batch norm has."""

    def __init__(self):
        super().__init__()
        self.head, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(4)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, inputs):
        return self.head(self.norm(inputs))


@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_a_switch_of_its_own_that_moves_nothing_hides_no_training(order):
    class Built:
        pass

    model, built = Freezing().train(order[0]), Built()
    derived.register(model, built)
    model.train(order[1])
    assert derived.fresh(built)
    with torch.no_grad():
        model.head.weight.add_(1.0)
    assert not derived.fresh(built)
