"""Two certificates side by side, the one that was given and the one that was made here: what is the same, what differs.

Pure: nothing is run. Verdicts have to be equal; figures of the same plan on the same machine have to have the same
bits, with their intervals, counts, slices, confusion and calibration; elsewhere they have to lie within the interval
that is computed here, never in one that the certificate alone gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from evalmode.certificate import (
    Certificate,
    ClauseResult,
    Environment,
    EvaluationRecord,
    MetricRecord,
    ModelRecord,
    OptimizationRecord,
    PlanRecord,
)
from evalmode.certification.retested import Outcome, Retested
from evalmode.clause import Verdict
from evalmode.finding import Finding, Severity

__all__ = ["DETAILS", "differences"]

_SAME, _DIFFERS, _UNTESTED = Outcome.SAME, Outcome.DIFFERS, Outcome.UNTESTED
_MACHINE = ("torch", "device", "processor", "cores", "threads", "platform")
"""What decides the bits of an answer; the versions of Python and of evalmode do not."""
_ROUNDING = 1e-9
DETAILS = ("skipped", "bad", "slices", "confusion", "calibration", "worst", "notes")
"""What an evaluation gives beside its figures."""
_OF_METRICS = ("slices", "worst", "notes")
"""Those of them that metrics decide."""


def differences(
    then: Certificate,
    here: Certificate,
    *,
    plan: Iterable[Retested] | None = None,
    no_clauses: str = "",
    no_plan: str = "",
    no_figures: str = "",
    no_metrics: str = "",
) -> tuple[Retested, ...]:
    """What `then` says, beside what the same tests gave `here`.

    `plan` is what is known of the plan, where that is not in the record of a search. `no_clauses`, `no_plan` and
    `no_figures` say why those parts are missing from `here`, where they are; `no_metrics` says so of single figures.

    Example:
        >>> from evalmode.certificate import Environment, ModelRecord
        >>> model = ModelRecord(name="Net", modules=1, parameters=2, bytes=8, fingerprint="00")
        >>> machine = Environment(
        ...     evalmode="", python="", torch="", device="", processor="", cores=2, threads=2, platform=""
        ... )
        >>> made = Certificate(created="", subject="Net", model=model, environment=machine)
        >>> {str(result.outcome) for result in differences(made, made)}
        {'same'}
    """
    return (
        *_model(then.model, here.model),
        *_environment(then.environment, here.environment),
        *_contract(then, here, no_clauses),
        *(_plan(then.optimization, here.optimization, no_plan) if plan is None else plan),
        *_test_set(then, here, no_figures, no_metrics),
    )


def _beside(then: object, here: object) -> str:
    return f"{then if then != '' else 'nothing'}, here {here if here != '' else 'nothing'}"


def _equal(part: str, name: str, then: object, here: object) -> Retested:
    if then == here:
        return Retested(part, name, _SAME)
    return Retested(part, name, _DIFFERS, _beside(then, here))


def _model(then: ModelRecord, here: ModelRecord) -> Iterable[Retested]:
    if not then.fingerprint or not here.fingerprint:
        who = "the certificate names" if not then.fingerprint else "what was given here has"
        yield Retested("model", "weights", _UNTESTED, f"{who} no weights")
    elif then.fingerprint == here.fingerprint:
        yield Retested("model", "weights", _SAME)
    else:
        detail = f"digest {then.fingerprint[:12]}, here {here.fingerprint[:12]}"
        if here.parameters and then.parameters != here.parameters:
            detail = f"{then.parameters:,} parameters, here {here.parameters:,}"
        yield Retested("model", "weights", _DIFFERS, detail)
    if here.name:  # an artifact knows its model by its weights alone
        yield _equal("model", "class", then.name, here.name)


def _environment(then: Environment, here: Environment) -> Iterable[Retested]:
    for name in Environment.__struct_fields__:
        yield _equal("environment", name, getattr(then, name), getattr(here, name))


def _contract(then: Certificate, here: Certificate, missing: str) -> Iterable[Retested]:
    found = {result.clause: result for result in here.clauses}
    if then.inputs and any(result.clause != "faithful" for result in here.clauses):
        if here.inputs:
            yield _equal("contract", "inputs", then.inputs, here.inputs)
        else:
            yield Retested("contract", "inputs", _UNTESTED, "the artifact's own probes stand in for the data")
    for result in then.clauses:
        yield _clause(result, found.get(result.clause), (then.findings, here.findings), missing)


def _clause(
    then: ClauseResult, here: ClauseResult | None, findings: tuple[Iterable[Finding], Iterable[Finding]], missing: str
) -> Retested:
    name = then.clause
    if then.verdict is Verdict.NOT_TESTED:
        if here is not None and here.verdict is Verdict.BROKEN:
            return Retested("contract", name, _DIFFERS, f"not tested, here broken: {here.evidence}")
        return Retested("contract", name, _UNTESTED, f"it was not tested then: {then.evidence or 'no reason given'}")
    if here is None or here.verdict is Verdict.NOT_TESTED:
        return Retested("contract", name, _UNTESTED, (here.evidence if here is not None else missing) or "not run")
    if then.verdict is not here.verdict:
        detail = _beside(then.verdict, here.verdict) + (f": {here.evidence}" if here.evidence else "")
        return Retested("contract", name, _DIFFERS, detail)
    before, now = (_places(name, each, result) for each, result in zip(findings, (then, here), strict=True))
    if before != now:
        return Retested("contract", name, _DIFFERS, f"{then.verdict} {_beside(_listed(before), _listed(now))}")
    probes = f"on {here.probes} probes" + (f", then on {then.probes}" if here.probes != then.probes else "")
    return Retested("contract", name, _SAME, f"{then.verdict} {probes}")


def _places(clause: str, findings: Iterable[Finding], result: ClauseResult) -> set[tuple[str, str]]:
    """What breaks a clause, or is allowed to, and where: lines of code may move."""
    counted = {Severity.ERROR, Severity.ALLOWED}
    own = {(each.code, each.place.module) for each in findings if each.clause == clause and each.severity in counted}
    return own | set(result.through)


def _listed(places: set[tuple[str, str]]) -> str:
    return ", ".join(f"{code} at {path or 'the model itself'}" for code, path in sorted(places)) or "with no finding"


def _plan(then: OptimizationRecord | None, here: OptimizationRecord | None, missing: str) -> Iterable[Retested]:
    """The plan that was chosen has to pass here too. Which plan is the fastest is a matter of the machine."""
    if then is None or then.chosen.outcome == "plain":
        return
    chosen = then.chosen
    name = f"{chosen.backend} {chosen.precision}".strip()
    if here is None:
        yield Retested("plan", name, _UNTESTED, missing or "no plan was searched for")
        return
    alike = [plan for plan in here.plans if (plan.backend, plan.precision) == (chosen.backend, chosen.precision)]
    if any(plan.outcome in {"chosen", "verified"} for plan in alike):
        yield Retested("plan", name, _SAME, "it gives the model's answers here too")
    elif refused := [plan for plan in alike if plan.outcome in {"rejected", "unstable"}]:
        yield Retested("plan", name, _DIFFERS, _why(refused[0]))
    else:
        detail = _why(alike[0]) if alike else f"the search took {here.chosen.name}, and did not try it"
        yield Retested("plan", name, _UNTESTED, detail)


def _why(plan: PlanRecord) -> str:
    return plan.reason or plan.outcome


def _test_set(then: Certificate, here: Certificate, missing: str, no_metrics: str) -> Iterable[Retested]:
    before, now = then.evaluation, here.evaluation
    if before is None:
        return
    names = [metric.name for metric in before.metrics]
    if now is None:
        for name in ("samples", *names):
            yield Retested("test set", name, _UNTESTED, missing or "no data was given")
        return
    yield _samples(before, now)
    apart = _why_not_bitwise(then, here, before, now)
    gone = no_metrics if {*names} - {metric.name for metric in now.metrics} else ""
    yield from _figures(before, now, apart, gone)
    if before.same_answers is not None:
        yield _same_answers(before, now, apart)
    for name, kept, made in _details(before, now):
        yield _detail(name, kept, made, apart, gone if name in _OF_METRICS else "")


def _samples(before: EvaluationRecord, now: EvaluationRecord) -> Retested:
    if before.samples != now.samples:
        return Retested("test set", "samples", _DIFFERS, _beside(f"{before.samples:,}", f"{now.samples:,}"))
    if before.data and now.data and before.data != now.data:
        return Retested("test set", "samples", _DIFFERS, f"{now.samples:,}, with other ids or targets than then")
    return Retested("test set", "samples", _SAME, f"{now.samples:,}")


def _why_not_bitwise(then: Certificate, here: Certificate, before: EvaluationRecord, now: EvaluationRecord) -> str:
    """Why figures need not have the same bits; empty where they have to."""
    if before.plan != now.plan:
        return f"by another plan ({now.plan or 'plain eval()'})"
    changed = [name for name in _MACHINE if getattr(then.environment, name) != getattr(here.environment, name)]
    if changed:
        return f"with other {' and '.join(changed)}"
    if before.execution_sizes != now.execution_sizes:
        then_sizes, sizes = (", ".join(map(str, each.execution_sizes)) or "no known size" for each in (before, now))
        return f"in executions of {sizes} instead of {then_sizes}"
    if not (before.exact and now.exact) and before.batch_size != now.batch_size:
        return f"in batches of {now.batch_size} instead of {before.batch_size}, as they came"
    return ""


def _figures(before: EvaluationRecord, now: EvaluationRecord, apart: str, gone: str) -> Iterable[Retested]:
    """Every figure that either of the two has; `gone` says why those of then were not computed here, if they were not.

    Those that were inferred here in their place are nobody's claim.
    """
    found = {metric.name: metric for metric in now.metrics}
    for metric in before.metrics:
        if metric.name in found:
            yield _figure(metric, found.pop(metric.name), apart)
        elif gone:
            yield Retested(
                "test set", metric.name, _UNTESTED, f"{_number(metric, metric.value)}, not recomputed: {gone}"
            )
        else:
            detail = f"{_number(metric, metric.value)}, here no such figure: other metrics than then, or another name"
            yield Retested("test set", metric.name, _DIFFERS, detail)
    for name, metric in ({} if gone else found).items():
        detail = f"not in the certificate, here {_number(metric, metric.value)}"
        yield Retested("test set", name, _DIFFERS, detail)


def _figure(then: MetricRecord, here: MetricRecord, apart: str) -> Retested:
    value = _equal_bits(then.value, here.value)
    before, now = _number(then, then.value), _number(here, here.value)
    if before == now and not value:
        before, now = repr(then.value), repr(here.value)
    if not apart:
        if not value:
            detail = f"{_beside(before, now)}, by the same plan on the same machine"
            return Retested("test set", then.name, _DIFFERS, detail)
        parts = [
            f"{name} {_beside(getattr(then, name), getattr(here, name))}"
            for name in ("low", "high", "confidence", "method", "count", "total")
            if not _equal_bits(getattr(then, name), getattr(here, name))
        ]
        if parts:
            return Retested("test set", then.name, _DIFFERS, f"{now}, but {'; '.join(parts)}")
    elif wrong := _not_comparable(then, here):
        return Retested("test set", then.name, _DIFFERS, f"{_beside(before, now)} {apart}, but {wrong}")
    if value:
        return Retested("test set", then.name, _SAME, f"{now}, the same bits")
    if here.low is None or here.high is None:
        reason = f"{_beside(before, now)} {apart}; no interval can be given here to hold it against"
        return Retested("test set", then.name, _UNTESTED, reason)
    between = f"the interval here, {_number(here, here.low)} to {_number(here, here.high)}"
    if here.low <= then.value <= here.high:
        return Retested("test set", then.name, _SAME, f"{_beside(before, now)} {apart}: within {between}")
    return Retested("test set", then.name, _DIFFERS, f"{_beside(before, now)} {apart}: outside {between}")


def _not_comparable(then: MetricRecord, here: MetricRecord) -> str:
    """What no other machine explains: another number of samples, a count or an interval that is not the figure's."""
    if then.total != here.total:
        return f"of {_beside(f'{then.total:,}', f'{here.total:,}')} samples"
    if (then.count is None) != (here.count is None):
        return "one of the two has no count"
    if then.count is not None and then.total and abs(then.count / then.total - then.value) > _ROUNDING:
        return f"its count is {then.count:,} of {then.total:,}"
    if then.low is None or then.high is None or here.low is None or here.high is None:
        return ""
    if max(abs(then.low - here.low), abs(then.high - here.high)) > here.high - here.low:
        claimed = f"{_number(then, then.low)} to {_number(then, then.high)}"
        return f"its interval is {_beside(claimed, f'{_number(here, here.low)} to {_number(here, here.high)}')}"
    return ""


