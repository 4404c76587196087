"""The plain three lines beside `evaluating`: same outputs, and what each leaves behind."""

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "three_lines.py"


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLE))


def test_the_outputs_are_the_same_bit_for_bit(example):
    x = torch.randn(5, 4)
    plain, switched = (example[name](example["fine_tuned"](), x) for name in ("three_lines", "switched"))
    assert torch.equal(plain, switched)
    assert not plain.requires_grad
    assert not switched.requires_grad
    in_training = example["fine_tuned"]()(x)
    assert not torch.equal(plain, in_training)


def test_the_plain_lines_thaw_what_was_frozen(example):
    left = example["left_behind"](example["three_lines"], torch.randn(5, 4))
    assert left == {"model": "train", "0": "train", "1": "train", "2": "train", "3": "train", "grad mode": "on"}


def test_the_plain_lines_stay_in_evaluation_after_an_exception(example):
    left = example["left_behind"](example["three_lines"], torch.randn(5, 7))
    assert left == {"model": "eval", "0": "eval", "1": "eval", "2": "eval", "3": "eval", "grad mode": "on"}


@pytest.mark.parametrize("width", [4, 7])
def test_evaluating_leaves_what_it_found(example, width):
    left = example["left_behind"](example["switched"], torch.randn(5, width))
    assert left == {"model": "train", "0": "train", "1": "eval", "2": "train", "3": "train", "grad mode": "on"}


def test_what_it_prints(example, capsys):
    example["main"]()
    printed = capsys.readouterr().out
    assert printed.startswith("the same outputs, bit for bit: True\n")
    assert max(map(len, printed.splitlines())) <= 80
    frozen = next(line for line in printed.splitlines() if line.startswith("1 "))
    assert frozen.split() == ["1", "eval", "train", "!", "eval", "eval", "eval"]
