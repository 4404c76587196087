from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from evalmode.certificate import Certificate
from evalmode.checking.catalog import CLAUSE_FILES, pages
from evalmode.clause import Verdict
from evalmode.cli.inputs import InputShape, parse_input, random_input
from evalmode.cli.main import main


def test_a_task(task_folder, capsys):
    assert main(["check", "task.py"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1].startswith(f"{len(CLAUSE_FILES)} kept, 0 broken, 0 not tested")
    assert shown.err == "probes: the first 16 samples of the test data\n"


def test_broken_ends_with_1(task_folder, capsys):
    assert main(["check", "broken.py"]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("✗ no-randomness       functional dropout is on in evaluation mode\n    where  ")
    assert "broken.py:12" in shown


@pytest.mark.parametrize(
    ("target", "inputs"),
    [
        ("torch.nn:ReLU", ["8,3"]),
        ("nets:Pair", ["8,3", "8,3"]),
        ("nets:pair", ["8,3", "8,3"]),
        ("nets:make_words", ["8,5:int64"]),
        ("nets:make_words", ["8,5:long:7"]),
    ],
)
def test_the_shell_door(task_folder, capsys, target, inputs):
    Path("nets.py").write_text(
        "from torch import nn\n"
        "class Pair(nn.Module):\n"
        "    def forward(self, first, second): return first + second\n"
        "pair = Pair()\n"
        "def make_words(): return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2))\n",
        encoding="utf-8",
    )
    options = [word for text in inputs for word in ("--input", text)]
    assert main(["check", target, *options]) == 0
    shown = capsys.readouterr()
    assert f"{len(CLAUSE_FILES)} kept, 0 broken" in shown.out
    assert f"--input {inputs[0].split(':')[0]}: " in shown.err


def test_an_importable_model_is_compared_with_a_fresh_process(task_folder, capsys):
    Path("fresh.py").write_text(
        "import os, torch\n"
        "from torch import nn\n"
        "def untrained(): return nn.Linear(4, 2)\n"
        "class OfThisProcess(nn.Linear):\n"
        "    def forward(self, x): return super().forward(x) * (1 + os.getpid())\n"
        "def of_this_process(): return OfThisProcess(4, 2)\n",
        encoding="utf-8",
    )
    options = ["--input", "8,4", "--select", "deterministic"]
    assert main(["check", "fresh:untrained", *options]) == 0
    assert "same bits again, here and in a fresh process" in capsys.readouterr().out
    assert main(["check", "fresh:of_this_process", *options]) == 1
    assert "EM182" in capsys.readouterr().out


def test_no_process_is_started_where_nobody_asks(task_folder, monkeypatch):
    monkeypatch.setattr("evalmode.certification.whole_way.FreshProcess", None)
    assert main(["check", "task.py", "--select", "finite"]) == 0


def test_json(task_folder, capsys):
    assert main(["check", "task.py", "--format", "json"]) == 0
    certificate = msgspec.json.decode(capsys.readouterr().out, type=Certificate)
    assert certificate.subject == "task.py"
    assert [result.clause for result in certificate.clauses] == list(CLAUSE_FILES)


def test_select_and_ignore(task_folder, capsys):
    assert main(["check", "broken.py", "--ignore", "no-randomness"]) == 0
    shown = capsys.readouterr().out
    assert "- no-randomness       not tested: ignored by --ignore" in shown
    assert f"{len(CLAUSE_FILES) - 1} kept, 0 broken, 1 not tested" in shown
    assert main(["check", "broken.py", "--select", "finite,no-randomness", "--ignore", "finite"]) == 1
    shown = capsys.readouterr().out
    assert "- finite              not tested: ignored by --ignore" in shown
    assert "0 kept, 1 broken, 1 not tested" in shown


@pytest.mark.parametrize("name", ["EM122", "em122", "EM12", "finite,EM122"])
def test_an_ignored_code_is_left_out_of_the_verdict_and_said(task_folder, capsys, name):
    assert main(["check", "broken.py", "--ignore", name]) == 0
    shown = capsys.readouterr().out
    assert shown.count("EM122") == 1
    assert "ignored: EM122 at the model itself (by --ignore)" in shown.splitlines()
    assert "0 broken, 1 allowed" in shown


def test_an_ignored_code_stays_in_the_record(task_folder, capsys):
    assert main(["check", "broken.py", "--ignore", "EM122", "--format", "json"]) == 0
    certificate = msgspec.json.decode(capsys.readouterr().out, type=Certificate)
    (finding,) = certificate.findings
    assert (finding.code, finding.severity, finding.place.line) == ("EM122", "ignored", 12)
    (result,) = [result for result in certificate.clauses if result.verdict is not Verdict.KEPT]
    assert (result.verdict, result.evidence) == (
        Verdict.ALLOWED,
        "ignored: EM122 at the model itself (by --ignore)",
    )


def test_a_code_selects_its_clause_and_only_itself(task_folder, capsys):
    assert main(["check", "broken.py", "--select", "EM122"]) == 1
    assert "0 kept, 1 broken, 0 not tested" in capsys.readouterr().out
    assert main(["check", "broken.py", "--select", "EM121"]) == 0
    assert "ignored: EM122 at the model itself (not selected)" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("probes", ["fast", "default", "thorough"])
def test_probes(task_folder, capsys, monkeypatch, probes):
    from evalmode.certification import whole_way as certification

    asked = []
    check = certification.check
    monkeypatch.setattr(certification, "check", lambda *a, **k: asked.append(k["probes"]) or check(*a, **k))
    assert main(["check", "task.py", "--select", "finite", "--probes", probes]) == 0
    assert main(["check", "task.py", "--select", "finite"]) == 0
    assert asked == [probes, "default"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--select", "finit"], "did you mean `finite`?"),
        (["--select", "finite", "--ignore", "finite"], "--select and --ignore leave no clause to test"),
        (["--select", "EM171", "--ignore", "EM17"], "leave no clause to test"),
        (["--ignore", ",".join(CLAUSE_FILES)], "leave no clause to test"),
        (["--select", "faithful"], "is a clause that check does not test"),
        (["--ignore", "EM999"], "'EM999' is no clause or code"),
        (["--ignore", "EM1710"], "did you mean `EM171`?"),
        (["--format", "html"], "html"),
        (["--probes", "many"], "many"),
        (["--allow", "nothing.*"], "matches no module"),
        (["--input", "8x3"], "--input '8x3' cannot be read"),
        (["--input", "8,0"], "an axis of size 0"),
        (["--input", "8,3:float99"], "has dtype 'float99'"),
        (["--input", "8,3:float32:5"], "has a bound"),
        (["--input", "8,5"], "ModelRunError"),
    ],
)
def test_mistakes(task_folder, capsys, arguments, expected):
    assert main(["check", "task.py", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_without_data_the_message_offers_input(task_folder, capsys):
    assert main(["check", "torch.nn:ReLU"]) == 2
    assert "--input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8,3,224,224", InputShape((8, 3, 224, 224))),
        (" 8, 3 ", InputShape((8, 3))),
        ("8", InputShape((8,))),
        ("8,128:int64", InputShape((8, 128), "int64")),
        ("8,128:long:30000", InputShape((8, 128), "int64", 30000)),
        ("8,2:bool", InputShape((8, 2), "bool")),
        ("4,4:bfloat16", InputShape((4, 4), "bfloat16")),
    ],
)
def test_shapes_are_read(text, expected):
    assert parse_input(text) == expected


def test_whole_numbers_stay_below_the_smallest_embedding():
    model = nn.ModuleList([nn.Embedding(50, 2), nn.Embedding(6, 2)])
    tensor, said = random_input(InputShape((100, 20), "int64"), model, torch.Generator().manual_seed(0))
    assert (tensor.min(), tensor.max(), tensor.dtype) == (0, 5, torch.int64)
    assert "whole numbers from 0 to 5" in said
    tensor, _ = random_input(InputShape((100, 20), "int64", 40), model, torch.Generator().manual_seed(0))
    assert tensor.max() == 39


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "complex64", "uint8", "int8", "bool"])
def test_every_dtype_can_be_drawn_and_is_the_same_again(dtype):
    first, again = (
        random_input(InputShape((4, 3), dtype), nn.ReLU(), torch.Generator().manual_seed(0))[0] for _ in range(2)
    )
    assert first.dtype == getattr(torch, dtype)
    assert torch.equal(first, again)
    assert len({str(row) for row in first.tolist()}) > 1


def test_every_prefix_of_a_code_is_a_name(task_folder, capsys):
    for code in pages()["no-randomness"].codes:
        assert main(["check", "task.py", "--select", code[:4]]) == 0, code