def _details(before: EvaluationRecord, now: EvaluationRecord) -> Iterable[tuple[str, object, object]]:
    """The rest that a repeated evaluation gives, where either of the two has it; drawn images are left out."""
    for name in DETAILS:
        kept, made = getattr(before, name), getattr(now, name)
        if name == "worst":
            kept, made = ([msgspec.structs.replace(each, image="") for each in part] for part in (kept, made))
        if kept or made:
            yield name, kept, made


def _detail(name: str, kept: object, made: object, apart: str, gone: str) -> Retested:
    if msgspec.json.encode(kept) == msgspec.json.encode(made):
        return Retested("test set", name, _SAME)
    if gone:
        return Retested("test set", name, _UNTESTED, f"other metrics than then: {gone}")
    if not kept or not made:
        return Retested("test set", name, _DIFFERS, f"{_size(kept)}, here {_size(made)}")
    if apart:
        return Retested("test set", name, _UNTESTED, f"not the same {apart}")
    detail = _beside(kept, made) if isinstance(kept, int) else "not what the same plan gives on the same machine"
    return Retested("test set", name, _DIFFERS, detail)


def _size(part: object) -> str:
    return str(part) if isinstance(part, int) else "given" if part else "none"


def _equal_bits(then: object, here: object) -> bool:
    """Equal; what was not finite is NaN once it was written, and equals all that is not finite."""
    if isinstance(then, float) and isinstance(here, float) and math.isnan(then):
        return not math.isfinite(here)
    return then == here


def _same_answers(before: EvaluationRecord, now: EvaluationRecord, apart: str) -> Retested:
    name = "answers as plain"
    if now.same_answers is None:
        return Retested("test set", name, _UNTESTED, "needs the plain model and its plan side by side")
    detail = _beside(f"{before.same_answers:,} of {before.samples:,}", f"{now.same_answers:,} of {now.samples:,}")
    if before.same_answers == now.same_answers:
        return Retested("test set", name, _SAME, f"{now.same_answers:,} of {now.samples:,}")
    return Retested("test set", name, _UNTESTED if apart else _DIFFERS, f"{detail} {apart}".rstrip())


def _number(metric: MetricRecord, value: float) -> str:
    return f"{100 * value:.4g} %" if metric.count is not None else f"{value:.6g}"
