import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

import evalmode
from evalmode.cli import compare, evaluate, optimize
from evalmode.cli.main import main
from evalmode.cli.option_names import as_options, options_of
from evalmode.errors import UsageError


@pytest.fixture
def folder(task_folder):
    return task_folder


def run(*arguments, **changes):
    source = str(Path(evalmode.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, **changes}
    return subprocess.run(
        [sys.executable, "-m", "evalmode", *arguments], capture_output=True, env=environment, timeout=120, check=False
    )


def test_help_opens_with_what_it_is_for(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Same sample, same answer: alone, in any batch, under any load")
    assert all(f"\n  {command} " in shown for command in ("certify", "check", "explain", "init"))
    assert max(map(len, shown.splitlines())) <= 80


def test_what_each_command_does_is_said_on_one_line_of_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    told = [line.split(maxsplit=1) for line in shown[shown.index("Commands:") :].splitlines()[1:] if line.strip()]
    commands = dict(told[: [name for name, _ in told].index("Exit")])
    assert {"certify", "compare", "verify"} <= commands.keys()
    assert [text for text in commands.values() if text.endswith("...") or not text.endswith(".")] == []


def test_help_of_each_command(capsys):
    for command in ("certify", "check", "explain", "init"):
        assert main([command, "--help"]) == 0
        assert command in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"evalmode {evalmode.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["certify", "--help"], ["explain", "EM171"], ["init", "new.py"]]
)
def test_what_needs_no_torch_loads_none(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = (
        "import sys; from evalmode.cli.main import main; status = main(sys.argv[1:]); "
        "sys.exit(status or ('torch loaded' if 'torch' in sys.modules else 0))"
    )
    source = str(Path(evalmode.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["certfy"], "No such command 'certfy'. Did you mean 'certify', 'verify'?"),
        (["certify"], "TASK"),
        (["certify", "task.py", "--lmit", "3"], "--limit"),
        (["certify", "task.py", "--limit", "0"], "--limit"),
        (["certify", "task.py", "--format", "yaml"], "yaml"),
        (["certify", "nowhere.py"], "TaskError: there is no file nowhere.py"),
        (["certify", "task.py", "--weights", "w.pt"], "weights were given (w.pt), but model() of task.py takes none"),
        (["certify", "task.py", "--device", "nonsense"], "device 'nonsense' cannot be used"),
        (["certify", "task.py", "--out", "task.py"], "task.py"),
    ],
)
def test_wrong_commands_and_tasks_end_with_2_and_without_traceback(folder, capsys, arguments, expected):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert expected in shown.err
    assert shown.out == ""
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_debug_shows_the_traceback(folder, capsys, monkeypatch, place):
    arguments = ["certify", "nowhere.py"]
    if place == "environment":
        monkeypatch.setenv("EVALMODE_DEBUG", "1")
    else:
        arguments = ["--debug", *arguments] if place == "before" else [*arguments, "--debug"]
    assert main(arguments) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_of_evalmode_is_neither_kept_nor_broken(folder, capsys, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a defect")

    monkeypatch.setattr("evalmode.certification.certified", fail)
    assert main(["certify", "task.py"]) == 70
    shown = capsys.readouterr().err
    assert "a defect" in shown
    assert "evalmode itself failed" in shown


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), BrokenPipeError(errno.EPIPE, "")])
def test_an_error_of_the_system_that_is_not_of_the_output_is_not_told_as_such(folder, capsys, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("evalmode.certification.certified", fail)
    assert main(["certify", "task.py"]) == 70
    shown = capsys.readouterr().err
    assert "evalmode itself failed" in shown and "cannot write the result" not in shown


def test_no_command_is_a_wrong_command(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert "Same sample, same answer" in shown.out + shown.err


def test_the_installed_command_is_this_main():
    import tomllib

    root = Path(evalmode.__file__).parents[2]
    scripts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"evalmode": "evalmode.cli.main:main"}


def test_under_lc_all_c_and_through_a_pipe_there_is_only_ascii(folder):
    done = run("check", "task.py", "--select", "no-randomness", LC_ALL="C", FORCE_COLOR="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert b"\x1b" not in done.stdout
    assert done.stdout.startswith(b"ok no-randomness")


def test_an_encoding_that_has_no_marks(folder):
    done = run("check", "task.py", "--select", "no-randomness", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"ok no-randomness")


def test_a_reader_that_has_gone_is_no_error(folder):
    source = str(Path(evalmode.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "evalmode", "explain", "EM171"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
    )
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 141
    assert errors == b""


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
def test_an_interruption_ends_with_130_and_one_line(folder):
    Path("slow.py").write_text(
        "import pathlib, time\ndef model():\n    pathlib.Path('started').touch()\n    time.sleep(600)", encoding="utf-8"
    )
    source = str(Path(evalmode.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "evalmode", "certify", "slow.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a background job may ignore it
    )
    try:
        while not Path("started").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, errors) == (130, b"", b"evalmode: stopped\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["explain", "EM171"], ["--version"], ["--help"], ["check", "-h"]])
def test_a_full_disk_is_one_line_and_no_defect(arguments, unbuffered):
    source = str(Path(evalmode.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w", encoding="utf-8") as full:
        process = subprocess.run(
            [sys.executable, "-m", "evalmode", *arguments],
            stdout=full, stderr=subprocess.PIPE, env=environment, check=False,
        )  # fmt: skip
    said = process.stderr.decode().splitlines()
    assert said == ["evalmode: cannot write the result: No space left on device"]
    assert process.returncode == 2


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ("confidence=0.95", "--confidence 0.95"),
        ("evaluate with keep_predictions=PATH", "evaluate with --keep-predictions PATH"),
        ("a file of keep_predictions=", "a file of `evalmode evaluate --keep-predictions`"),
        ("exact=False, or batch_size=8", "--as-it-comes, or --batch-size 8"),
        ("on_bad_sample='skip' leaves it out", "--on-bad-sample skip leaves it out"),
        ("limit=10_000, or limit=math.inf if it ends", "--limit 10000, or --limit inf if it ends"),
        (
            "slices=['class', ('length', 4), {'night': lambda columns: columns['hour'] > 20}]",
            "--slice class --slice length/4",
        ),
        ("evaluate both with the same metrics=", "evaluate both with the same --metric"),
        ("evaluate it with metrics=['log loss']", "evaluate it with --metric 'log loss'"),
        ("workers=0 (num_workers=0 of a DataLoader)", "--workers 0 (num_workers=0 of a DataLoader)"),
        ("evalmode.optimize(model, batch, batch_sizes=(1,))", "evalmode.optimize(model, batch, batch_sizes=(1,))"),
        ("evalmode.evaluate(model, data, limit=8)", "evalmode.evaluate(model, data, limit=8)"),
        ("journal='a b/journal.sqlite'", "--journal 'a b/journal.sqlite'"),
        ("margin=0.01", "margin=0.01 (in Python)"),
        ("pass forward=lambda model, batch: ...", "pass def forward(model, batch): ... in the task"),
        ("metrics = {'own': lambda outputs, target: 0}", "metrics = {'own': lambda outputs, target: 0}"),
    ],
)
def test_advice_names_the_option_and_what_was_got_stays(python, shell):
    options = options_of(typer.main.get_command(evaluate.app).params)
    told = as_options(UsageError("limit=3 was got", expected=python, fix=python), options).splitlines()
    assert told == ["limit=3 was got", f"  expected: {shell}", f"  fix: {shell}"]


def test_the_commands_speak_of_options(task_folder, capsys):
    assert main(["evaluate", "task.py", "--confidence", "95"]) == 2
    said = capsys.readouterr().err
    assert "fix: --confidence 0.95" in said and "confidence=" not in said


@pytest.mark.parametrize(
    ("command", "python", "shell"),
    [
        (compare, "margin=0.01, or journal='x'", "--margin 0.01, or journal='x' (in Python)"),
        (compare, "margin=0.01, or on_bad_sample='skip'", "--margin 0.01, or --on-bad-sample skip"),
        (compare, "the same metrics=", "the same --metric"),
        (compare, "margin={'log loss': 0.01}", "--margin 'log loss=0.01'"),
        (optimize, "budget_s=9, batch_sizes=[...]", "--budget 9, --batch-size ..."),
        (optimize, "as backends=['openvino', 'onnxruntime']", "as --backend openvino --backend onnxruntime"),
        (optimize, "stable=False", "--no-stable"),
    ],
)
def test_only_options_of_the_command_that_runs_are_advised(command, python, shell):
    options = options_of(typer.main.get_command(command.app).params)
    assert as_options(UsageError("got", fix=python), options).splitlines() == ["got", f"  fix: {shell}"]


def test_a_stream_is_evaluated_with_the_limit_that_is_advised(task_folder, capsys):
    stream = """
class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return ((torch.ones(4) * place, place % 3) for place in range(9))

def test_data():
    return Stream()
"""
    Path("task.py").write_text(Path("task.py").read_text(encoding="utf-8") + stream, encoding="utf-8")
    assert main(["evaluate", "task.py"]) == 2
    assert "--limit inf if it ends by itself" in capsys.readouterr().err
    assert main(["evaluate", "task.py", "--limit", "inf"]) == 0
    assert "9 samples" in capsys.readouterr().out
    assert main(["compare", "task.py", "task.py"]) == 2
    assert "--limit inf if it ends by itself" in capsys.readouterr().err
    assert main(["compare", "task.py", "task.py", "--limit", "inf"]) == 0
    assert "9 samples" in capsys.readouterr().out
    for wrong in ("math.inf", "0", "2.5"):
        assert main(["evaluate", "task.py", "--limit", wrong]) == 2
        assert "limit" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["evaluate", "task.py"], ["compare", "task.py", "task.py"]])
def test_kept_predictions_are_no_test_data(task_folder, capsys, command):
    assert main(["evaluate", "task.py", "--keep-predictions", "kept.parquet"]) == 0
    capsys.readouterr()
    assert main([*command, "--data", "kept.parquet"]) == 2
    assert "kept.parquet holds kept predictions" in capsys.readouterr().err
