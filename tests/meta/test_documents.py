"""The README and the pages: what they say runs, links and opens as it should. Their code blocks run by themselves."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import evalmode

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_project_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_reachable_from_the_index() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        waiting += [(page.parent / link).resolve() for link in links if not link.startswith("http")]
    assert [page.name for page in (ROOT / "docs").rglob("*.md") if page not in seen] == []


def test_the_readme_opens_with_the_promise() -> None:
    opening = README.split("```")[0].splitlines()
    assert opening[:4] == [
        "# evalmode",
        "",
        "**Same sample, same answer: alone, in any batch, under any load.**",
        opening[3],
    ]
    assert "    pip install evalmode" in opening


def test_the_check_that_the_readme_shows_is_what_the_program_prints() -> None:
    shown = re.search(r"<!-- check-output -->\n```\n(.*?)\n```", README, re.DOTALL)
    assert shown is not None
    code = "import evalmode; from net import *; print(evalmode.check(Net().eval(), images(8)))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True, check=False, timeout=180
    )
    assert run.returncode == 0, run.stderr

    def without_timing(text: str) -> list[str]:
        return [re.sub(r"\s+\d+ forward passes.*", "", line).rstrip() for line in text.strip().splitlines()]

    assert without_timing(run.stdout) == without_timing(shown[1])


def table() -> list[tuple[str, str]]:
    """The Python and the shell cell of each row of the README's table."""
    rows = [line.split("|")[2:4] for line in README.splitlines() if line.startswith("| ")][1:]
    return [(python.strip().strip("`"), shell.strip().strip("`")) for python, shell in rows]


@pytest.mark.parametrize("line", [python for python, _ in table() if python])
def test_the_python_lines_of_the_readme_run(line: str, tmp_path: Path) -> None:
    setup = f"""
import sys
sys.path.insert(0, {str(ROOT / "docs")!r})
import copy, evalmode, functools, torch
from net import images
model, batch = torch.nn.Sequential(torch.nn.Flatten()), images(8)
model.stem = torch.nn.Linear(64, 10)
model.drop = torch.nn.Dropout()
other = copy.deepcopy(model)
data = torch.utils.data.TensorDataset(images(16), torch.arange(16) % 10)
evalmode.optimize = functools.partial(evalmode.optimize, backends=["openvino", "eager"], budget_s=10)  # the quick ones
"""
    if "model.evalmode" in line:
        setup += 'evalmode.optimize(model, batch, backends=["openvino"]).save("model.evalmode")\n'
    if "certificate.json" in line:
        setup += 'evalmode.certify(model, data, budget_s=0).save("certificate.json")\n'
    run = subprocess.run(
        [sys.executable, "-c", setup + line], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=180
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("line", [shell for _, shell in table() if shell])
def test_the_shell_lines_of_the_readme_use_options_that_exist(line: str) -> None:
    program, command, *arguments = shlex.split(line)
    assert program == "evalmode"
    run = subprocess.run(
        [sys.executable, "-m", "evalmode", command, "--help"],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert [word for word in arguments if word.startswith("--") and word not in run.stdout] == []


def test_the_changelog_has_the_present_version_on_top() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == evalmode.__version__
