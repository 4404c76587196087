from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import evalmode
from evalmode.checking.catalog import CLAUSE_FILES, page_for, pages
from evalmode.checking.runner import check
from evalmode.clause import CLAUSES
from evalmode.cli.main import main
from evalmode.errors import UsageError
from evalmode.page import HEADINGS, parse_page


def built(code: str) -> tuple[Any, Any]:
    scope: dict[str, Any] = {}
    exec(compile(code, "<page>", "exec"), scope)
    return scope["model"], scope["batch"]


@pytest.mark.parametrize("clause", CLAUSE_FILES)
def test_the_example_is_flagged_and_its_mending_is_not(clause: str) -> None:
    page = pages()[clause]
    bad = check(*built(page.code_block("Example")), clauses=[clause])
    assert [finding.code for finding in bad.findings if finding.code in page.codes]
    good = check(*built(page.code_block("Use instead")))
    assert good.findings == ()


OWN = [
    (clause, code)
    for clause, page in pages().items()
    for code in page.codes
    if page.sections_for(code)["Example"] != page.sections["Example"]
]


@pytest.mark.parametrize(("clause", "code"), OWN)
def test_the_example_of_a_code_is_flagged_with_it_and_its_mending_is_not(clause: str, code: str) -> None:
    page = pages()[clause]
    bad = check(*built(page.code_block(f"Example ({code})")), clauses=[clause])
    assert [finding.code for finding in bad.findings] == [code]
    assert check(*built(page.code_block(f"Use instead ({code})"))).findings == ()


def test_every_way_to_depend_on_the_batch_has_its_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert {code for _, code in OWN} >= {"EM172", "EM173", "EM174"}
    shown = set()
    for code in ("EM171", "EM172", "EM173", "EM174"):
        assert main(["explain", code]) == 0
        text = capsys.readouterr().out
        assert text.count("class Net") == 2
        shown.add(text[text.index("\nExample") : text.index("\nUse instead")])
    assert len(shown) == 4


@pytest.mark.parametrize("clause", CLAUSE_FILES)
def test_a_page_names_its_clause_and_its_codes(clause: str) -> None:
    page = pages()[clause]
    assert page.title.startswith(f"{clause}: {CLAUSES[clause].promise[:20]}")
    assert page.codes
    assert all(page_for(code) == page for code in page.codes)


def test_a_code_belongs_to_one_page() -> None:
    codes = [code for page in pages().values() for code in page.codes]
    assert len(codes) == len(set(codes))
    assert page_for("EM999") is None


def test_reading_pages_imports_no_torch() -> None:
    code = "import sys; from evalmode.checking.catalog import pages; pages(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_text_that_is_no_page_is_refused() -> None:
    with pytest.raises(UsageError, match="headings"):
        parse_page("Title.\n\nWhat it does\n------------\nSomething.")
    empty = "Title.\n\n" + "\n\n".join(f"{heading}\n---\n" for heading in HEADINGS)
    with pytest.raises(UsageError, match="says nothing under What it does"):
        parse_page(empty)


def test_half_an_example_of_a_code_is_refused() -> None:
    whole = "Title.\n\n" + "\n\n".join(f"{heading}\n---\nx" for heading in (*HEADINGS, "Codes"))
    for more in (
        "    EM172 position\n\nExample (EM172)\n---\nx",
        "\n\nExample (EM172)\n---\nx\n\nUse instead (EM172)\n---\nx",
    ):
        with pytest.raises(UsageError, match="half an example of EM172"):
            parse_page(f"{whole}\n{more}")


def catalogs_with_pages() -> list[Any]:
    rooms = sorted(path.parent.name for path in Path(evalmode.__file__).parent.glob("*/catalog.py"))
    catalogs = [importlib.import_module(f"evalmode.{room}.catalog") for room in rooms]
    return [catalog for catalog in catalogs if hasattr(catalog, "pages")]


def test_a_page_in_any_catalog_is_explained_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    entries = [entry for catalog in catalogs_with_pages() for entry in catalog.pages().items()]
    assert len(entries) >= 20
    for name, page in entries:
        assert main(["explain", name]) == 0
        opening = " ".join(capsys.readouterr().out.split("\n\n")[0].split())
        assert opening == page.title
