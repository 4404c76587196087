import dataclasses
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalmode.certificate import Certificate, ClauseResult, Environment, EvaluationRecord, MetricRecord, ModelRecord
from evalmode.clause import CLAUSES, Verdict
from evalmode.finding import Finding, Place, Severity
from evalmode.page import Page
from evalmode.terminal import certificate_text, check_text, displayable, duration, entry, look, page_text

GOLDEN = Path(__file__).parent / "golden"
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")

BROKEN_ONES = (
    Finding(
        "EM171",
        "batch-independent",
        "a sample's answer depends on the others in its batch",
        Place("neck.scale", "net.py", 41, "return x / x.abs().amax()"),
        "logits move by 0.31, 3 of 8 answers change; fp64 agrees: no rounding",
        "x / x.abs().amax((1, 2, 3), keepdim=True)",
    ),
    Finding(
        "EM122",
        "no-randomness",
        "dropout is on in evaluation mode",
        Place("head", "net.py", 57, "x = F.dropout(x, 0.1)"),
        fix="F.dropout(x, 0.1, training=self.training)",
    ),
)
EVIDENCE = {
    "mode-complete": "15 modules, none out of reach of eval()",
    "no-randomness": "0 random draws",
    "no-gradients": "no graph; backward() had no effect",
    "deterministic": "same bits again, here and in a fresh process",
    "batch-independent": "same bits beside other companions, at any position",
    "finite": "9 edge inputs",
    "restores": "modes, random streams, buffers, .grad: same bits",
}
EVALUATION = EvaluationRecord(
    samples=540,
    batch_size=64,
    metrics=(
        MetricRecord(name="accuracy", value=539 / 540, low=0.98973, high=0.99995, count=539, total=540),
        MetricRecord(name="log loss", value=0.01213, low=0.0061, high=0.0243, total=540),
    ),
)


def certificate(**changes):
    broken = {finding.clause for finding in changes.get("findings", ()) if finding.severity is Severity.ERROR}
    clauses = tuple(
        ClauseResult(
            clause=name,
            verdict=Verdict.BROKEN if name in broken else Verdict.KEPT,
            probes=10,
            evidence=evidence,
            notes=("rounding: sizes 1 | 2-5 | 6-12 | 16-48 differ by up to 2.9e-06", "0 of 540 answers change")
            if name == "batch-independent"
            else (),
        )
        for name, evidence in EVIDENCE.items()
    )
    values = {
        "created": "2026-01-01T00:00:00Z",
        "subject": "net",
        "model": ModelRecord(name="Net", modules=15, parameters=10, bytes=40, fingerprint="00"),
        "environment": Environment(
            evalmode="0", python="3", torch="2", device="cpu", processor="", cores=2, threads=2, platform=""
        ),
        "clauses": clauses,
        "seconds": 1.4,
        "forward_passes": 38,
        **changes,
    }
    return Certificate(**values)


def held_against(name, text, update):
    path = GOLDEN / name
    if update:
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


@pytest.fixture
def update_golden(request):
    return request.config.getoption("--update-golden", default=False)


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHONIOENCODING", "LC_ALL", "LC_CTYPE", "LANG", "TERM"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("width", [80, 60, 36])
def test_check_golden(width, update_golden):
    text = check_text(certificate(findings=BROKEN_ONES), width=width, color=False)
    held_against(f"check-{width}.txt", text, update_golden)


@pytest.mark.parametrize("width", [80, 60, 36])
def test_certificate_golden(width, update_golden):
    steps = [("certificate", "build/demo/certificate.json"), ("break it", "make gallery")]
    said = ("prediction: the largest of 10 logits, from outputs of shape (N, 10) and whole-number targets",)
    good = certificate(evaluation=EVALUATION, inferred=said, seconds=41.0)
    text = certificate_text(good, next_steps=steps, width=width, color=False)
    held_against(f"certificate-{width}.txt", text, update_golden)


def test_broken_certificate_golden(update_golden):
    text = certificate_text(certificate(findings=BROKEN_ONES), width=80, color=False)
    held_against("certificate-broken-80.txt", text, update_golden)


