"""A draw counts only if its numbers vary, and is told for what it is."""

from __future__ import annotations

import pytest
import torch
from torch import distributions, nn

import evalmode

SHARED = nn.Dropout(0.3)


class Adding(nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.noise = noise

    def forward(self, x):
        return self.linear(x) + 0.1 * self.noise(x)


def forked(seed, shape):
    def noise(x):
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.manual_seed(seed)
            return torch.randn(shape(x))

    return noise


def of_one_sample(x):
    return x.shape[1:]


def of_the_batch(x):
    return x.shape


def own_seeded(shape):
    return lambda x: torch.randn(shape(x), generator=torch.Generator().manual_seed(0))


def reseeded(x):
    torch.manual_seed(0)
    return torch.randn(x.shape[1:])


NOISES = {
    "forked and seeded": (forked(0, of_one_sample), []),
    "own and seeded": (own_seeded(of_one_sample), []),
    "forked only": (forked(None, of_one_sample), ["EM125"]),
    "seeded only": (reseeded, ["EM125"]),
    "forked and seeded, by position": (forked(0, of_the_batch), ["EM172"]),
    "own and seeded, by position": (own_seeded(of_the_batch), ["EM172"]),
}


@pytest.mark.parametrize("name", NOISES)
def test_numbers_that_are_the_same_each_time_are_no_randomness(name):
    noise, codes = NOISES[name]
    model = nn.Sequential(nn.Linear(4, 4), Adding(noise)).eval()
    batch = torch.randn(6, 4)
    before = torch.get_rng_state()
    assert [found.code for found in evalmode.check(model, batch).findings] == codes
    assert torch.equal(before, torch.get_rng_state())


def test_a_dropout_that_lives_outside_the_model_is_not_said_to_be_built_inside():
    class Outside(nn.Module):
        def forward(self, x):
            return SHARED(x)

    class BuiltAndKept(nn.Module):
        def forward(self, x):
            self.drop = nn.Dropout(0.3)
            return self.drop(x)

    batch = torch.randn(6, 4)
    (outside,) = evalmode.check(nn.Sequential(Outside()).eval(), batch, clauses=["no-randomness"]).findings
    (built,) = evalmode.check(nn.Sequential(BuiltAndKept()).eval(), batch, clauses=["no-randomness"]).findings
    assert (outside.code, outside.place.module) == ("EM127", "0.<Dropout outside the model>")
    assert (built.code, built.place.module) == ("EM121", "0.<Dropout built in forward>")


@torch.library.custom_op("evalmode_tests::noisy", mutates_args=())
def noisy(x: torch.Tensor) -> torch.Tensor:
    return torch.randn_like(x)


DRAWS = {
    "custom operator": noisy,
    "gamma": lambda x: distributions.Gamma(x.exp(), 1.0).sample(),
    "beta": lambda x: distributions.Beta(x.exp(), x.exp()).sample(),
    "student": lambda x: distributions.StudentT(3.0).sample(x.shape),
    "binomial": lambda x: torch.binomial(torch.full_like(x, 5), x.sigmoid()),
    "cauchy": lambda x: torch.empty_like(x).cauchy_(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_is_one_cause_and_no_dependence_on_the_batch(name):
    report = evalmode.check(Adding(DRAWS[name]).eval(), torch.randn(6, 4))
    assert [found.code for found in report.findings] == ["EM125"]
    verdict = next(result for result in report.certificate.clauses if result.clause == "batch-independent")
    assert verdict.verdict.value == ("not tested" if name == "custom operator" else "kept")
