"""Every public name resolves, is what its room defines, and survives the import of every room."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import evalmode

PACKAGE = Path(evalmode.__file__).parent

RESOLVE = """
import importlib, json, pkgutil, sys
import evalmode

def rooms():
    for found in pkgutil.walk_packages(evalmode.__path__, "evalmode."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name).__name__

def kinds():
    return {name: [type(getattr(evalmode, name)).__name__, getattr(getattr(evalmode, name), "__module__", "")]
            for name in evalmode.__all__}

found = []
for step in sys.argv[1:]:
    if step == "names":
        found.append(kinds())
    else:
        imported = sorted(rooms())
print(json.dumps({"found": found, "rooms": imported}))
"""


@pytest.fixture(scope="module", params=[("names", "names", "rooms", "names", "names"), ("rooms", "names", "names")])
def resolved(request: pytest.FixtureRequest) -> dict[str, list]:
    """The kind and home of every public name at each step, in a fresh process."""
    run = subprocess.run(
        [sys.executable, "-c", RESOLVE, *request.param], capture_output=True, text=True, check=False, timeout=180
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_names_are_the_same_before_and_after_every_room_is_imported(resolved: dict[str, list]) -> None:
    first, *later = resolved["found"]
    assert sorted(first) == sorted(evalmode.__all__)
    assert all(step == first for step in later)


def test_no_public_name_is_a_module(resolved: dict[str, list]) -> None:
    assert [name for step in resolved["found"] for name, (kind, _) in step.items() if kind == "module"] == []


def test_the_walk_reaches_every_source_file(resolved: dict[str, list]) -> None:
    on_disk = {
        ".".join(("evalmode", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
        if path.name != "__main__.py"
    }
    assert on_disk - {"evalmode"} == set(resolved["rooms"])


def test_each_public_name_is_defined_where_the_table_says() -> None:
    for name, home in evalmode._HOMES.items():
        assert getattr(evalmode, name).__module__ == home, name
        assert getattr(evalmode, name).__doc__, f"{name} has no docstring"


def test_type_checkers_are_told_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {alias.asname: statement.module for statement in block.body for alias in statement.names}
    assert told == evalmode._HOMES


def test_the_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
