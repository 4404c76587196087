"""`evalmode verify`: the block, the exit status, and JSON."""

import json
from pathlib import Path

import msgspec
import pytest

import evalmode
from evalmode.certificate import Certificate
from evalmode.cli.main import main


@pytest.fixture
def certified(task_folder, capsys):
    assert main(["certify", "task.py", "--out", "."]) == 0
    capsys.readouterr()
    return Path("certificate.json")


def edited(path, **environment):
    found = Certificate.load(path)
    changed = msgspec.structs.replace(found, environment=msgspec.structs.replace(found.environment, **environment))
    return changed.save("edited.json")


def test_nothing_differs(certified, capsys):
    assert main(["verify", "certificate.json", "task.py"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("Certificate of task.py, made ")
    assert "✓ model            the same weights and class" in lines
    assert lines[-1].startswith("SAME  ")
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in shown.out and shown.err == ""


def test_a_difference_ends_with_1_and_an_ignored_one_with_0(certified, capsys):
    edited(certified, threads=77)
    assert main(["verify", "edited.json", "task.py"]) == 1
    shown = capsys.readouterr().out
    assert "✗ threads" in shown and "77, here " in shown and "DIFFERS  1 differs" in shown
    assert main(["verify", "edited.json", "task.py", "--ignore", "environment"]) == 0
    assert "(ignored)" in capsys.readouterr().out


def test_a_broken_task_is_another_model(certified, capsys):
    assert main(["verify", "certificate.json", "broken.py"]) == 1
    shown = capsys.readouterr().out
    assert "no-randomness" in shown and "kept, here broken: EM122" in shown


def test_json_is_the_verification(certified, capsys):
    assert main(["verify", "certificate.json", "task.py", "--format", "json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["ok"] and read["subject"] == "task.py"
    assert {result["outcome"] for result in read["results"]} == {"same"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.json", "task.py"], "cannot read 'missing.json'"),
        (["task.py", "task.py"], "is no certificate"),
        (["certificate.json", "nowhere.py"], "nowhere.py"),
        (["certificate.json", "nowhere.evalmode"], "nowhere.evalmode"),
        (["certificate.json", "certificate.json"], "is no artifact of evalmode"),
        (["certificate.json", "task.py", "--ignore", "weather"], "weather"),
        (["certificate.json", "task.py", "--data", "task.py"], "has data of its own"),
        (["certificate.json"], "was given no TASK"),
    ],
)
def test_misuse_ends_with_2_and_says_what_is_wrong(certified, capsys, arguments, said):
    assert main(["verify", *arguments]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


def test_a_module_is_verified_in_python_with_the_commands_certificate(certified):
    from evalmode.task import load_task

    task = load_task("task.py")
    assert evalmode.verify("certificate.json", task.model, task.data("test_data")).ok


def test_every_name_that_can_be_ignored_is_listed_in_the_error_and_the_parts_in_the_help(certified, capsys):
    from evalmode.certification.retested import PARTS

    assert main(["verify", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert ", ".join(PARTS) in told
    assert main(["verify", "certificate.json", "task.py", "--ignore", "weather"]) == 2
    listed = capsys.readouterr().err
    assert all(name in listed for name in (*PARTS, "threads", "accuracy", "calibration", "golden outputs"))


def test_an_artifact_alone_stands_for_both(task_folder, capsys):
    from evalmode.predictor.artifact_file import MAGIC

    Path("model.evalmode").write_bytes(MAGIC + b"damaged")
    assert main(["verify", "model.evalmode"]) == 2
    said = capsys.readouterr().err
    assert "was given no TASK" not in said and "model.evalmode" in said
