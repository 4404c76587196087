"""`report.html`: one page that holds everything it needs, from a certificate and any evaluations."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from evalmode.atomic_file import atomic_file
from evalmode.certificate import Certificate, Environment, EvaluationRecord, ModelRecord
from evalmode.errors import MissingExtraError, UsageError
from evalmode.report.batch_sizes import Sizes, batch_sizes
from evalmode.report.contract import clause_rows, headline, stray_findings
from evalmode.report.evaluations import Evaluated, ImageBudget, evaluated
from evalmode.report.plans import Plans, plan_view
from evalmode.report.wording import joined, several, shown, time_taken
from evalmode.terminal.plans import byte_size

if TYPE_CHECKING:
    import jinja2

__all__ = ["Evaluation", "report_html", "write_report"]

PROMISE = "Same sample, same answer: alone, in any batch, under any load, or the line that breaks it."
_IMAGES = 1_800_000  # characters; the whole page stays below 3 MB
_SLICES = 800  # rows, of less than a thousand characters each


class Evaluation(Protocol):
    """What `evaluate` gives: its record, and whose it is."""

    @property
    def record(self) -> EvaluationRecord:
        """The plain data."""
        ...

    @property
    def subject(self) -> str:
        """What was evaluated."""
        ...


def report_html(
    certificate: Certificate | None, evaluations: Sequence[EvaluationRecord | Evaluation] = (), *, title: str = ""
) -> str:
    """The page as text: the certificate's own evaluation first, then `evaluations`, what is the same but once. `title`
    stands above the verdict.

    The page loads nothing: style, script, plots and images are inside, and its content security policy allows nothing
    else to run. It is below 3 MB whatever the records hold: what does not fit is left out, and said to be.

    Raises:
        UsageError: there is neither a certificate nor an evaluation.
        MissingExtraError: Jinja2, Altair or vl-convert is not installed.

    Example:
        >>> from evalmode.certificate import MetricRecord
        >>> metric = MetricRecord(name="accuracy", value=0.5, low=0.25, high=0.75, count=2, total=4)
        >>> record = EvaluationRecord(samples=4, batch_size=2, metrics=(metric,))
        >>> "25.0 to 75.0" in report_html(None, [record], title="four samples")
        True
    """
    if certificate is None and not evaluations:
        raise UsageError(
            "a report was asked for with neither a certificate nor an evaluation",
            expected="a Certificate, an EvaluationRecord, or both",
            fix="evalmode certify TASK --out DIR writes certificate.json and report.html",
        )
    template = _template()
    tests, headed = _evaluations(certificate, evaluations)
    plans = plan_view(certificate.optimization) if certificate and certificate.optimization else None
    sizes = batch_sizes(certificate) if certificate else None
    style, script = _own("style.css"), _own("script.js")
    return template.render(
        title=title or (certificate.subject if certificate else "") or "Evaluation",
        promise=PROMISE,
        certificate=certificate,
        headline=headline(certificate) if certificate else None,
        facts=_facts(plans, sizes, headed),
        clauses=clause_rows(certificate) if certificate else (),
        stray=stray_findings(certificate) if certificate else (),
        plans=plans,
        pareto=_pareto(plans),
        sizes=sizes,
        tests=[(position, test, _reliability(test)) for position, test in enumerate(tests, 1)],
        environment=_environment(certificate, evaluations),
        inferred=certificate.inferred if certificate else (),
        style=style,
        script=script,
        policy=_policy(style, script),
    )


def write_report(
    path: str | os.PathLike[str],
    certificate: Certificate | None,
    evaluations: Sequence[EvaluationRecord | Evaluation] = (),
    *,
    title: str = "",
) -> Path:
    """Write the page to `path` atomically: a reader sees the old page or the new one, never half of one.

    Raises:
        UsageError: nothing was given, or `path` cannot be written.
        MissingExtraError: Jinja2, Altair or vl-convert is not installed.
    """
    text = report_html(certificate, evaluations, title=title)
    try:
        with atomic_file(path) as file:
            file.write(text.encode("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot write {os.fspath(path)!r}: {error.strerror}", fix="-o PATH") from error
    return Path(path)


def _template() -> jinja2.Template:
    try:
        import jinja2

        for name in ("altair", "vl_convert"):  # said to be missing before anything is drawn
            importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"the report needs {error.name or 'a package'}, which is not installed",
            fix="pip install 'evalmode[evaluate]'",
        ) from error
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalized,
    )
    return environment.from_string(_text("template.html"))


def _finalized(value: Any) -> Any:
    """Whatever the template shows: text of ours as it is, all other text made safe to look at, and then escaped."""
    if value is None:
        return ""
    return value if hasattr(value, "__html__") or isinstance(value, int | float) else shown(value)


def _text(name: str) -> str:
    return files("evalmode.report").joinpath(name).read_text(encoding="utf-8")


def _own(name: str) -> Any:
    """A file of this room as it is; the page's style and script hold nothing of the user's."""
    from markupsafe import Markup

    return Markup(_text(name))  # noqa: S704 - package data


def _policy(style: str, script: str) -> str:
    """A content security policy that lets this style and this script run, shows images from within, and nothing else.

    Source: https://www.w3.org/TR/CSP3/
    """

    def mark(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    parts = ["default-src 'none'", "img-src data:", f"style-src {mark(style)}", f"script-src {mark(script)}"]
    return "; ".join([*parts, "base-uri 'none'", "form-action 'none'"])


def _evaluations(
    certificate: Certificate | None, evaluations: Sequence[EvaluationRecord | Evaluation]
) -> tuple[list[Evaluated], Evaluated | None]:
    """All of them, and the first that is of the weights that the page's verdict is of."""
    budget = ImageBudget(_IMAGES, _SLICES)
    own = certificate.evaluation if certificate else None
    verdicts = {result.clause: result.verdict for result in certificate.clauses} if certificate else {}
    tests = [evaluated(own, budget, verdicts=verdicts)] if own is not None else []
    of_whom = [certificate.model if certificate else None, *(getattr(given, "model", None) for given in evaluations)]
    known = [model.fingerprint for model in of_whom if model is not None and model.fingerprint]
    mine = known[0] if certificate and known else ""
    there = set() if own is None else {_told(own, mine)}
    headed = tests[0] if tests else None
    for given in evaluations:
        model: ModelRecord | None = getattr(given, "model", None)
        record = given if isinstance(given, EvaluationRecord) else given.record
        told = _told(record, model.fingerprint if model is not None and model.fingerprint else mine)
        if told in there:
            continue
        there.add(told)
        if isinstance(given, EvaluationRecord):
            tests.append(evaluated(given, budget, verdicts=verdicts))
            headed = headed or tests[-1]
            continue
        weights = model.fingerprint[:8] if model is not None else ""
        parts = [getattr(given, "source", ""), given.subject, given.record.plan, weights and f"weights {weights}"]
        other = model is not None and bool(known) and model.fingerprint != known[0]
        test = evaluated(given.record, budget, joined(parts, ", "), {} if other else verdicts)
        if other:
            whose = "the certificate" if certificate else "the first evaluation"
            note = f"Of other weights ({weights or 'unknown'}) than {whose} ({known[0][:8]})."
            test = dataclasses.replace(test, notes=(note, *test.notes))
        tests.append(test)
        headed = headed or (None if other else test)
    return tests, headed


