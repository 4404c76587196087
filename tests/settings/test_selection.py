import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import evalmode
from evalmode.certificate import Certificate, ClauseResult, Environment, ModelRecord
from evalmode.checking.catalog import CLAUSE_FILES, pages
from evalmode.clause import Verdict
from evalmode.errors import UsageError
from evalmode.finding import Finding, Severity
from evalmode.settings.project_file import Settings
from evalmode.settings.selection import complete_selection, read_names, select_clauses

PAGES = pages()
CODES = sorted(code for page in PAGES.values() for code in page.codes)
names = st.lists(st.sampled_from([*CLAUSE_FILES, *CODES, *{code[:4] for code in CODES}]), max_size=4, unique=True)


class Two(nn.Module):
    """One clause broken twice, another once, and a hidden part in training that breaks two clauses."""

    def __init__(self, *, hidden=False):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.parts = [nn.Dropout(0.5)] if hidden else []

    def forward(self, x):
        x = F.dropout(self.first(x), 0.5)
        x = x + torch.randn_like(x) if not self.parts else x
        for part in self.parts:
            x = part(x)
        return self.second(x / x.abs().amax())


def selection(select=None, ignore=None):
    return select_clauses(read_names(select, "--select") or (), read_names(ignore, "--ignore") or ())


@pytest.fixture(scope="module")
def certificate():
    return evalmode.check(Two().eval(), torch.randn(8, 4, generator=torch.Generator().manual_seed(0))).certificate


def results(certificate):
    return {result.clause: result for result in certificate.clauses}


def test_the_model_breaks_what_these_tests_need(certificate):
    errors = [finding for finding in certificate.findings if finding.severity is Severity.ERROR]
    assert len({finding.code for finding in errors if finding.clause == "no-randomness"}) == 2
    assert [finding.code for finding in errors if finding.clause == "batch-independent"] == ["EM171"]


def test_nothing_asked_for_changes_nothing(certificate):
    chosen = selection()
    assert chosen.clauses is None
    assert chosen.applied(certificate) is certificate


def test_one_of_two_codes_leaves_the_clause_broken_and_says_so(certificate):
    made = selection(ignore=["EM122"]).applied(certificate)
    result = results(made)["no-randomness"]
    assert result.verdict is Verdict.BROKEN
    assert "EM122" not in result.evidence
    assert any(note.startswith("ignored: EM122 at ") and note.endswith("(by --ignore)") for note in result.notes)
    assert {finding.code for finding in made.findings if finding.severity is Severity.IGNORED} == {"EM122"}
    assert results(made)["batch-independent"] == results(certificate)["batch-independent"]


def test_a_clause_of_which_all_is_ignored_is_allowed_and_never_kept(certificate):
    made = selection(ignore=["EM12", "EM17"]).applied(certificate)
    assert made.ok
    assert {name for name, result in results(made).items() if result.verdict is Verdict.ALLOWED} == {
        "no-randomness",
        "batch-independent",
    }
    assert len(made.findings) == len(certificate.findings)


def test_what_is_allowed_stays_allowed():
    batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    report = evalmode.check(nn.Sequential(Two()).eval(), batch, clauses=["no-randomness"], allow=["0"])
    made = selection(ignore=["EM122"]).applied(report.certificate)
    assert {finding.severity for finding in made.findings} == {Severity.ALLOWED}
    assert made.clauses == report.certificate.clauses


def test_a_clause_broken_through_another_ones_finding_follows_it():
    batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = [nn.Dropout(0.5)]
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(self.parts[0](x))

    found = evalmode.check(Holder().eval(), batch, clauses=["mode-complete", "no-randomness"]).certificate
    (code,) = {finding.code for finding in found.findings if finding.clause == "mode-complete"}
    assert results(found)["no-randomness"].verdict is Verdict.BROKEN
    made = selection(ignore=[code]).applied(found)
    assert made.ok
    assert f"see {code}" in results(made)["no-randomness"].evidence
    kept_out = selection(select=["no-randomness"], ignore=["mode-complete"])
    assert kept_out.clauses == ("no-randomness",)
    other = next(name for name in pages()["mode-complete"].codes if name != code)
    unselected = selection(select=["no-randomness", other]).applied(found)
    assert results(unselected)["no-randomness"].verdict is Verdict.BROKEN


