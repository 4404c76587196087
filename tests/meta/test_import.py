"""Importing the package and asking for help or the version must not pay for torch."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import evalmode


def modules_loaded_by(*arguments: str) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """Top-level packages that a fresh interpreter imported, and how it ended."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}, run


def test_importing_the_package_imports_no_torch() -> None:
    loaded, run = modules_loaded_by("-c", "import evalmode; dir(evalmode); print(evalmode.__version__)")
    assert run.returncode == 0, run.stderr
    assert "evalmode" in loaded
    assert "torch" not in loaded
    assert "numpy" not in loaded


def test_a_public_name_imports_torch_so_that_the_measurement_is_able_to_see_it() -> None:
    loaded, run = modules_loaded_by("-c", "import evalmode; evalmode.evaluating")
    assert run.returncode == 0, run.stderr
    assert "torch" in loaded


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_command_line_answers_without_torch(option: str) -> None:
    loaded, run = modules_loaded_by("-m", "evalmode", option)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
    assert "torch" not in loaded


def test_the_command_line_states_the_version_of_the_package() -> None:
    _, run = modules_loaded_by("-m", "evalmode", "--version")
    assert evalmode.__version__ in run.stdout
    assert importlib.metadata.version("evalmode") == evalmode.__version__


def test_help_opens_with_the_one_thing_to_be_remembered_for() -> None:
    _, run = modules_loaded_by("-m", "evalmode", "--help")
    assert "same sample, same answer" in " ".join(run.stdout.lower().split())


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'chekc'"):
        _ = evalmode.chekc
