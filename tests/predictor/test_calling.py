from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

from evalmode.errors import BatchError, ModelRunError, SwitchError
from evalmode.predictor.calling import call
from evalmode.predictor.module_backed import ModulePredictor
from evalmode.predictor.protocol import Predictor
from evalmode.predictor.signature import signature_of


class Records(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


X, Y = torch.zeros(4, 3), torch.zeros(4)


def test_the_rule() -> None:
    model = Records()
    assert call(model, X) == ((X,), {})
    assert call(model, (X, Y)) == ((X, Y), {})
    assert call(model, [X, Y]) == (([X, Y],), {})
    assert call(model, {"x": X}) == ((), {"x": X})
    assert call(model, BatchEncoding({"x": X})) == ((), {"x": X})
    assert call(model, X, lambda given, batch: (given, batch)) == (model, X)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (DataLoader(TensorDataset(X)), "DataLoader"),
        (TensorDataset(X), "dataset"),
        (iter([X]), "iterator"),
        (None, "None"),
        ((X, Y), "inputs, target = batch"),
        (({"x": X}, Y), "inputs, target = batch"),
        ([X, Y], "inputs, target = batch"),
        ({"input": X, "labels": Y}, "labels"),
        ((X, X, X), "cannot be called"),
    ],
)
def test_what_is_no_batch_is_refused_with_the_fix(batch: Any, text: str) -> None:
    with pytest.raises(BatchError, match=text):
        call(nn.Linear(3, 2), batch)


def test_what_may_be_meant_is_not_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x.sum(1) + y

    class TakesList(nn.Module):
        def forward(self, parts: list[torch.Tensor]) -> torch.Tensor:
            return parts[0].sum(1) + parts[1]

    assert call(Two(), (X, Y)).shape == (4,)
    assert call(TakesList(), [X, Y]).shape == (4,)
    hooked = nn.Linear(3, 2)
    hooked.register_forward_pre_hook(lambda _, inputs: inputs[:1])
    assert call(hooked, (X, Y, Y)).shape == (4, 2)


def test_a_models_own_failure_keeps_its_cause_and_says_the_shapes() -> None:
    with pytest.raises(ModelRunError, match=r"float32\[4, 3\]") as caught:
        call(nn.Linear(5, 2), X)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_predictor_is_always_in_evaluation() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train()
    predictor: Predictor = ModulePredictor(model, batch=X)
    expected = model[0](X)
    assert torch.equal(predictor(X), expected)
    assert torch.equal(predictor.predict(X), expected)
    assert not predictor(X).requires_grad
    assert model.training
    assert predictor.eval() is predictor
    assert predictor.train(False) is predictor
    assert predictor.certificate is None
    with pytest.raises(SwitchError, match="cannot train"):
        predictor.train()


def test_a_signature_accepts_other_batch_sizes_only() -> None:
    signature = signature_of({"x": X, "n": 2})
    assert str(signature) == "mapping(x: float32[*, 3])"
    signature.require({"x": torch.zeros(9, 3)})
    for wrong in ({"x": torch.zeros(4, 2)}, {"x": X.double()}, {"y": X}):
        with pytest.raises(BatchError):
            signature.require(wrong)
    assert str(signature_of(torch.zeros(5, 2), batch_axis=1)) == "single(input: float32[5, *])"
    assert str(signature_of((X, torch.zeros(7)))) == "tuple([0]: float32[4, 3], [1]: float32[7])"
