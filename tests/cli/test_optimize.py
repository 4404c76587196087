"""`evalmode optimize`: what it writes and prints, and every misuse."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import evalmode
from evalmode.certificate import Certificate
from evalmode.cli.main import main


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALMODE_CACHE", "off")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.slow
def test_it_writes_an_artifact_and_prints_the_plans(task_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    monkey = ["optimize", "task.py", "--backend", "onnxruntime", "--budget", "4", "-o", "deep/m.evalmode"]
    assert main(monkey) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("Speed and memory")
    assert any("plain eval()" in line for line in lines)
    assert any("onnxruntime fp32" in line for line in lines)
    assert lines[-1].startswith("deep/m.evalmode")
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in shown.out
    assert "built with the first batch of the test data" in shown.err
    assert evalmode.load("deep/m.evalmode").certificate is not None
    assert main([*monkey, "--format", "json"]) == 0
    certificate = msgspec.json.decode(capsys.readouterr().out, type=Certificate)
    assert certificate.optimization is not None
    assert certificate.optimization.plans[0].name == "plain eval()"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "evalmode optimize was given no TASK"),
        (["nothere.py"], "there is no file nothere.py"),
        (["task.py", "--backend", "onxruntime"], "write 'onnxruntime'"),
        (["task.py", "--backend", "eager", "--pass", "fuse"], "there is no pass 'fuse'"),
        (["task.py", "--tolerance", "loose"], "'fp32', 'task'"),
        (["task.py", "--objective", "speed"], "'throughput', 'latency'"),
        (["task.py", "--format", "xml"], "'text', 'json'"),
        (["task.py", "--budget", "0.5"], "--budget"),
        (["task.py", "--budget", "nan"], "--budget"),
        (["task.py", "--batch-size", "0"], "--batch-size"),
        (["task.py", "-o", "."], "is a directory"),
        (["task.py", "-o", "task.py/m.evalmode"], "cannot make the folder"),
        (["task.py", "--device", "nowhere"], "cannot be used"),
        (["nodata.py", "--backend", "eager"], "has no data to optimise with"),
        (["nodata.py", "--backend", "eager", "--tolerance", "task"], "has no data to optimise with"),
    ],
)
def test_misuse_is_refused(
    task_folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("task.py").read_text(encoding="utf-8")
    Path("nodata.py").write_text(text.partition("def test_data")[0], encoding="utf-8")
    assert main(["optimize", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert not list(Path().glob("*.evalmode"))


def test_a_plan_that_cannot_be_written_says_why(task_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", "task.py", "--backend", "eager", "--budget", "1"]) == 2
    shown = capsys.readouterr()
    assert "ArtifactError: eager fp32" in shown.err
    assert "cannot be written into a file" in shown.err
    assert "plain eval()" in shown.out and "eager fp32" in shown.out  # what was found is told all the same
    assert not Path("model.evalmode").exists()
