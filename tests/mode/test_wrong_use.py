"""Wrong use gives an error that says what was got, what was expected and the fix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evalmode import evaluating, freeze, is_frozen, unfreeze
from evalmode.errors import NotAModuleError, PatternError, UsageError


class Unborn(nn.Module):
    def __init__(self):
        pass


def model():
    return nn.Sequential(nn.Linear(2, 2))


THINGS = {
    "None": (None, "None"),
    "a class": (nn.Linear, "class Linear"),
    "another class": (dict, "type"),
    "a function": (model, "function model"),
    "a lambda": (lambda: None, "lambda"),
    "a bound method": (model().forward, "forward"),
    "a list": ([nn.Linear(1, 1)], "list"),
    "a dict": ({"m": nn.Linear(1, 1)}, "dict"),
    "a state dict": (nn.Linear(1, 1).state_dict(), "OrderedDict"),
    "a tensor": (torch.ones(1), "Tensor"),
    "a path": ("model.pt", "str"),
    "a number": (3, "int"),
    "never initialised": (Unborn(), "never initialised"),
}


@pytest.mark.parametrize("door", [evaluating, freeze, unfreeze, is_frozen], ids=lambda door: door.__name__)
@pytest.mark.parametrize("thing", THINGS)
def test_something_else_than_a_module(door, thing):
    value, named = THINGS[thing]
    with pytest.raises(NotAModuleError, match=named) as caught:
        door(value)
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, ValueError)
    assert door.__name__ in str(caught.value)


def test_something_else_beside_a_module():
    good = model()
    with pytest.raises(NotAModuleError, match="None"):
        evaluating(good, None)
    assert good.training


def test_the_decorator_without_a_model_says_how_to_write_it():
    with pytest.raises(NotAModuleError, match=r"@evaluating\(model\)"):

        @evaluating
        def predict():
            pass


def test_decorating_a_class_or_nothing_callable():
    with pytest.raises(UsageError, match="class Service"):

        @evaluating(model())
        class Service:
            pass

    with pytest.raises(UsageError, match="function"):
        evaluating(model())(3)


def network():
    net = nn.Module()
    net.encoder = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    net.encoder_norm = nn.BatchNorm1d(2)
    net.blocks = [nn.Dropout()]
    return net


@pytest.mark.parametrize(
    ("pattern", "suggested"),
    [
        ("encodr", "'encoder'"),
        ("encoder.nrom", "encoder_norm"),
        ("*.encoder_nrom", "'encoder_norm'"),
        ("block[0]", "blocks"),
        ("encoder.3", "encoder."),
    ],
)
def test_a_pattern_that_matches_nothing_suggests_the_nearest_names(pattern, suggested):
    net = network()
    with pytest.raises(PatternError) as caught, evaluating(net, keep_training=pattern):
        pass
    assert pattern in str(caught.value) and suggested in str(caught.value)
    assert all(m.training for m in net.modules()) and torch.is_grad_enabled()


def test_a_held_module_can_be_named_as_the_handle_names_it():
    net = network()
    with evaluating(net, keep_training="blocks[0]") as switched:
        assert net.blocks[0].training
        assert switched.kept == ("blocks[0]",)


@pytest.mark.parametrize("choice", [nn.LSTM, 3, None, nn.Linear(1, 1), [nn.Dropout, "nope"], int])
def test_other_choices_that_find_nothing(choice):
    net = network()
    with pytest.raises(PatternError), evaluating(net, keep_training=choice):
        pass
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize("wishes", [{"on_backward": "raise"}, {"rng": "rewind"}, {"rng": None}], ids=str)
def test_unknown_words_are_refused_when_called(wishes):
    with pytest.raises(UsageError, match=r"expected: '\w+' or '\w+'"):
        evaluating(model(), **wishes)


def test_leaving_what_was_never_entered():
    with pytest.raises(UsageError, match="never entered"):
        evaluating(model()).__exit__(None, None, None)
