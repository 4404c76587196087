from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from evalmode.checking.runner import check

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "broken"


def gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evalmode_gallery", FOLDER / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GALLERY = gallery()
EXAMPLES = GALLERY.examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_mistake_is_found_alone_and_its_fix_works(name: str) -> None:
    example = EXAMPLES[name]
    batch = GALLERY.seeded(example.batch)
    codes = {finding.code for finding in check(GALLERY.seeded(example.model), batch).findings}
    assert codes == {example.CODE}
    mended = check(GALLERY.seeded(example.fixed), batch)
    assert mended.findings == ()
    assert mended.ok


def test_the_gallery_fits_the_terminal_and_exits_0() -> None:
    shown = subprocess.run(
        [sys.executable, str(FOLDER / "gallery.py")], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert len(EXAMPLES) >= 17


def test_a_mistake_that_is_not_found_makes_the_gallery_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = EXAMPLES["functional_dropout"]
    monkeypatch.setattr(example, "model", example.fixed)
    monkeypatch.setattr(GALLERY, "examples", lambda: {"functional_dropout": example})
    assert GALLERY.main() == 1
    assert "NOT FOUND  functional_dropout" in capsys.readouterr().out
