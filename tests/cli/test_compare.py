"""`evalmode compare`: the block, the exit status, JSON, and what it says of wrong use."""

import json
from pathlib import Path

import pytest

from evalmode.cli.main import main

DATA = """
import torch
from torch import nn

class Scores(nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def forward(self, x):
        return x + self.noise * x.roll(1, 1)

def model():
    return Scores({noise})

def test_data():
    generator = torch.Generator().manual_seed(3)
    target = torch.arange(120) % 3
    return nn.functional.one_hot(target, 3) + 0.6 * torch.randn(120, 3, generator=generator), target
"""


@pytest.fixture
def folder(task_folder):
    """Tasks of a good and a bad model on the same data, and their kept predictions."""
    import evalmode
    from evalmode.task import load_task

    for name, noise in (("good", 0.0), ("bad", 0.9)):
        Path(f"{name}.py").write_text(DATA.replace("{noise}", str(noise)), encoding="utf-8")
        evalmode.evaluate(load_task(f"{name}.py"), keep_predictions=f"{name}.parquet", progress=False)
    return task_folder


def test_worse_ends_with_1_and_better_with_0(folder, capsys):
    assert main(["compare", "good.parquet", "bad.parquet"]) == 1
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[:2] == ["A  good.parquet", "B  bad.parquet"]
    assert lines[-1].startswith("B WORSE  in accuracy")
    assert "now wrong" in shown.out and "120 samples" in shown.out
    assert max(map(len, lines)) <= 80 and "\x1b" not in shown.out and shown.err == ""
    assert main(["compare", "bad.parquet", "good.parquet"]) == 0
    assert "B BETTER  in accuracy" in capsys.readouterr().out


def test_a_model_beside_itself_shows_no_difference(folder, capsys):
    assert main(["compare", "good.parquet", "good.parquet", "--metric", "accuracy"]) == 0
    shown = capsys.readouterr().out
    assert "A  good (1)" in shown and "NO DIFFERENCE SHOWN  in accuracy" in shown and "1.000" in shown


def test_tasks_are_evaluated_on_the_data_first(folder, capsys):
    assert main(["compare", "good.py", "bad.py", "--data", "good.py", "--format", "json"]) == 1
    evaluated = json.loads(capsys.readouterr().out)
    assert main(["compare", "good.parquet", "bad.parquet", "--format", "json"]) == 1
    kept = json.loads(capsys.readouterr().out)
    assert evaluated["effects"][0]["flipped"] == kept["effects"][0]["flipped"]
    assert [effect["effect"] for effect in evaluated["effects"]] == [effect["effect"] for effect in kept["effects"]]
    assert evaluated["models"] == ["good.py", "bad.py"] and evaluated["ok"] is False
    assert main(["compare", "good.py", "bad.parquet"]) == 1, "a task has data of its own"


