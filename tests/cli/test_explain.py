import re
import subprocess
import sys

import pytest

from evalmode.backends.catalog import BACKEND_NAMES
from evalmode.checking.catalog import pages
from evalmode.clause import CLAUSES
from evalmode.cli.main import main
from evalmode.optimization.catalog import PASS_FILES
from evalmode.page import HEADINGS

CODES = [(code, summary) for page in pages().values() for code, summary in page.codes.items()]


def widest(shown):
    """The longest line of prose: code and addresses stand as they are, however narrow the terminal."""
    lines = shown.splitlines()
    return max(len(line) for line in lines if not line.startswith(" " * 6) and "://" not in line)


@pytest.mark.parametrize("topic", [*CLAUSES, "em122", " EM171 "])
def test_every_clause_and_code_is_explained(topic, capsys):
    assert main(["explain", topic]) == 0
    shown = capsys.readouterr().out
    assert topic.strip().upper() in shown.upper()
    assert widest(shown) <= 100


@pytest.mark.parametrize(("code", "summary"), CODES)
@pytest.mark.parametrize("width", ["40", "100"])
def test_the_page_of_a_code_says_first_what_the_code_is(code, summary, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    assert main(["explain", code]) == 0
    shown = capsys.readouterr().out
    assert widest(shown) <= int(width)
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
        ("openvno", "did you mean `openvino`?"),
        ("fold_batchnorm", "did you mean `fold-batch-norm`?"),
        ("xyzzy", "evalmode explain   # lists them all"),
    ],
)
def test_unknown_topics_end_with_2(topic, hint, capsys):
    assert main(["explain", topic]) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("width", ["40", "80"])
@pytest.mark.parametrize("topic", [*BACKEND_NAMES, *PASS_FILES, *CLAUSES])
def test_every_entry_of_every_catalog_is_explained_by_its_own_page(topic, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    assert main(["explain", topic]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert widest(shown.out) <= int(width)
    assert [line for line in lines if line in HEADINGS] == list(HEADINGS)
    assert lines[0].startswith(f"{topic}: ")


@pytest.mark.parametrize("topic", ["aot-inductor", "AOT_Inductor", " fold_batch_norm", "Fold-Batch-Norm"])
def test_a_hyphen_an_underscore_and_capitals_are_the_same(topic, capsys):
    assert main(["explain", topic]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith(topic.strip().lower()[:3])


@pytest.mark.parametrize("width", ["40", "80"])
def test_without_a_topic_all_are_listed(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["explain"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= int(width)
    listed = [line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line[2] != " "]
    assert [name for name in listed if name in {*CLAUSES, *BACKEND_NAMES, *PASS_FILES}] == [
        *(name for name in CLAUSES if name in pages()),
        *BACKEND_NAMES,
        *PASS_FILES,
    ]
    assert "\x1b" not in shown


def test_explaining_imports_neither_torch_nor_a_back_end():
    code = (
        "import sys; from evalmode.cli.main import main; main(['explain', 'openvino']); main(['explain']); "
        "sys.exit(bool({'torch', 'openvino', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("width", ["40", "80"])
def test_code_and_addresses_are_never_wrapped(capsys, monkeypatch, width):
    from evalmode.checking.catalog import pages

    monkeypatch.setenv("COLUMNS", width)
    for name, page in pages().items():
        assert main(["explain", name]) == 0
        shown = capsys.readouterr().out
        code = [line for line in page.sections["Example"].splitlines() if line.startswith("    ")]
        assert code and all(f"  {line}\n" in shown for line in code)
        for address in re.findall(r"https?://\S+", " ".join(page.sections["Source"].split())):
            assert address in shown
