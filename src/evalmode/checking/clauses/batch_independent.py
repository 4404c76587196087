"""batch-independent: a sample's output depends on that sample alone.

What it does
------------
At one fixed batch shape, gives samples other companions (other samples, extreme values, NaN) and other positions: equal
bits settle it. Then runs batches of 1, 2, 3, 4 and 8. Where bits differ, a wide evaluation in fp64 decides: rounding
shrinks by orders of magnitude, dependence stays. Rounding is measured and noted, never an error.

Codes
-----
    EM171 a sample's answer depends on the others in its batch
    EM172 a sample's answer depends on its position in the batch
    EM173 a sample's answer is another one when it is alone

Why it matters
--------------
The answer to a customer's request must not depend on who else asked at that moment, and an evaluation must not depend
on the batch size it was run with.

Example
-------
The largest value of the whole batch scales every sample:

    import torch
    from torch import nn

    class Net(nn.Module):
        def forward(self, x):
            return x / (x.abs().amax() + 1e-6)

    model, batch = Net().eval(), torch.randn(8, 4)

Use instead
-----------
    import torch
    from torch import nn

    class Net(nn.Module):
        def forward(self, x):
            return x / (x.abs().amax(1, keepdim=True) + 1e-6)

    model, batch = Net().eval(), torch.randn(8, 4)

Fix and its safety
------------------
Reduce over a sample's own axes, use running statistics in evaluation, and keep attention and recurrence off the batch
axis (`batch_first=True`). Answers change, to those that the sample would have got alone: evaluate the model again.

Limits
------
Tested on the samples of the given batch. Outputs without a batch axis (a loss, a cache object) are passed over, and
said to be. If the samples lie along another axis than the first, declare `batch_axis=`.

Source
------
https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html#batched-computations-or-slice-computations
"""

from __future__ import annotations

from evalmode.checking.batch_probes import Comparison, Probes
from evalmode.checking.dependence import explain_dependence, failure_place
from evalmode.checking.examination import Examination, Measured
from evalmode.checking.subject import Subject
from evalmode.clause import Verdict
from evalmode.errors import ModelRunError
from evalmode.finding import Finding
from evalmode.observe.wide import WideUnsupportedError

CLAUSE = "batch-independent"
_SIZES = {"fast": (1, 2), "default": (1, 2, 3, 4, 8), "thorough": (1, 2, 3, 4, 5, 8, 16, 32)}
_SUMMARIES = {
    "EM171": "a sample's answer depends on the others in its batch",
    "EM172": "a sample's answer depends on its position in the batch",
    "EM173": "a sample's answer is another one when it is alone",
}


def examine(subject: Subject) -> Examination:
    """Test the clause on `subject`."""
    if isinstance(subject.axis, str):
        return Examination(probes=0, evidence=f"no batch axis: {subject.axis}", verdict=Verdict.NOT_TESTED)
    drew = bool(subject.observation().draws)
    subject.stilled = drew
    try:
        return _examined(subject, drew)
    finally:
        subject.stilled = False


def _examined(subject: Subject, drew: bool) -> Examination:
    probes = _probes(subject)
    if probes is None:
        return Examination(
            probes=2,
            evidence="the model runs on no batch of samples picked from the given one; declare batch_axis=",
            verdict=Verdict.NOT_TESTED,
        )
    if not probes.repeats():
        return Examination(
            probes=2,
            evidence="the same input does not give the same bits, so samples cannot be compared",
            verdict=Verdict.NOT_TESTED,
        )
    if not probes.layouts:
        return Examination(
            probes=probes.count, evidence="no output has a batch axis", verdict=Verdict.NOT_TESTED, notes=probes.notes()
        )
    comparisons: list[Comparison] = []
    undecided = ""
    for probe in probes.fixed_shape():
        comparison = probes.compare(probe)
        if comparison is None or comparison.same:
            continue
        comparisons.append(comparison)
        try:
            if probes.is_dependence(comparison):
                return _broken(subject, probes, comparison)
        except WideUnsupportedError as error:
            undecided = undecided or f"bits differ, and {error}"
    fixed_is_stable = not comparisons
    sizes = _SIZES[subject.probes]
    for size in sizes:
        at_size = _at_size(subject, probes, size)
        if isinstance(at_size, Finding):
            return Examination(probes=probes.count, evidence="", findings=(at_size,), notes=probes.notes())
        if at_size is None or at_size.same:
            continue
        try:
            if probes.is_dependence(at_size):
                return _broken(subject, probes, at_size)
        except WideUnsupportedError as error:
            undecided = undecided or f"bits differ between batch sizes, and {error}"
    notes = ("tested with random draws replaced by typical values",) if drew else ()
    return _kept(probes, fixed_is_stable, undecided, probes.size_classes(sizes), notes)


def _probes(subject: Subject) -> Probes | None:
    """The probes at 4 to 8 samples, or at the given number for a model that takes no other; None if neither runs."""
    if isinstance(subject.axis, str):
        return None
    for size in dict.fromkeys((min(max(subject.axis.size, 4), 8), subject.axis.size)):
        try:
            return Probes(subject, size)
        except ModelRunError:  # the given batch itself has run: this size or this way to divide it does not fit
            continue
    return None


def _at_size(subject: Subject, probes: Probes, size: int) -> Comparison | Finding | None:
    """The comparison of a batch of `size` with the reference; a finding if only a batch of one fails."""
    probe = probes.of_size(size)
    try:
        comparison = probes.compare(probe)
    except ModelRunError as error:
        probes.failed[size] = error
        if size != 1 or not probes.runs_at(2):
            return None
        return Finding(
            "EM173",
            CLAUSE,
            _SUMMARIES["EM173"],
            failure_place(subject.model, error),
            seen=f"a batch of 1 fails, a batch of 2 does not: {type(error.__cause__).__name__}: {error.__cause__}",
            fix="keep the batch axis: squeeze(dim) and reshape(len(x), -1) instead of squeeze() and fixed sizes",
        )
    if comparison is not None and comparison.lost and size == 1 and probes.has_layout_at(2):
        return Finding(
            "EM173",
            CLAUSE,
            _SUMMARIES["EM173"],
            explain_dependence(subject, probes, comparison).place,
            seen=f"{comparison.leaf} has the shape {comparison.shape} for a batch of 1: the batch axis is gone",
            fix="keep the batch axis: squeeze(dim) instead of squeeze()",
        )
    return comparison


def _broken(subject: Subject, probes: Probes, comparison: Comparison) -> Examination:
    found = explain_dependence(subject, probes, comparison)
    code = comparison.probe.code
    if code == "EM173" and not probes.only_alone():
        code = "EM171"
    seen = probes.seen(comparison)
    if found.mixed:
        seen += f"; {found.mixed}"
    finding = Finding(code, CLAUSE, _SUMMARIES[code], found.place, seen=seen, fix=found.fix)
    return Examination(
        probes=probes.count,
        evidence="",
        findings=(finding,),
        notes=probes.notes(),
        measured={"largest difference": comparison.gap},
    )


def _kept(
    probes: Probes, fixed_is_stable: bool, undecided: str, measured: Measured, notes: tuple[str, ...]
) -> Examination:
    if undecided:
        evidence, verdict = undecided, Verdict.UNDECIDED
    elif fixed_is_stable:
        evidence, verdict = "same bits beside other companions, at any position", None
    else:
        evidence, verdict = "no dependence; bits differ by rounding even at one shape", None
    lines = (*probes.rounding(measured), *probes.notes(), *notes)
    return Examination(probes=probes.count, evidence=evidence, verdict=verdict, notes=lines, measured=measured)
