"""Verdicts that come from elsewhere than the check: what `evaluating` mends, and what the test data showed."""

from __future__ import annotations

import msgspec

from evalmode.certificate import Certificate
from evalmode.clause import Verdict
from evalmode.errors import NonFiniteOutputError
from evalmode.finding import Finding, Severity

__all__ = ["with_mended", "with_non_finite_outputs"]


def with_mended(plain: Certificate, inside: Certificate) -> Certificate:
    """Notes on the clauses that a plain `eval()` breaks and `evaluating` keeps."""
    mended = {result.clause: result for result in inside.clauses if result.verdict is Verdict.KEPT}
    clauses = []
    for result in plain.clauses:
        if result.verdict is Verdict.BROKEN and result.clause in mended:
            probes = mended[result.clause].probes
            note = f"mended: by evalmode.evaluating(model): kept there on {probes} probes"
            result = msgspec.structs.replace(result, notes=(*result.notes, note))
        clauses.append(result)
    return msgspec.structs.replace(
        plain, clauses=tuple(clauses), forward_passes=plain.forward_passes + inside.forward_passes
    )


def with_non_finite_outputs(certificate: Certificate, error: NonFiniteOutputError) -> Certificate:
    """The clause `finite` broken by the test data; where it was not chosen, the error is the caller's."""
    if not any(result.clause == "finite" for result in certificate.clauses):
        raise error
    if any(finding.clause == "finite" and finding.severity is Severity.ERROR for finding in certificate.findings):
        return certificate  # the probes have found the line already
    finding = Finding(
        code="EM192",
        clause="finite",
        summary="a sample of the test data gives outputs that are not finite",
        seen=error.got,
        fix="check with that sample: evalmode.check(model, inputs) names the line",
    )
    broken = {"verdict": Verdict.BROKEN, "evidence": f"{finding.code} {finding.summary}"}
    clauses = tuple(
        msgspec.structs.replace(result, **broken, probes=result.probes + 1) if result.clause == "finite" else result
        for result in certificate.clauses
    )
    return msgspec.structs.replace(certificate, clauses=clauses, findings=(*certificate.findings, finding))