def test_a_margin_that_is_kept_is_no_loss(folder, capsys):
    assert main(["compare", "good.parquet", "bad.parquet", "--metric", "accuracy", "--margin", "0.9"]) == 0
    assert "margin 90 points: equivalent" in capsys.readouterr().out
    narrow = ["--margin", "accuracy=0.9", "--margin", "log loss=0.0001"]
    assert main(["compare", "good.parquet", "bad.parquet", *narrow]) == 1
    assert "margin 0.0001: neither" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["good.parquet"], "was given one model"),
        (["good.parquet", "missing.parquet"], "missing.parquet"),
        (["good.parquet", "missing.py"], "missing.py"),
        (["good.parquet", "good.parquet", "--metric", "f2"], "has kept no metric 'f2'"),
        (["good.parquet", "good.parquet", "--margin", "wide"], "--margin 'wide' cannot be read"),
        (["good.parquet", "good.parquet", "--margin", "0.1", "--margin", "0.2"], "stands beside others"),
        (["good.parquet", "good.parquet", "--margin", "-1"], "the margin of"),
        (["good.parquet", "good.parquet", "--confidence", "95"], "confidence is 95"),
        (["good.parquet", "good.parquet", "--groups", "ward"], "no column 'ward'"),
        (["good.parquet", "task.py"], "other samples"),
        (["task.py:model", "good.parquet"], "without data"),
    ],
)
def test_misuse_ends_with_2_and_says_what_is_wrong(folder, capsys, arguments, said):
    assert main(["compare", *arguments]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


def test_a_margin_that_no_share_can_exceed_is_refused(folder, capsys):
    assert main(["compare", "good.parquet", "bad.parquet", "--margin", "accuracy=1"]) == 2
    said = capsys.readouterr().err
    assert "no difference of two shares is larger" in said and "fix: --margin accuracy=0.01" in said


@pytest.mark.parametrize("margin", [["--metric", "accuracy", "--margin", "2"], ["--margin", "top-5_accuracy=1"]])
def test_a_margin_of_a_share_is_refused_before_anything_is_evaluated(folder, capsys, monkeypatch, margin):
    def evaluated(*_, **__):
        raise AssertionError("evaluated")

    monkeypatch.setattr("evalmode.evaluation.contestants.evaluate", evaluated)
    assert main(["compare", "task.py", "task.py", *margin]) == 2
    assert "no difference of two shares is larger" in capsys.readouterr().err


def test_worse_within_the_margin_says_so_in_the_headline(folder, capsys):
    wanted = ["--metric", "accuracy", "--margin", "accuracy=0.9"]
    assert main(["compare", "good.parquet", "bad.parquet", *wanted]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "B WORSE, within the margin of 90 points  in accuracy"
    assert "(p 0)" not in shown and "(p <0.0001)" in shown


def test_weights_are_handed_to_the_tasks_and_their_lack_is_said(folder, capsys):
    text = DATA.replace("def model():", "def model(weights=None):").replace("{noise}", "float(weights or 0)")
    Path("taking.py").write_text(text, encoding="utf-8")
    both = ["compare", "good.parquet", "taking.py", "--metric", "accuracy"]
    assert main(both) == 0
    assert "taking.py: with the weights that the task itself gives" in capsys.readouterr().err
    assert main([*both, "--weights", "0.9"]) == 1
    shown = capsys.readouterr()
    assert "B WORSE" in shown.out and "the task itself gives" not in shown.err
    assert main([*both, "--weights", "0.9", "--weights", "0"]) == 2
    assert "1 of the models is a task" in capsys.readouterr().err


def test_the_first_samples_alone_are_compared_where_that_is_asked(folder, capsys):
    assert main(["compare", "good.py", "bad.py", "--metric", "accuracy", "--limit", "50", "--format", "json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["samples"] == 50


def test_a_bad_sample_stops_a_comparison_or_is_left_out_of_it(folder, capsys):
    for name in ("good", "bad"):
        source = Path(f"{name}.py").read_text(encoding="utf-8")
        spoilt = (
            source.replace("return x +", "return x.where((x != x[:1]).any(), x) +")
            .replace("return nn.functional", "target, bad = target, 7\n    data = nn.functional")
            .replace(
                "generator=generator), target",
                "generator=generator)\n    data[bad] = float('nan')\n    return data, target",
            )
        )
        Path(f"{name}.py").write_text(spoilt, encoding="utf-8")
    assert main(["compare", "good.py", "bad.py", "--metric", "accuracy"]) == 2
    assert "sample 7" in capsys.readouterr().err
    assert main(["compare", "good.py", "bad.py", "--metric", "accuracy", "--on-bad-sample", "skip"]) in (0, 1)
    assert "119 samples" in capsys.readouterr().out


def test_options_of_the_evaluation_beside_kept_results_are_refused(folder, capsys):
    assert main(["compare", "good.parquet", "bad.parquet", "--limit", "50"]) == 2
    assert "--limit" in capsys.readouterr().err
