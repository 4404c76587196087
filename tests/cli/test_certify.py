import sys
from pathlib import Path

import msgspec
import pytest
from tests.predictor import fake_backend

from evalmode.certificate import Certificate
from evalmode.checking.catalog import CLAUSE_FILES
from evalmode.cli.main import main
from evalmode.predictor import artifact, manifest


@pytest.fixture
def artifacts(monkeypatch):
    """Predictors of a back end that needs no package can be saved."""
    for module in (artifact, manifest):
        monkeypatch.setattr(module, "backend_of", lambda name: fake_backend.backend())


def test_kept(task_folder, capsys):
    assert main(["certify", "task.py", "--out", "deep/out"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "Contract"
    assert "  ✓ deterministic        same bits again, here and in a fresh process" in lines
    assert any(line.startswith("Test set, 40 samples") for line in lines)
    assert any(line.startswith(f"KEPT  {len(CLAUSE_FILES)} of {len(CLAUSE_FILES)} clauses on ") for line in lines)
    assert lines[-2:] == ["  certificate  deep/out/certificate.json", "  report       deep/out/report.html"]
    assert "<title>KEPT: task.py</title>" in Path("deep/out/report.html").read_text(encoding="utf-8")
    assert max(map(len, lines)) <= 80
    assert shown.err == ""
    kept = Certificate.load("deep/out/certificate.json")
    assert kept.ok
    assert kept.subject == "task.py"
    assert kept.evaluation.samples == 40


def test_without_what_the_report_needs_the_certificate_stands(task_folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    assert main(["certify", "task.py", "--out", "out"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == "  certificate  out/certificate.json"
    assert "no report.html: the report needs altair" in shown.err
    assert "pip install 'evalmode[evaluate]'" in shown.err
    assert Certificate.load("out/certificate.json").ok
    assert not Path("out/report.html").exists()


def test_broken_says_where_and_how_to_mend_it_and_ends_with_1(task_folder, capsys):
    assert main(["certify", "broken.py", "--limit", "10"]) == 1
    shown = capsys.readouterr().out
    assert "✗ no-randomness        functional dropout is on in evaluation mode" in shown
    assert "broken.py:12" in shown
    assert "return F.dropout(self.head(inputs), 0.5)" in shown
    assert "evalmode explain EM122" in shown
    assert "BROKEN" in shown
    assert "Test set, 10 samples" in shown
    assert not Certificate.load("certificate.json").ok


def test_no_artifact_of_an_earlier_run_stays_beside_a_new_certificate(task_folder, artifacts, capsys):
    arguments = ["--budget", "0", "--limit", "8", "--probes", "fast", "--select", "no-randomness", "--out", "out"]
    assert main(["certify", "task.py", *arguments]) == 0
    for task, status in (("broken.py", 1), ("task.py", 0)):
        fast = fake_backend.predictor()
        fast.attach(Certificate.load("out/certificate.json"))
        fast.save("out/model.evalmode")
        assert main(["certify", task, *arguments]) == status
        assert not Path("out/model.evalmode").exists()
        assert "removed out/model.evalmode: it was of an earlier run" in capsys.readouterr().err


@pytest.mark.parametrize("before", [True, False])
def test_what_is_not_of_the_certificate_that_is_replaced_is_left_and_said(task_folder, artifacts, capsys, before):
    arguments = ["certify", "task.py", "--budget", "0", "--limit", "8", "--probes", "fast", "--select", "no-randomness"]
    if before:
        assert main(arguments) == 0
        capsys.readouterr()
    fake_backend.predictor().save("model.evalmode")
    kept = Path("model.evalmode").read_bytes()
    assert main(arguments) == 0
    assert Path("model.evalmode").read_bytes() == kept
    assert capsys.readouterr().err.splitlines() == [
        "model.evalmode is not of this certificate: it lay here before, and is left as it is"
    ]
    Path("model.evalmode").write_bytes(kept[:-20])
    assert main(arguments) == 0
    assert Path("model.evalmode").read_bytes() == kept[:-20]
    assert "model.evalmode is not of this certificate: " in capsys.readouterr().err
    Path("model.evalmode").write_text("notes", encoding="utf-8")
    assert main(arguments) == 0
    assert (Path("model.evalmode").read_text(encoding="utf-8"), capsys.readouterr().err) == ("notes", "")


def test_no_report_of_an_earlier_run_stays_where_none_can_be_drawn(task_folder, capsys, monkeypatch):
    command = ["certify", "task.py", "--budget", "0", "--limit", "8"]
    assert main(command) == 0
    assert Path("report.html").is_file()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(command) == 0
    assert not Path("report.html").exists()
    said = capsys.readouterr().err
    assert "no report.html: " in said and "removed report.html: it was of an earlier run" in said
    Path("report.html").write_text("<html>my own</html>", encoding="utf-8")
    assert main(command) == 0
    assert Path("report.html").read_text(encoding="utf-8") == "<html>my own</html>"


UNREADABLE = """
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, place):
        if place == 7:
            raise {error}
        return torch.ones(4) * place, place % 3

def test_data():
    return {data}
"""


@pytest.mark.parametrize("error", ["OSError(5, 'Input/output error', '7.png')", "RuntimeError('7.png')"])
@pytest.mark.parametrize("loader", ["Data()", "DataLoader(Data(), 8)", "DataLoader(Data(), 8, num_workers=1)"])
def test_a_sample_that_cannot_be_read_is_named_with_its_file(task_folder, capsys, error, loader):
    text = Path("task.py").read_text(encoding="utf-8") + "\nfrom torch.utils.data import DataLoader\n"
    Path("task.py").write_text(text + UNREADABLE.format(error=error, data=loader), encoding="utf-8")
    for command in (["check", "task.py"], ["optimize", "task.py", "--budget", "1"]):
        assert main(command) == 2
        said = capsys.readouterr().err.splitlines()[0]
        assert said.startswith(f"BatchError: sample 7 of test_data() cannot be read: {error.partition('(')[0]}: ")
        assert "7.png" in said


def test_a_stream_that_cannot_be_read_is_told_without_a_place(task_folder, capsys):
    text = """
class Data(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield torch.ones(4), 1
        raise OSError("gone")

def test_data():
    return Data()
"""
    Path("task.py").write_text(Path("task.py").read_text(encoding="utf-8") + text, encoding="utf-8")
    assert main(["check", "task.py"]) == 2
    assert "the data of test_data() cannot be read: OSError: gone" in capsys.readouterr().err


def test_json_is_exactly_the_certificate(task_folder, capfdbinary):
    assert main(["certify", "task.py", "--format", "json", "--out", "here"]) == 0
    assert capfdbinary.readouterr().out == Path("here/certificate.json").read_bytes()
    assert not Path("certificate.json").exists()


def test_json_without_out_writes_no_file(task_folder, capsys):
    assert main(["certify", "task.py", "--format", "json", "--limit", "8"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=Certificate).ok
    assert not Path("certificate.json").exists()


def test_allowed_by_module_path(task_folder, capsys):
    wrapped = (
        Path("broken.py").read_text(encoding="utf-8")
        + """
class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.sampling = Broken()
    def forward(self, inputs):
        return self.sampling(inputs)
def model(): return Wrapper()
"""
    )
    Path("broken.py").write_text(wrapped, encoding="utf-8")
    assert main(["certify", "broken.py", "--allow", "sampling"]) == 0
    assert "~ no-randomness" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_said_before_any_work(task_folder, capsys):
    Path("task.py").write_text("raise RuntimeError('must not be loaded')", encoding="utf-8")
    assert main(["certify", "task.py", "--out", "task.py/below"]) == 2
    assert "cannot make the folder" in capsys.readouterr().err


def test_a_model_that_fails_on_its_data_is_the_users_mistake(task_folder, capsys):
    text = Path("task.py").read_text(encoding="utf-8").replace("randn(40, 4", "randn(40, 5")
    Path("task.py").write_text(text, encoding="utf-8")
    assert main(["certify", "task.py"]) == 2
    shown = capsys.readouterr().err
    assert "ModelRunError" in shown
    assert "float32[16, 5]" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("width", ["40", "60"])
def test_narrow_terminals(task_folder, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    assert main(["certify", "broken.py", "--limit", "8"]) == 1
    assert max(map(len, capsys.readouterr().out.splitlines())) <= int(width)


def test_a_bar_on_a_terminal_and_results_apart_from_it(task_folder):
    pty = pytest.importorskip("pty")
    import contextlib
    import os
    import subprocess

    import evalmode

    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(evalmode.__file__).parents[1]), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "evalmode", "certify", "task.py"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    bar = b""
    with contextlib.suppress(OSError):  # what Linux says when the other end of a terminal is closed
        while piece := os.read(ours, 4096):
            bar += piece
    os.close(ours)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert b"checking the contract" in bar
    assert out.startswith(b"Contract\n")
    assert b"\x1b" not in out


def test_what_a_task_prints_is_kept_out_of_the_results(tmp_path, capsys):
    path = tmp_path / "talkative.py"
    path.write_text(
        "import torch\n"
        "print('loading')\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        print('forward')\n"
        "        return super().forward(x)\n"
        "def model():\n"
        "    return Net(4, 3)\n"
        "def test_data():\n"
        "    return torch.rand(12, 4), torch.arange(12) % 3\n",
        encoding="utf-8",
    )
    assert main(["certify", str(path), "--format", "json"]) in (0, 1)
    said = capsys.readouterr()
    assert msgspec.json.decode(said.out)["subject"]
    assert "loading" in said.err
    assert "forward" in said.err


def test_outputs_of_the_test_data_that_are_not_finite_break_the_clause_and_are_certified(tmp_path, capsys):
    path = tmp_path / "late.py"
    path.write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) / (x[:, :1] != 7)\n"
        "def model():\n"
        "    return Net(4, 3)\n"
        "def test_data():\n"
        "    inputs = torch.rand(40, 4)\n"
        "    inputs[33] = 7\n"
        "    return inputs, torch.arange(40) % 3\n",
        encoding="utf-8",
    )
    assert main(["certify", str(path), "--out", str(tmp_path / "out")]) == 1
    made = Certificate.load(tmp_path / "out" / "certificate.json")
    assert [(found.code, found.clause) for found in made.findings] == [("EM192", "finite")]
    assert "sample 33" in made.findings[0].seen
    assert made.evaluation is None
    assert "BROKEN" in capsys.readouterr().out


def test_it_is_said_that_an_artifact_of_machine_code_has_to_be_allowed(tmp_path: Path) -> None:
    from types import SimpleNamespace
    from typing import Any

    from evalmode.backends.configuration import Configuration
    from evalmode.cli.certify import _model_step

    def saved(path: Path) -> Path:
        return path

    for backend, said in (("aot_inductor", "loads with --allow-native"), ("onnxruntime", "model.evalmode")):
        plan = SimpleNamespace(configurations=[Configuration(backend=backend, batch=8, threads=1)])
        fast: Any = SimpleNamespace(plan=plan, save=saved)
        ((name, text),) = _model_step(fast, tmp_path / "model.evalmode")
        assert name == "model" and text.endswith(said)
