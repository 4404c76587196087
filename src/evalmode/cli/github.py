"""`--format github`: findings as workflow commands, which GitHub shows beside the lines of a pull request."""

from __future__ import annotations

import os
from pathlib import Path

from evalmode.certificate import Certificate
from evalmode.clause import Verdict
from evalmode.finding import Finding, Severity

__all__ = ["escaped_data", "escaped_property", "workflow_commands"]

_LEVELS = {Severity.ERROR: "error", Severity.NOTE: "notice"}
_DATA = (("%", "%25"), ("\r", "%0D"), ("\n", "%0A"))
_PROPERTY = (*_DATA, (":", "%3A"), (",", "%2C"))


def workflow_commands(certificate: Certificate, *, unicode: bool = True) -> list[str]:
    """A workflow command for each finding that breaks a clause or is worth a note, not for those allowed or ignored.

    Source: https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands
    """
    lines = [
        _command(_LEVELS[finding.severity], _properties(finding), _message(finding), unicode=unicode)
        for finding in certificate.findings
        if finding.severity in _LEVELS
    ]
    told = {finding.clause for finding in certificate.findings if finding.severity is Severity.ERROR}
    lines.extend(
        _command("error", {"title": result.clause}, result.evidence, unicode=unicode)
        for result in certificate.clauses
        if result.verdict is Verdict.BROKEN and result.clause not in told and not result.through
    )
    return lines


def escaped_data(text: str) -> str:
    r"""The message of a workflow command, escaped as the runner reads it.

    Example:
        >>> escaped_data("50 %\nof 8")
        '50 %25%0Aof 8'
    """
    for char, code in _DATA:
        text = text.replace(char, code)
    return text


def escaped_property(text: str) -> str:
    """A property of a workflow command, escaped as the runner reads it.

    Example:
        >>> escaped_property("a,b: 5 %")
        'a%2Cb%3A 5 %25'
    """
    for char, code in _PROPERTY:
        text = text.replace(char, code)
    return text


def _command(level: str, properties: dict[str, str], message: str, *, unicode: bool) -> str:
    from evalmode.terminal import displayable

    told = {name: displayable(value, unicode=unicode) for name, value in properties.items()}
    pairs = ",".join(f"{name}={escaped_property(value)}" for name, value in told.items())
    return f"::{level} {pairs}::{escaped_data(displayable(message, unicode=unicode))}"


def _properties(finding: Finding) -> dict[str, str]:
    properties = {}
    if finding.place.file and Path(finding.place.file).is_file():  # code made by exec() has none
        properties["file"] = _repository_path(Path(finding.place.file))
        if finding.place.line:
            properties["line"] = str(finding.place.line)
    return {**properties, "title": f"{finding.code} {finding.clause}"}


def _message(finding: Finding) -> str:
    where = finding.place.module or "the model itself"
    parts = [finding.summary, f"where: {where}" + (f": {finding.place.source}" if finding.place.source else "")]
    parts += [f"seen: {finding.seen}"] if finding.seen else []
    parts += [f"fix: {finding.fix}"] if finding.fix else []
    return "\n".join([*parts, f"evalmode explain {finding.code}"])


def _repository_path(file: Path) -> str:
    """A file as GitHub knows it: relative to the workspace, to the repository that holds it, or to this folder."""
    path = file.resolve()
    workspace = os.environ.get("GITHUB_WORKSPACE", "")
    repository = next((folder for folder in path.parents if (folder / ".git").exists()), None)
    for root in (Path(workspace).resolve() if workspace else None, repository, Path.cwd()):
        if root is not None and path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return path.as_posix()
