"""What goes wrong between a user and the command line is told with status 2, and loses nothing."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import evalmode
from evalmode.cli.main import main
from evalmode.cli.tensor_files import write_outputs
from evalmode.errors import UsageError


def run(arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "evalmode", *arguments],
        capture_output=True,
        env={**os.environ, **environment},
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("how", ["exit()", "sys.exit(0)", "sys.exit('no')", "sys.exit(1)"])
@pytest.mark.parametrize("command", ["evaluate", "certify"])
def test_code_of_the_task_that_exits_is_no_verdict(task_folder, capsys, how, command):
    text = Path("broken.py").read_text(encoding="utf-8")
    text = text.replace("return F.dropout(self.head(inputs), 0.5)", how).replace(
        "import torch\n", "import sys, torch\n", 1
    )
    Path("ends.py").write_text(text, encoding="utf-8")
    options = ["--out", "run"] if command == "certify" else []
    assert main([command, "ends.py", *options]) == 2
    shown = capsys.readouterr()
    assert "called sys.exit(" in shown.err
    assert "ends.py:" in shown.err


def test_neighbours_of_one_name_are_each_tasks_own_also_where_functions_import_them(task_folder, capsys):
    for folder, classes in (("old", 2), ("new", 3)):
        Path(folder).mkdir()
        Path(folder, "samely_named.py").write_text(
            f"import torch\nfrom torch import nn\n"
            f"class Net(nn.Module):\n    def forward(self, x):\n"
            f"        return torch.eye(3)[(x[:, 0] * 0).long() + {classes - 1}]\n"
            f"def data():\n    return torch.zeros(30, 1), torch.arange(30) % {classes}\n",
            encoding="utf-8",
        )
        Path(folder, "task.py").write_text(
            "def model():\n    from samely_named import Net\n    return Net()\n"
            "def test_data():\n    from samely_named import data\n    return data()\n"
            "metrics = ['accuracy']\n",
            encoding="utf-8",
        )
    found = {}
    for folder in ("old", "new", "old"):
        assert main(["evaluate", f"{folder}/task.py", "--format", "json"]) == 0
        found[folder] = json.loads(capsys.readouterr().out)["evaluation"]["metrics"][0]["value"]
    assert found == {"old": pytest.approx(1 / 2), "new": pytest.approx(1 / 3)}
    assert main(["compare", "old/task.py", "new/task.py", "--data", "new/task.py", "--format", "json"]) in (0, 1)
    flipped = json.loads(capsys.readouterr().out)["effects"][0]["flipped"]
    assert len(flipped["gained"]) == len(flipped["lost"]) == 10  # one answers 1, the other 2: they are two models


def test_a_task_that_wants_weights_gives_its_data_without_them(task_folder, capsys):
    assert main(["optimize", "task.py", "--backend", "onnxruntime", "--budget", "5", "-o", "fast.evalmode"]) == 0
    text = Path("task.py").read_text(encoding="utf-8").replace("def model():", "def model(weights):")
    Path("data.py").write_text(text, encoding="utf-8")
    capsys.readouterr()
    assert main(["evaluate", "fast.evalmode", "--data", "data.py"]) == 0
    assert "40 samples" in capsys.readouterr().out
    assert main(["evaluate", "task.py", "--data", "data.py"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "data.py"]) == 2
    assert "--weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["evaluate", "fast.evalmode", "--data", "task.py", "--device", "cuda"], "not for cuda"),
        (["evaluate", "fast.evalmode", "--data", "task.py", "--device", "gpu"], "a device of torch"),
        (["verify", "run/certificate.json", "fast.evalmode", "--device", "cpu"], "--device beside an artifact"),
        (["verify", "run/certificate.json", "fast.evalmode", "--weights", "w.pt"], "--weights beside an artifact"),
    ],
)
def test_options_that_an_artifact_cannot_heed_are_refused(task_folder, capsys, options, words):
    assert main(["optimize", "task.py", "--backend", "onnxruntime", "--budget", "5", "-o", "fast.evalmode"]) == 0
    Path("run").mkdir()
    evalmode.check(torch.nn.Linear(4, 3), torch.zeros(2, 4)).certificate.save("run/certificate.json")
    assert main(options) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_text_that_the_terminal_cannot_show_stops_nothing(task_folder, encoding):
    Path("task.py").rename("café 日本.py")
    shown = run(["evaluate", "café 日本.py"], PYTHONIOENCODING=encoding)
    assert shown.returncode == 0, shown.stderr
    as_json = run(["evaluate", "café 日本.py", "--format", "json"], PYTHONIOENCODING=encoding)
    assert json.loads(as_json.stdout.decode("utf-8"))["subject"] == "café 日本.py"


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
def test_a_file_whose_name_is_no_text_is_certified(task_folder):
    name = os.fsdecode(b"t\xe9.py")
    Path("task.py").rename(name)
    done = run(["certify", name, "--budget", "0", "--out", "run"])
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("run/certificate.json").read_text(encoding="utf-8"))["subject"] == "t\ufffd.py"


@pytest.mark.parametrize("command", ["check", "evaluate", "certify", "verify"])
@pytest.mark.parametrize("name", ["x" * 300 + ".py", "~nosuchuser/task.py", "x" * 300])
def test_a_path_that_is_none_is_told(task_folder, capsys, command, name):
    options = [command, name, "task.py"] if command == "verify" else [command, name]
    assert main(options) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "evalmode itself failed" not in shown.err
    assert len(shown.err) < 1500


def test_one_file_for_two_things_is_refused_before_any_work(task_folder, capsys):
    before = Path("task.py").read_bytes()
    for options in (
        ["evaluate", "task.py", "--out", "r", "--keep-predictions", "./r"],
        ["evaluate", "task.py", "--out", "r", "--journal", "r"],
        ["evaluate", "task.py", "--out", "task.py"],
        ["optimize", "task.py", "-o", "task.py"],
    ):
        assert main(options) == 2
        assert "would be lost" in capsys.readouterr().err
    assert Path("task.py").read_bytes() == before
    assert main(["certify", "task.py", "--budget", "0", "--out", "run"]) == 0
    certificate = Path("run/certificate.json").read_bytes()
    for command in ("card", "report"):
        assert main([command, "run/certificate.json", "-o", "run/../run/certificate.json"]) == 2
        assert "would be lost" in capsys.readouterr().err
    assert Path("run/certificate.json").read_bytes() == certificate


@pytest.mark.parametrize("names", [("file", "allow_pickle"), ("a", "b"), ("logits",)])
def test_outputs_of_any_name_are_written(tmp_path, names):
    outputs = {name: torch.arange(3) + place for place, name in enumerate(names)}
    write_outputs(outputs, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as read:
        assert sorted(read.files) == sorted(names)
        assert all(np.array_equal(read[name], outputs[name].numpy()) for name in names)


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors", "json"])
def test_a_result_that_cannot_be_written_is_told(tmp_path, ending):
    (tmp_path / f"out.{ending}").mkdir()
    with pytest.raises(UsageError, match="cannot write"):
        write_outputs(torch.zeros(2), tmp_path / f"out.{ending}")


@pytest.mark.parametrize("given", [b"\xff\xfe\xff", b"[" * 100_000])
def test_what_is_no_text_on_standard_input_is_told(task_folder, capsys, monkeypatch, given):
    assert main(["optimize", "task.py", "--backend", "onnxruntime", "--budget", "5", "-o", "fast.evalmode"]) == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
    assert main(["predict", "fast.evalmode", "-"]) == 2
    assert "standard input" in capsys.readouterr().err