def _told(record: EvaluationRecord, weights: str) -> tuple[str, str]:
    """What makes two evaluations one on the page: all but the time that they took, and what only a certificate adds."""
    return repr(msgspec.structs.replace(record, seconds=0.0, same_answers=None)), weights  # NaN is NaN by it


def _pareto(plans: Plans | None) -> Any:
    if plans is None:
        return ""
    from markupsafe import Markup

    from evalmode.report.plots import pareto_svg

    label = f"Error against time of {several(len(plans.points), 'plan')}; the figures are in the table beside it"
    return Markup(pareto_svg(plans, label))  # noqa: S704 - drawn by vl-convert, which escapes names


def _reliability(test: Evaluated) -> Any:
    from markupsafe import Markup

    from evalmode.report.plots import reliability_svg

    label = f"Share of right answers by confidence, {several(len(test.bins), 'bin')}; the figures are in the table"
    return Markup(reliability_svg(test.bins, label))  # noqa: S704 - as above


def _facts(plans: Plans | None, sizes: Sizes | None, test: Evaluated | None) -> list[tuple[str, str, str]]:
    """At most four figures to be read at once, as (value, what it is, more about it)."""
    facts: list[tuple[str, str, str]] = []
    if test is not None and test.metrics:
        first = test.metrics[0]
        between = first.shown.interval and f"{first.shown.interval}, {test.interval}"
        facts.append((first.shown.value, first.name, between or first.shown.count))
    if test is not None and test.same:
        facts.append((test.same, "same answer", "as the plain model's"))
    if plans is not None and plans.faster:
        facts.append((plans.speedup, "as fast as plain eval()", plans.chosen))
    elif plans is not None and plans.rows:
        why = "nothing verified was faster" if plans.none_faster else "of the plans that were tried"
        facts.append((plans.speedup, f"{plans.chosen} runs", why))
    if sizes is not None and sizes.answers:
        facts.append((sizes.answers, "answers change", "between batch sizes"))
    return facts


def _environment(
    certificate: Certificate | None, evaluations: Sequence[EvaluationRecord | Evaluation]
) -> list[tuple[str, str]]:
    """Model and machine of the certificate; without one, of the evaluations, each of several once."""
    if certificate is None:
        rows: list[tuple[str, str]] = []
        for given in evaluations:
            for place in (getattr(given, "model", None), getattr(given, "environment", None)):
                told = _of_model(place) if isinstance(place, ModelRecord) else []
                told += _of_machine(place) if isinstance(place, Environment) else []
                rows += [row for row in told if row not in rows]
        return rows
    passes = several(certificate.forward_passes, "forward pass", "forward passes")
    took = time_taken(certificate.seconds)
    rows = [
        *_of_model(certificate.model),
        ("Inputs", certificate.inputs),
        ("Probes", joined([certificate.probes, passes])),
        *_of_machine(certificate.environment),
        ("Certified", joined([certificate.created, took and f"in {took}"])),
    ]
    return [(name, text) for name, text in rows if text]


def _of_model(model: ModelRecord) -> list[tuple[str, str]]:
    size = f"{several(model.modules, 'module')}, {several(model.parameters, 'parameter')}, {byte_size(model.bytes)}"
    return [("Model", f"{model.name}: {size}"), ("Fingerprint", model.fingerprint)]


def _of_machine(machine: Environment) -> list[tuple[str, str]]:
    cores, threads = several(machine.cores, "core"), several(machine.threads, "thread")
    versions = [f"evalmode {machine.evalmode}", f"torch {machine.torch}", f"Python {machine.python}", machine.platform]
    return [
        ("Machine", joined([machine.processor, cores, threads, machine.device])),
        ("Software", joined(versions)),
    ]
