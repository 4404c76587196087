from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evalmode.observe.tree import same_bits
from evalmode.optimization.catalog import passes_named

NAME = "remove-dropout"
KINDS = [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout]
INPUT = {nn.Dropout1d: torch.randn(2, 3, 4), nn.Dropout2d: torch.randn(2, 3, 4, 4)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_that_is_off_is_removed(rewrite, kind, inplace):
    x = INPUT.get(kind, torch.randn(2, 3, 4, 4, 4))
    done = rewrite(NAME, nn.Sequential(nn.Tanh(), kind(0.5, inplace=inplace), nn.ReLU()), x)
    assert done.operators == ["aten.tanh.default", "aten.relu.default"]
    assert same_bits(done.got, done.expected)


def test_dropout_that_is_on_is_refused_with_its_reason(rewrite):
    class On(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, training=True) + F.dropout(x, 0.0, training=True)

    done = rewrite(NAME, On(), torch.ones(2, 3))
    assert done.result.changed == 1
    assert "it is on: train=True, p=0.5" in done.reasons


@pytest.mark.parametrize("kind", KINDS)
def test_modules_are_replaced_and_still_answer_for_their_attributes(kind):
    (one,) = passes_named([NAME])
    model = nn.Sequential(nn.Tanh(), kind(0.3)).eval()
    x = INPUT.get(kind, torch.randn(2, 3, 4, 4, 4))
    expected = model(x)
    assert one.apply_to_modules(model, (x,)).changed == 1
    assert not isinstance(model[1], kind)
    assert model[1].p == 0.3
    assert same_bits(model(x), expected)


def test_modules_with_hooks_or_of_other_classes_or_on_stay():
    (one,) = passes_named([NAME])

    class Special(nn.Dropout):
        def forward(self, x):
            return x + 1

    hooked, on = nn.Dropout(), nn.Dropout()
    hooked.register_forward_hook(lambda module, given, answer: answer * 2)
    model = nn.Sequential(Special(), hooked, on).eval()
    on.train()
    result = one.apply_to_modules(model, (torch.ones(2),))
    assert result.changed == 0
    assert "hooks" in str(result.refused[0])
    assert "on" in str(result.refused[1])
    assert list(model) == [model[0], hooked, on]
