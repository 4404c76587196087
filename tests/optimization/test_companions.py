"""A model whose samples look at each other is refused: no plan could cut its batches and give its answers."""

from __future__ import annotations

import pytest
import torch
from tests.optimization.gate_models import Block, reference
from torch import Tensor, nn

import evalmode
from evalmode.errors import OptimizationError
from evalmode.optimization.companions import require_own_answers
from evalmode.optimization.exporting import program_of
from evalmode.optimization.judge import judge_of
from evalmode.optimization.subject import Subject

Answer = tuple[Tensor, ...]


class Counting(nn.Module):
    """One sample alone gets another answer than one in a batch, whatever stands beside it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] == 1 else x


def test_an_answer_that_depends_on_the_number_of_samples_is_refused_where_plain_stays() -> None:
    with pytest.raises(OptimizationError, match="beside it"):
        evalmode.optimize(Counting(), torch.randn(8, 6), backends=["eager"], budget_s=5)


class Sequence(nn.Module):
    """Its first axis counts steps, not samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x)[0]
        return outputs


class BatchStatistics(nn.Module):
    """It also refuses a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(x)
        return normalised


DEPENDENT = {
    "the largest value of the batch": lambda x: (x / x.abs().amax(),),
    "a little of the mean": lambda x: (x + 1e-3 * x.mean(0, keepdim=True),),
    "the first sample": lambda x: (x - x[:1],),
    "its neighbour": lambda x: (x + x.roll(1, 0),),
    "a running sum": lambda x: (x.cumsum(0),),
    "whole numbers": lambda x: ((x > x.mean(0)).long(),),
    "the second output": lambda x: (x * 2, x.softmax(0)),
}


def own(x: Tensor) -> Answer:
    return (x.softmax(1), x.argmax(1), x.cumsum(1))


@pytest.mark.parametrize("kind", DEPENDENT)
def test_an_answer_that_moves_with_its_companions_is_refused(kind: str) -> None:
    plain, x = DEPENDENT[kind], torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    found = reference(plain, (x,), output_axes=(0,) * len(plain(x)))
    with pytest.raises(OptimizationError, match=r"depends on the samples beside it: output \d(.|\n)*batch-independent"):
        require_own_answers(plain, found)


def test_answers_of_their_own_are_let_through() -> None:
    torch.manual_seed(0)
    block = Block(vocabulary=20).eval()
    mask = torch.ones(4, 7, dtype=torch.long)
    inputs = (torch.randint(20, (4, 7)), mask)
    require_own_answers(own, reference(own, (torch.randn(5, 6),), output_axes=(0, 0, 0)))
    require_own_answers(block, reference(block, inputs, names=("ids", "attention_mask")))


def test_one_sample_alone_says_nothing() -> None:
    plain = DEPENDENT["the first sample"]
    found = reference(plain, (torch.randn(4, 6),), axes=(None,), output_axes=(None,))
    require_own_answers(plain, found)


@pytest.mark.parametrize(("model", "shape"), [(Sequence(), (9, 3, 6)), (BatchStatistics(), (4, 6))])
@pytest.mark.parametrize("stable", [True, False])
def test_optimize_refuses_it_and_says_where_to_look(
    model: nn.Module, shape: tuple[int, ...], stable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALMODE_CACHE", "off")
    with pytest.raises(OptimizationError, match=r"samples beside it(.|\n)*evalmode\.check\(model, batch\)"):
        evalmode.optimize(model, torch.randn(shape), backends=["eager"], stable=stable, budget_s=2)


def test_recurrent_layers_are_judged() -> None:
    """They compare dtypes in Python, and have to be given fp64 inputs where fp64 is timed."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(6, 5, 2, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> Answer:
            outputs, hidden = self.layer(x)
            return outputs, hidden

    exported = program_of(Recurrent(), torch.randn(3, 7, 6))
    judge = judge_of(Subject(exported, (3,), ""), evalmode.Tolerance("fp32"), seconds=1)
    assert judge.reference.exact
    assert judge.output_axes == (0, 1)