def test_the_readmes_block_is_this_one():
    lines = check_text(certificate(findings=BROKEN_ONES), width=80, color=False).splitlines()
    assert lines[0] == "✗ batch-independent   a sample's answer depends on the others in its batch"
    assert lines[1] == "    where  neck.scale   net.py:41   return x / x.abs().amax()"
    assert lines[3] == "    fix    x / x.abs().amax((1, 2, 3), keepdim=True)   # evalmode explain EM171"
    assert lines[5] == "    where  head         net.py:57   x = F.dropout(x, 0.1)"
    assert lines[-1] == "5 kept, 2 broken, 0 not tested" + " " * 26 + "38 forward passes, 1.4 s"


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=120)
places = st.builds(Place, module=words, file=words, line=st.integers(0, 10**6), source=words)
findings = st.builds(
    Finding,
    code=st.sampled_from(["EM101", "EM171"]),
    clause=st.sampled_from(sorted(CLAUSES)),
    summary=words,
    place=places,
    seen=words,
    fix=words,
    severity=st.sampled_from(Severity),
)
results = st.builds(
    ClauseResult,
    clause=st.sampled_from(sorted(CLAUSES)),
    verdict=st.sampled_from(Verdict),
    probes=st.integers(0, 10**6),
    evidence=words,
    notes=st.lists(words, max_size=2).map(tuple),
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
metrics = st.builds(
    MetricRecord,
    name=words,
    value=numbers,
    low=st.none() | numbers,
    high=st.none() | numbers,
    method=words,
    count=st.none() | st.integers(0, 10**6),
    total=st.integers(0, 10**6),
)


@given(
    width=st.integers(20, 100),
    found=st.lists(findings, max_size=3).map(tuple),
    clauses=st.lists(results, max_size=4).map(tuple),
    figures=st.lists(metrics, max_size=2).map(tuple),
    said=st.lists(words, max_size=2).map(tuple),
)
def test_never_wider_than_the_terminal_and_colour_changes_no_character(width, found, clauses, figures, said):
    from rich.cells import cell_len

    evaluation = EvaluationRecord(samples=1, batch_size=1, metrics=figures)
    made = certificate(findings=found, clauses=clauses, evaluation=evaluation, inferred=said)
    for text_of in (check_text, certificate_text):
        plain = text_of(made, width=width, color=False)
        assert max(map(cell_len, plain.splitlines())) <= width
        assert "\x1b" not in plain
        colored = text_of(made, width=width, color=True)
        assert [line.rstrip() for line in ESCAPE.sub("", colored).split("\n")] == [
            line.rstrip() for line in plain.split("\n")
        ]


@given(found=findings.filter(lambda finding: finding.severity is Severity.ERROR), width=st.integers(20, 100))
def test_no_content_is_lost(found, width):
    text = "".join(check_text(certificate(findings=(found,)), width=width, color=False).split())
    for part in (found.summary, found.seen, found.fix, found.place.source):
        assert "".join(displayable(part).split()) in text
    assert f"evalmodeexplain{found.code}" in text


def test_allowed_undecided_and_untested_are_said_with_their_reason():
    clauses = (
        ClauseResult(clause="no-randomness", verdict=Verdict.ALLOWED, probes=3, evidence="1 draw, allowed"),
        ClauseResult(clause="finite", verdict=Verdict.UNDECIDED, probes=2, evidence="an operator has no fp64 form"),
        ClauseResult(clause="batch-independent", verdict=Verdict.NOT_TESTED, evidence="no batch axis"),
    )
    allowed = dataclasses.replace(BROKEN_ONES[1], severity=Severity.ALLOWED)
    text = check_text(certificate(clauses=clauses, findings=(allowed,)), width=80, color=False)
    assert "~ no-randomness" in text
    assert "head" in text
    assert "? finite              undecided: an operator has no fp64 form" in text
    assert "- batch-independent   not tested: no batch axis" in text
    assert "0 kept, 0 broken, 1 allowed, 1 undecided, 1 not tested" in text


def test_a_broken_clause_without_a_finding_is_shown():
    broken = (ClauseResult(clause="finite", verdict=Verdict.BROKEN, probes=2, evidence="NaN"),)
    assert "✗ finite              NaN" in check_text(certificate(clauses=broken), width=80, color=False)


def test_what_was_tested_is_shown_when_nothing_is_broken():
    text = check_text(certificate(), width=80, color=False)
    assert "✓ no-randomness       0 random draws" in text
    assert text.endswith("38 forward passes, 1.4 s")


@pytest.mark.parametrize(
    ("environment", "tty", "colored"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colour_follows_the_surroundings(monkeypatch, environment, tty, colored):
    stream = io.StringIO()
    stream.isatty = lambda: tty
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert look(stream).color is colored


@pytest.mark.parametrize(
    ("environment", "encoding", "shown"),
    [
        ({}, "utf-8", True),
        ({}, "ascii", False),
        ({}, "latin-1", False),
        ({}, "cp1252", False),
        ({"LC_ALL": "C"}, "utf-8", False),
        ({"LC_ALL": "POSIX"}, "utf-8", False),
        ({"LC_ALL": "C", "PYTHONUTF8": "1"}, "utf-8", True),
        ({"LC_ALL": "C.UTF-8", "LANG": "C"}, "utf-8", True),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, "utf-8", True),
    ],
)
def test_marks_follow_the_encoding(monkeypatch, environment, encoding, shown):
    monkeypatch.delenv("PYTHONUTF8", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert look(io.TextIOWrapper(io.BytesIO(), encoding=encoding)).unicode is shown


def test_ascii_marks_and_nothing_but_ascii(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    odd = dataclasses.replace(BROKEN_ONES[0], seen="± 0.1, größer")
    text = check_text(certificate(findings=(odd,)), width=80, color=False)
    assert text.isascii()
    assert text.startswith("x  batch-independent   a sample's")
    assert "+/- 0.1, gr\\xf6\\xdfer" in text
    assert "ok mode-complete" in certificate_text(certificate(), width=80, color=False)


def test_the_width_is_the_terminals(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    assert look().width == 50
    monkeypatch.setenv("COLUMNS", "5")
    assert look().width == 20
    monkeypatch.setenv("COLUMNS", "500")
    assert look().width == 100


def test_paths_are_shown_as_one_would_type_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def shown(file):
        finding = dataclasses.replace(BROKEN_ONES[0], place=Place("a", str(file), 3))
        return check_text(certificate(findings=(finding,)), width=100, color=False)

    assert "a   src/net.py:3" in shown(tmp_path / "src" / "net.py")
    assert "/elsewhere/net.py:3" in shown("/elsewhere/net.py")
    monkeypatch.chdir("/")
    assert "a   src/net.py:3" not in shown(tmp_path / "src" / "net.py")


def test_control_characters_of_the_user_never_reach_the_terminal():
    odd = dataclasses.replace(BROKEN_ONES[0], summary="a\x1b[31mb\x07", seen="one\ntwo\tthree")
    text = check_text(certificate(findings=(odd,)), width=80, color=False)
    assert "a\\x1b[31mb\\x07" in text
    assert "    seen   one\n           two    three\n" in text


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (MetricRecord(name="m", value=0.5, low=0.4321, high=0.5678, count=5, total=10), "50.0 % 43.2 to 56.8 5 of 10"),
        (
            MetricRecord(name="m", value=0.999912, low=0.99985, high=0.99996, count=9, total=10),
            "99.99 % 99.98 to 100.00",
        ),
        (MetricRecord(name="m", value=12345.6, low=12000.0, high=12700.0), "12,346 12,000 to 12,700"),
        (MetricRecord(name="m", value=1.5e-9, low=1e-9, high=2e-9), "1.5e-09 1e-09 to 2e-09"),
        (MetricRecord(name="m", value=2.0, low=2.0, high=2.0), "2.000 2.000 to 2.000"),
        (MetricRecord(name="m", value=2.0, method="no interval: one sample"), "2 no interval: one sample"),
        (MetricRecord(name="m", value=1.0, count=10, total=10, method="why"), "100.0 % 10 of 10 why"),
    ],
)
def test_figures_have_the_decimals_that_their_interval_supports(metric, expected):
    record = EvaluationRecord(samples=10, batch_size=10, metrics=(metric,))
    text = certificate_text(certificate(evaluation=record), width=100, color=False)
    assert expected in " ".join(text.split())


def test_long_metric_names_keep_the_columns():
    metrics = (
        MetricRecord(name="root mean squared error", value=1.05, low=0.84, high=1.35),
        MetricRecord(name="mae", value=0.85, low=0.66, high=1.10),
    )
    record = EvaluationRecord(samples=30, batch_size=30, metrics=metrics)
    lines = certificate_text(certificate(evaluation=record), width=80, color=False).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Test set"))
    assert [line.index(text) for line, text in zip(lines[start:], ("95 %", "0.84", "0.66"), strict=False)] == [39] * 3


def test_the_closing_word():
    assert "KEPT  7 of 7 clauses on 70 probes, 0 not tested" in certificate_text(certificate(), width=80, color=False)
    broken = certificate_text(certificate(findings=BROKEN_ONES), width=80, color=False)
    assert "BROKEN  2 of 7 clauses on 70 probes, 0 not tested" in broken
    none = certificate(clauses=(ClauseResult(clause="finite", verdict=Verdict.NOT_TESTED, evidence="no data"),))
    assert "NOT TESTED, 1 not tested" in certificate_text(none, width=80, color=False)


def test_a_page():
    body = "Some prose that\nis joined.\n\n    code = 1\n    more = 2\n\n- an item\n  of two lines"
    page = Page("finite: finite in, finite out", {"Example": body}, {"EM191": "NaN out of finite inputs"}, "")
    text = page_text(page, code="EM191", width=40, color=False)
    assert text.splitlines() == [
        "EM191   NaN out of finite inputs",
        "",
        "finite: finite in, finite out",
        "",
        "Example",
        "  Some prose that is joined.",
        "",
        "      code = 1",
        "      more = 2",
        "",
        "  - an item of two lines",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (119.6, "2 min 0 s")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_wide_characters_count_as_two():
    from rich.cells import cell_len
    from rich.text import Text

    lines = entry(Text("名前"), 8, "日本語の文字列" * 6, look(width=40))
    assert all(cell_len(line.plain) <= 40 for line in lines)
