from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalmode.certificate import Certificate, ClauseResult, Environment, ModelRecord
from evalmode.clause import Verdict
from evalmode.cli.github import escaped_data, escaped_property, workflow_commands
from evalmode.cli.main import main
from evalmode.finding import Finding, Place, Severity


def read_by_the_runner(line):
    """A workflow command as GitHub's runner reads it: the rules of its ActionCommand, in its order."""
    line = line.lstrip()
    assert line.startswith("::")
    end = line.index("::", 2)
    level, _, listed = line[2:end].partition(" ")
    properties = dict(pair.split("=", 1) for pair in listed.strip().split(",") if pair)
    codes = [("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")]
    for code, char in codes:
        properties = {name: value.replace(code, char) for name, value in properties.items()}
    message = line[end + 2 :]
    for code, char in (codes[0], codes[1], codes[4]):
        message = message.replace(code, char)
    return level, properties, message


words = st.text(st.sampled_from("%\r\n:,=; 0AD253aé☃") | st.characters(exclude_categories=["Cs"]), max_size=40)


@given(title=words.map(str.strip).filter(bool), file=words.filter(str.strip), message=words)
def test_what_is_escaped_is_read_back(title, file, message):
    line = f"::error file={escaped_property(file)},title={escaped_property(title)}::{escaped_data(message)}"
    assert "\n" not in line
    assert "\r" not in line
    level, properties, text = read_by_the_runner(line)
    assert (level, text) == ("error", message)
    assert properties == {"file": file, "title": title}


def certificate(*findings, clauses=()):
    model = ModelRecord(name="Net", modules=1, parameters=1, bytes=4, fingerprint="")
    machine = Environment(
        evalmode="", python="", torch="", device="", processor="", cores=1, threads=1, platform=""
    )  # fmt: skip
    return Certificate(
        created="", subject="Net", model=model, environment=machine, findings=findings, clauses=clauses
    )  # fmt: skip


@given(summary=words, source=words, seen=words, fix=words)
def test_a_finding_is_one_line_whatever_it_says(summary, source, seen, fix):
    finding = Finding("EM171", "batch-independent", summary, Place("neck", "", 0, source), seen, fix)
    (line,) = workflow_commands(certificate(finding))
    assert len(line.splitlines()) == 1
    level, properties, message = read_by_the_runner(line)
    assert (level, properties) == ("error", {"title": "EM171 batch-independent"})
    assert message.endswith("evalmode explain EM171")


@pytest.mark.parametrize("root", ["workspace", "repository", "folder"])
def test_files_are_named_as_github_knows_them(tmp_path, monkeypatch, root):
    project = tmp_path / "a project, 50 %"
    (project / "src").mkdir(parents=True)
    file = project / "src" / "net.py"
    file.write_text("", encoding="utf-8")
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    expected = "src/net.py"
    if root == "workspace":
        monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
        expected = "a project, 50 %/src/net.py"
    elif root == "repository":
        (project / ".git").mkdir()
    else:
        monkeypatch.chdir(project)
    finding = Finding("EM122", "no-randomness", "drops", Place("head", str(file), 7, "x"))
    (line,) = workflow_commands(certificate(finding))
    assert read_by_the_runner(line)[1] == {"file": expected, "line": "7", "title": "EM122 no-randomness"}


def test_what_is_allowed_or_ignored_is_not_annotated_and_a_note_is_a_notice():
    findings = [Finding("EM122", "no-randomness", "drops", severity=severity) for severity in Severity]
    levels = [read_by_the_runner(line)[0] for line in workflow_commands(certificate(*findings))]
    assert levels == ["error", "notice"]


def test_a_broken_clause_without_a_finding_is_annotated_unless_another_finding_breaks_it():
    clauses = (
        ClauseResult(clause="finite", verdict=Verdict.BROKEN, evidence="NaN"),
        ClauseResult(clause="no-randomness", verdict=Verdict.BROKEN, through=(("EM101", "head"),)),
        ClauseResult(clause="restores", verdict=Verdict.KEPT, evidence="all"),
    )
    lines = workflow_commands(certificate(clauses=clauses))
    assert [read_by_the_runner(line) for line in lines] == [("error", {"title": "finite"}, "NaN")]


@pytest.mark.parametrize("command", ["check", "certify"])
def test_annotations_stand_before_the_text(task_folder, capsys, monkeypatch, command):
    monkeypatch.setenv("GITHUB_WORKSPACE", str(task_folder))
    assert main([command, "broken.py", "--select", "no-randomness", "--format", "github"]) == 1
    first, *others = capsys.readouterr().out.splitlines()
    level, properties, message = read_by_the_runner(first)
    assert (level, properties) == ("error", {"file": "broken.py", "line": "12", "title": "EM122 no-randomness"})
    assert "return F.dropout(self.head(inputs), 0.5)" in message
    assert not any(line.startswith("::") for line in others)
    assert any(line.lstrip().startswith("✗ no-randomness") for line in others)
    assert Path("certificate.json").exists() == (command == "certify")


def test_a_kept_contract_has_no_annotation(task_folder, capsys):
    assert main(["check", "task.py", "--select", "finite", "--format", "github"]) == 0
    assert "::" not in capsys.readouterr().out
