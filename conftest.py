"""The code in README.md, CONTRIBUTING.md and docs/ is executed: Python blocks here, command lines as processes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from pathlib import Path

from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parent

# Here and in the processes that tests start: a plan is searched for where a test asks for it, and none is remembered.
os.environ["EVALMODE_BUDGET"] = "0"
os.environ["EVALMODE_CACHE"] = "off"


def evaluate_command_lines(example: Example) -> str | None:
    """What is wrong with a block of command lines, or None.

    `evalmode ...` must run and exit 0 or 1 (1 says that a model breaks a clause), `make TARGET` must name a target, and
    `pip install evalmode` is what a reader types first. Anything else is a mistake in the page.
    """
    for line in str(example.parsed).splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if not words or words[:2] == ["pip", "install"]:
            continue
        if words[0] == "make":
            command, allowed = ["make", "--dry-run", *words[1:]], (0,)
        elif words[0] == "evalmode":
            command, allowed = [sys.executable, "-m", *words], (0, 1)
        else:
            return f"the page shows a command that nothing tests: {line}"
        run = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, check=False
        )
        if run.returncode not in allowed:
            return f"{line}\nexits {run.returncode}\n{run.stdout}{run.stderr}"
    return None


pytest_collect_file = Sybil(
    parsers=[
        PythonCodeBlockParser(doctest_optionflags=ELLIPSIS | NORMALIZE_WHITESPACE),
        CodeBlockParser("console", evaluate_command_lines),
        SkipParser(),
    ],
    patterns=["*.md"],
    excludes=["CHANGELOG.md"],
).pytest()
