import pytest

from evalmode.checking.catalog import pages
from evalmode.clause import CLAUSES
from evalmode.cli.main import main

CODES = [(code, summary) for page in pages().values() for code, summary in page.codes.items()]


@pytest.mark.parametrize("topic", [*CLAUSES, "em122", " EM171 "])
def test_every_clause_and_code_is_explained(topic, capsys):
    assert main(["explain", topic]) == 0
    shown = capsys.readouterr().out
    assert topic.strip().upper() in shown.upper()
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize(("code", "summary"), CODES)
@pytest.mark.parametrize("width", ["40", "100"])
def test_the_page_of_a_code_says_first_what_the_code_is(code, summary, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    assert main(["explain", code]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= int(width)
    opening = " ".join(shown.split("\n\n")[0].split())
    assert opening == f"{code} {summary}"
    assert "Fix and its safety" in shown


@pytest.mark.parametrize(
    ("topic", "hint"),
    [
        ("finit", "did you mean `finite`?"),
        ("Batch-Independant", "did you mean `batch-independent`?"),
        ("EM17", "did you mean `EM171`?"),
        ("em-171", "did you mean `EM171`?"),
        ("171", "did you mean `EM171`?"),
        ("EM179", "did you mean `EM18"),
        ("E171", "did you mean `EM171`?"),
        ("EM999", "did you mean `EM"),
        ("nonsense", "EM101"),
    ],
)
def test_unknown_topics_end_with_2(topic, hint, capsys):
    assert main(["explain", topic]) == 2
    assert hint in capsys.readouterr().err
