"""The rules of the house that no linter holds."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import evalmode

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "evalmode"
SOURCES = sorted(SOURCE.rglob("*.py"))
SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
# Public functions of today and those that are planned: a sub-package of the same name would shadow the function.
FUNCTIONS = {
    "check",
    "diagnose",
    "optimize",
    "evaluate",
    "compare",
    "serve",
    "certify",
    "recalibrate",
    "refresh",
    "load",
}
MODULE_LINES = 350
FUNCTION_LINES = 70


def texts() -> Iterator[Path]:
    """Every file of the project that people read."""
    yield from SOURCES
    yield from (ROOT / name for name in ("Makefile", "pyproject.toml", "constraints.txt", "conftest.py", ".ci/run"))
    yield from ROOT.glob("*.md")
    for folder in ("docs", "examples", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".md", ".toml", ".txt", ".json", ".ambr"}:
                yield path


@pytest.fixture(params=SOURCES, ids=lambda path: str(path.relative_to(SOURCE)))
def source(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_no_room_or_file_bears_the_name_of_a_public_function() -> None:
    public = {name for name in evalmode.__all__ if name[0].islower()} | FUNCTIONS
    # A command is a file under cli/ and is never an attribute of the package itself.
    rooms = {path.stem if path.is_file() else path.name for path in SOURCE.iterdir() if path.name != "__pycache__"}
    assert rooms & public == set()


def test_no_room_or_file_has_a_name_that_says_nothing() -> None:
    stems = {part.removesuffix(".py") for path in SOURCES for part in path.relative_to(SOURCE).parts}
    assert stems & SAYS_NOTHING == set()


def test_a_module_fits_in_the_head_and_a_function_on_a_screen(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MODULE_LINES
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert {name: lines for name, lines in long.items() if lines > FUNCTION_LINES} == {}


def test_sources_check_by_raising_and_swallow_nothing(source: Path) -> None:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        # `python -O` removes assertions.
        assert not isinstance(node, ast.Assert), f"assert in line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            empty = all(isinstance(statement, ast.Pass) for statement in node.body)
            assert not empty, f"an exception is swallowed in line {node.lineno}"


def test_a_module_says_what_it_is(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))


def test_public_functions_and_classes_have_docstrings(source: Path) -> None:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    definitions = [
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    public = [node for node in definitions if not node.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def test_no_text_names_a_folder_of_some_machine() -> None:
    own = re.compile(r"(?<![\w.<{}*])/(?:root|work|home|Users|tmp)/[\w.]")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if own.search(line)
    ]
    assert found == []


def test_a_certificate_is_evidence_and_no_text_says_otherwise() -> None:
    claims = re.compile(r"\bproven\b|\bproves? that\b", re.IGNORECASE)
    readable = itertools.chain(SOURCES, ROOT.glob("*.md"), (ROOT / "docs").rglob("*.md"))
    assert [path.name for path in readable if claims.search(path.read_text(encoding="utf-8"))] == []
