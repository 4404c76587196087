from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import evalmode
from evalmode.observe.own_generators import own_generator
from evalmode.observe.state import read_state

KINDS = {
    "torch": (lambda: torch.Generator().manual_seed(3), lambda held: torch.rand(3, generator=held).tolist()),
    "python": (lambda: random.Random(3), lambda held: held.gauss(0, 1)),
    "numpy": (lambda: np.random.default_rng(3), lambda held: held.normal(size=3).tolist()),
    "legacy numpy": (lambda: np.random.RandomState(3), lambda held: held.normal(size=3).tolist()),
    "bit generator": (lambda: np.random.PCG64(3), lambda held: held.random_raw(3).tolist()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_draws_the_same_again_after_it_is_put_back(kind):
    build, draw = KINDS[kind]
    generator = build()
    held = own_generator("", "own", generator)
    assert not held.moved()
    first = draw(generator)
    assert held.moved()
    held.put_back()
    assert not held.moved()
    assert draw(generator) == first


def test_what_is_no_generator_is_not_held():
    assert own_generator("", "x", random.SystemRandom()) is None
    assert own_generator("", "x", random) is None
    assert own_generator("", "x", nn.Linear(2, 2)) is None


@pytest.mark.parametrize(("kind", "code"), [("torch", "EM125"), ("python", "EM126"), ("numpy", "EM126")])
def test_a_draw_from_a_generator_of_the_models_own_is_found_once_and_given_back(kind, code):
    build, draw = KINDS[kind]

    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = build()

        def forward(self, x):
            return x + torch.as_tensor(draw(self.own)).float().sum()

    model = nn.Sequential(nn.Linear(4, 3), Noise()).eval()
    batch = torch.randn(8, 4)
    before = read_state(model)
    report = evalmode.check(model, batch)
    assert [(found.code, found.place.module) for found in report.findings] == [(code, "1")]
    assert "lambda held" in report.findings[0].place.source  # the innermost line of user code
    assert before.changes() == []
