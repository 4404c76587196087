"""The pytest plug-in: the evaluation contract as an assertion, with what breaks it in the failure message.

    def test_contract(assert_evaluation_contract):
        assert_evaluation_contract(model, batch)

pytest loads this file in every project that has evalmode installed, so it loads neither torch nor rich until a test
asserts something. Defaults come from `[tool.evalmode]` of the nearest pyproject.toml above pytest's root folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from evalmode.certificate import Certificate
    from evalmode.checking.runner import CheckReport

__all__ = ["assert_evaluation_contract"]

_OPTION = "--evalmode-probes"
_MARGIN = 8  # what pytest puts before each line of an error
_sessions: list[pytest.Config] = []  # the innermost runs now: a run inside a test of a plug-in stands on top


def assert_evaluation_contract(
    model: Any, batch: Any, *, ignore: Iterable[str] | None = None, **options: Any
) -> CheckReport:
    """Assert that `model` keeps the evaluation contract on `batch`; the report if it does.

    `options` are those of `evalmode.check`; `ignore` names clauses and codes that are left out of the verdict. What
    is not given is what `--evalmode-probes` says, then `[tool.evalmode]`, then the default of `check`.
    The model's flags are taken as they are: give `model.eval()`.

    Raises:
        ContractBrokenError: a clause is broken; the message is the report.
        UsageError: an option or a setting is wrong.
        ModelRunError: the model fails on the batch; its own error is the cause.

    Example:
        >>> import torch
        >>> assert_evaluation_contract(torch.nn.Linear(4, 3).eval(), torch.randn(8, 4)).ok
        True
    """
    __tracebackhide__ = True
    from evalmode.errors import ContractBrokenError, EvalmodeError

    try:
        certificate, settings = _checked(model, batch, ignore, options)
    except EvalmodeError as error:
        # The frames of evalmode say nothing to the reader of a test; the model's own error, the cause, keeps its own.
        raise error.with_traceback(None) from error.__cause__
    if not certificate.ok:
        raise ContractBrokenError(_message(certificate, settings))
    from evalmode.checking.runner import CheckReport

    return CheckReport(certificate)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of `pytest --help`, section "evalmode"."""
    parser.getgroup("evalmode", "the evaluation contract of PyTorch models").addoption(
        _OPTION,
        choices=("fast", "default", "thorough"),
        default=None,
        help="how much assert_evaluation_contract tries (default: `probes` of [tool.evalmode], or default)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Remember the run, whose root folder and options the assertion reads."""
    _sessions.append(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Forget the run."""
    if config in _sessions:
        _sessions.remove(config)


@pytest.fixture(scope="session", name="assert_evaluation_contract")
def _fixture() -> Callable[..., CheckReport]:
    """assert_evaluation_contract(model, batch, **options of evalmode.check): fails with what breaks the contract."""
    return assert_evaluation_contract


def _checked(model: Any, batch: Any, ignore: Iterable[str] | None, options: dict[str, Any]) -> tuple[Certificate, str]:
    """The certificate, and in words which settings it was made with."""
    from evalmode.checking.runner import check
    from evalmode.settings.allowed import split_patterns
    from evalmode.settings.project_file import read_settings
    from evalmode.settings.selection import complete_selection, read_names

    run = _sessions[-1] if _sessions else None
    settings = read_settings(Path() if run is None else run.rootpath)
    chosen = dict(options)
    selection, used = complete_selection(
        read_names(chosen.pop("clauses", None), "clauses="), read_names(ignore, "ignore="), settings
    )
    if "allow" not in chosen:
        chosen["allow"], _ = split_patterns(settings.allow, model)
        used += ["allow"] if chosen["allow"] else []
    if "probes" not in chosen:
        asked = None if run is None else run.getoption(_OPTION, None)
        chosen["probes"] = asked or settings.probes
        used += ["probes"] if asked is None and "probes" in settings.keys else []
    report = check(model, batch, clauses=selection.clauses, **chosen)
    return selection.applied(report.certificate), f"settings: {', '.join(used)} from {settings.origin}" if used else ""


def _message(certificate: Certificate, settings: str) -> str:
    from evalmode.clause import Verdict
    from evalmode.terminal import check_text, look

    broken = [result.clause for result in certificate.clauses if result.verdict is Verdict.BROKEN]
    headline = f"{certificate.subject} breaks the evaluation contract: {', '.join(broken)}"
    report = check_text(certificate, width=look().width - _MARGIN, color=False)
    return "\n".join(part for part in (headline, report, settings) if part)