@given(select=names, ignore=names)
def test_selected_and_ignored_are_what_set_arithmetic_says(select, ignore, certificate):
    def scope(name):
        return {code for page in PAGES.values() for code in page.codes if code.startswith(name)} or {*PAGES[name].codes}

    wanted = set().union(*map(scope, select)) if select else set(CODES)
    wanted -= set().union(*map(scope, ignore)) if ignore else set()
    try:
        chosen = selection(select or None, ignore or None)
    except UsageError:
        counted_clauses = [name for name in CLAUSE_FILES if set(PAGES[name].codes) & wanted]
        assert not counted_clauses or set(CLAUSE_FILES) - set(ignore) == set()
        return
    made = chosen.applied(certificate)
    for before, after in zip(certificate.findings, made.findings, strict=True):
        assert before.code == after.code
        if before.severity is Severity.ERROR:
            assert after.severity is (Severity.ERROR if after.code in wanted else Severity.IGNORED), after.code
    tested = chosen.clauses or tuple(CLAUSE_FILES)
    assert not set(tested) & set(ignore)
    assert {name for name in CLAUSE_FILES if set(PAGES[name].codes) & wanted} <= set(tested)
    for result in made.clauses:
        if result.clause in tested:
            broken = any(f.severity is Severity.ERROR for f in made.findings if f.clause == result.clause)
            assert (result.verdict is Verdict.BROKEN) == broken


def record(**parts):
    machine = dict.fromkeys(("evalmode", "python", "torch", "device", "processor", "platform"), "")
    return Certificate(
        created="",
        subject="Net",
        model=ModelRecord(name="Net", modules=1, parameters=1, bytes=4, fingerprint=""),
        environment=Environment(**machine, cores=1, threads=1),
        **parts,
    )


def settings(**values):
    return Settings(**values)


@pytest.mark.parametrize(
    ("select", "ignore", "file", "ignored", "used"),
    [
        (None, None, settings(ignore=("EM171",)), {"EM171"}, ["ignore"]),
        (None, None, settings(select=("finite",), ignore=("EM171",)), {"EM171"}, ["select", "ignore"]),
        (None, ["EM122"], settings(ignore=("EM171",)), {"EM122"}, []),
        (None, [""], settings(ignore=("EM171",)), set(), []),
        (["EM171"], None, settings(ignore=("EM17", "EM191")), {"EM191"}, ["ignore"]),
        (["batch-independent"], None, settings(ignore=("batch-independent",)), set(), []),
        (["batch-independent"], None, settings(ignore=("EM171",)), {"EM171"}, ["ignore"]),
        (["finite"], None, settings(select=("restores",)), set(), []),
    ],
)
def test_an_option_wins_over_the_file(select, ignore, file, ignored, used):
    chosen, taken = complete_selection(read_names(select, "--select"), read_names(ignore, "--ignore"), file)
    assert {item.name for item in chosen.ignore} == ignored
    assert taken == used
    if select:
        assert {item.name for item in chosen.select} == set(select)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("finit", "did you mean `finite`?"),
        ("faithful", "does not test"),
        ("EM", "no clause or code"),
        ("EM9", "no clause or code"),
    ],
)
def test_an_unknown_name_says_who_gave_it(name, hint):
    with pytest.raises(UsageError) as caught:
        complete_selection(None, None, settings(ignore=(name,)))
    assert hint in str(caught.value)
    assert "no settings" in str(caught.value)


def test_an_ignored_note_changes_no_verdict():
    note = Finding("EM171", "batch-independent", "rounding", severity=Severity.NOTE)
    for verdict in (Verdict.BROKEN, Verdict.KEPT, Verdict.UNDECIDED):
        result = ClauseResult(clause="batch-independent", verdict=verdict, probes=3, evidence="as it was")
        made = selection(ignore=["EM171"]).applied(record(findings=(note,), clauses=(result,)))
        assert results(made)["batch-independent"] == ClauseResult(
            clause="batch-independent",
            verdict=verdict,
            probes=3,
            evidence="as it was",
            notes=("ignored: EM171 at the model itself (by --ignore)",),
        )
