"""The Makefile, the pins and the CI do what the README says."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = {
    canonicalize_name(requirement.name): requirement
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
    for requirement in [Requirement(line)]
}


def recipe(target: str) -> list[str]:
    """The recipe of a Makefile target, line by line."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{target}:[^\n]*\n((?:\t[^\n]*\n)+)", makefile, re.MULTILINE)
    assert found is not None, target
    return found[1].splitlines()


def required() -> list[Requirement]:
    """Every package that `make` or an extra installs by name."""
    extras = PROJECT["project"]["optional-dependencies"]
    named = [*PROJECT["project"]["dependencies"], *(line for lines in extras.values() for line in lines)]
    return [requirement for requirement in map(Requirement, named) if requirement.name != "evalmode"]


def test_check_ends_in_the_tests_of_the_readme() -> None:
    assert re.search(r"^\$ make test\b", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe("check")[-1].endswith("$(MAKE) --no-print-directory test")


def test_continuous_integration_runs_the_check_and_nothing_else() -> None:
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert commands[-1].startswith("exec make --no-print-directory check")


def test_help_is_the_default_and_names_every_target_for_people() -> None:
    run = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {line.split()[1] for line in run.stdout.splitlines()} >= {
        "demo",
        "gallery",
        "test",
        "check",
        "bench",
        "clean",
    }
    assert ".DEFAULT_GOAL := help" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", ["demo", "gallery", "bench"])
def test_what_a_target_runs_exists(target: str) -> None:
    scripts = [word for line in recipe(target) for word in line.split() if word.endswith(".py")]
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    for requirement in required():
        pin = PINS[canonicalize_name(requirement.name)]
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert requirement.specifier.contains(specifier.version), f"{pin} does not satisfy {requirement}"


def test_torch_is_pinned_without_a_local_label() -> None:
    assert str(PINS["torch"]) == "torch==2.13.0"


def test_what_is_installed_is_what_is_pinned() -> None:
    unpinned = {"evalmode", "pip"}
    own = [sysconfig.get_paths()["purelib"]]  # other tests may have put a package's vendored copies on the path
    for distribution in importlib.metadata.distributions(path=own):
        name = canonicalize_name(distribution.metadata["Name"])
        if name in unpinned or name.startswith(("nvidia-", "cuda-", "triton")):  # torch's CUDA build pins these itself
            continue
        assert name in PINS, f"{name} is installed and not pinned"
        assert PINS[name].specifier.contains(distribution.version.split("+")[0], prereleases=True), name
