"""batch-independent: a sample's output depends on that sample alone.

What it does
------------
At one fixed batch shape, gives samples other companions (other samples, extreme values, NaN) and other positions: equal
bits settle it. Then runs batches of 1, 2, 3, 4, 5, 8 and 16 (32 where the given batch holds 16; `thorough`: every size
up to 32; `fast`: 1 and 2). Where bits differ, a wide evaluation in fp64 decides: rounding shrinks by orders of
magnitude, dependence stays. Rounding is measured and noted with the first module that shows it, never an error. Where
the inputs carry a mask or lengths, padding is cut off and added. When a cause is found, its module is run sample by
sample, so that a second one elsewhere is found too. A model that cannot run in fp64 is judged only where a difference
at one fixed shape is far beyond what rounding in each of its modules comes to.

Codes
-----
    EM171 a sample's answer depends on the others in its batch
    EM172 a sample's answer depends on its position in the batch
    EM173 a sample's answer is another one when it is alone
    EM174 a sample's answer depends on padding

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

Example (EM172)
---------------
A scale for each feature that lies along the batch axis by mistake:

    import torch
    from torch import nn

    class Net(nn.Module):
        def forward(self, x):
            return x * torch.arange(1.0, 1 + len(x))[:, None]

    model, batch = Net().eval(), torch.randn(8, 4)

Use instead (EM172)
-------------------
    import torch
    from torch import nn

    class Net(nn.Module):
        def forward(self, x):
            return x * torch.arange(1.0, 1 + x.shape[1])

    model, batch = Net().eval(), torch.randn(8, 4)

Example (EM173)
---------------
A shortcut for single requests leaves the normalisation out:

    import torch
    from torch import nn

    class Net(nn.Module):
        def forward(self, x):
            return x if len(x) == 1 else nn.functional.layer_norm(x, (4,))

    model, batch = Net().eval(), torch.randn(8, 4)

Use instead (EM173)
-------------------
    import torch
    from torch import nn

    class Net(nn.Module):
        def forward(self, x):
            return nn.functional.layer_norm(x, (4,))

    model, batch = Net().eval(), torch.randn(8, 4)

Example (EM174)
---------------
The mean over a sequence counts its padding:

    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 4)

        def forward(self, input_ids, attention_mask):
            return self.embedding(input_ids).mean(1)

    model = Net().eval()
    mask = (torch.arange(6) < torch.tensor([6, 4, 3, 5])[:, None]).long()
    batch = {"input_ids": torch.randint(1, 10, (4, 6)) * mask, "attention_mask": mask}

Use instead (EM174)
-------------------
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 4)

        def forward(self, input_ids, attention_mask):
            mask = attention_mask[:, :, None]
            return (self.embedding(input_ids) * mask).sum(1) / mask.sum(1).clamp(1)

    model = Net().eval()
    mask = (torch.arange(6) < torch.tensor([6, 4, 3, 5])[:, None]).long()
    batch = {"input_ids": torch.randint(1, 10, (4, 6)) * mask, "attention_mask": mask}

Fix and its safety
------------------
Reduce over a sample's own axes, use running statistics in evaluation, and keep attention and recurrence off the batch
axis (`batch_first=True`). Answers change, to those that the sample would have got alone: evaluate the model again.

Limits
------
Tested on the samples of the given batch. Outputs without a batch axis (a loss, a cache object) are passed over, and
said to be; lists with an entry a sample (boxes) are compared sample by sample. If the samples lie along another axis
than the first, declare `batch_axis=`. Padding is tested under a named mask, at either end, or under named lengths. A
choice (top-k, argmax) that falls otherwise in fp64 than in fp32 is counted apart. A second cause is found only outside
the module of the first, and not with `probes="fast"`. A difference below 1e-5 between sizes is taken for rounding with
`fast`, and at sizes above that of the given batch unless `thorough` is asked for: fp64 would need memory for them.

Source
------
https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html#batched-computations-or-slice-computations
"""

from __future__ import annotations

import functools
from contextlib import nullcontext

from evalmode.checking.batch_probes import Comparison, Probes
from evalmode.checking.batch_search import SUMMARIES, Search
from evalmode.checking.batch_sizes import first_module, rounding_note, size_classes
from evalmode.checking.dependence import Dependence, explain_dependence
from evalmode.checking.examination import Examination, Measured
from evalmode.checking.mending import mended
from evalmode.checking.padding import find_padding, padding_leak
from evalmode.checking.subject import Subject
from evalmode.clause import Verdict
from evalmode.errors import ModelRunError
from evalmode.finding import Finding, Place
from evalmode.observe.still import can_still
from evalmode.observe.wide import WideUnsupportedError

CLAUSE = "batch-independent"
_CAUSES = 3
_STILLED = "tested with random draws replaced by typical values; padding not tested beside draws"


def examine(subject: Subject) -> Examination:
    """Test the clause on `subject`."""
    if isinstance(subject.axis, str):
        return Examination(probes=0, evidence=f"no batch axis: {subject.axis}", verdict=Verdict.NOT_TESTED)
    loose = sorted({draw.operator for draw in subject.draws() if not can_still(draw.operator)})
    if loose:
        evidence = f"{loose[0]} draws random numbers and has no typical value, so samples cannot be compared"
        return Examination(probes=0, evidence=evidence, verdict=Verdict.NOT_TESTED)
    drew = bool(subject.draws())
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
    if not probes.reader:
        return Examination(
            probes=probes.count, evidence="no output has a batch axis", verdict=Verdict.NOT_TESTED, notes=probes.notes()
        )
    search = Search(subject, probes)
    comparison = search.at_fixed_shape() or search.at_sizes() or search.choices()
    if search.restless:
        return Examination(
            probes=2,
            evidence="the same input does not give the same bits, so samples cannot be compared",
            verdict=Verdict.NOT_TESTED,
        )
    if search.refusal is not None:
        return Examination(probes=probes.count, evidence="", findings=(search.refusal,), notes=probes.notes())
    if comparison is not None:
        return _broken(subject, probes, comparison)
    padding = None if drew else _padding(subject, search)
    if padding is not None and not subject.is_reported(padding.place):
        return Examination(probes=probes.count, evidence="", findings=(padding,), notes=probes.notes())
    return _kept(search, (_STILLED,) if drew else ())


def _probes(subject: Subject) -> Probes | None:
    """The probes at 4 to 8 samples, or at the given number for a model that takes no other; None if neither runs."""
    if isinstance(subject.axis, str):
        return None
    most = 4 if subject.probes == "fast" else 8
    for size in dict.fromkeys((min(max(subject.axis.size, 4), most), subject.axis.size)):
        try:
            return Probes(subject, size)
        except ModelRunError:  # the given batch itself has run: this size or this way to divide it does not fit
            continue
    return None


def _broken(subject: Subject, probes: Probes, comparison: Comparison) -> Examination:
    cause = explain_dependence(subject, probes, comparison)
    code = comparison.probe.code
    if code == "EM173" and not probes.only_alone():
        code = "EM171"
    findings = [_finding(probes, comparison, cause, code)]
    if subject.probes != "fast":
        findings += _further(subject, cause)
    return Examination(
        probes=probes.count,
        evidence="",
        findings=tuple(findings),
        notes=probes.notes(),
        measured={"largest difference": comparison.found.gap},
    )


def _finding(probes: Probes, comparison: Comparison, cause: Dependence, code: str) -> Finding:
    seen = probes.seen(comparison)
    if cause.spread:
        seen += f"; {cause.spread}"
    return Finding(code, CLAUSE, SUMMARIES[code], cause.place, seen=seen, fix=cause.fix)


def _further(subject: Subject, first: Dependence) -> list[Finding]:
    """Dependences that show at a fixed shape once those found before are mended."""
    found: list[Finding] = []
    places, paths, last = [first.place], list[str](), first
    while len(places) < _CAUSES:
        flags_mend = last.place.module in subject.claimed or "batch_norm" in last.operator
        if not flags_mend or last.place in places[:-1]:
            if not last.place.module or last.place.module in paths:
                break
            paths.append(last.place.module)
        elif last.place.module in paths:
            break
        subject.mending = functools.partial(mended, subject.model, tuple(paths))
        try:
            again = _again(subject)
        finally:
            subject.mending = nullcontext
        if again is None:
            break
        last, finding = again
        if not last.place.file or any(_same_cause(last.place, place) for place in places):
            break
        places.append(last.place)
        found.append(finding)
    return found


def _again(subject: Subject) -> tuple[Dependence, Finding] | None:
    """The first dependence of the mended model at a fixed shape, if it runs and shows one."""
    try:
        probes = _probes(subject)
        if probes is None or not probes.reader:
            return None
        search = Search(subject, probes)
        comparison = search.at_fixed_shape()
        if comparison is None:
            return None
        cause = explain_dependence(subject, probes, comparison)
    except ModelRunError:  # the model does not take its modules sample by sample: nothing more can be said
        return None
    return cause, _finding(probes, comparison, cause, comparison.probe.code)


def _same_cause(place: Place, other: Place) -> bool:
    return place.module == other.module or (place.file, place.line) == (other.file, other.line)


def _padding(subject: Subject, search: Search) -> Finding | None:
    for padding in find_padding(subject):
        try:
            leak, probes = padding_leak(subject, padding)
        except WideUnsupportedError as error:
            search.undecided = search.undecided or f"bits differ with the padding, and {error}"
            continue
        search.probes.count += probes
        if leak is not None:
            place = leak.parting.place if leak.parting is not None else Place()
            return Finding(
                "EM174",
                CLAUSE,
                SUMMARIES["EM174"],
                place,
                seen=f"{leak.what}: {leak.leaf} moves by {leak.gap:.2g} where there is none; fp64 agrees: no rounding",
                fix=f"apply {padding.name.strip('[]').strip(chr(39))} before values of several positions are combined",
            )
    return None


def _kept(search: Search, notes: tuple[str, ...]) -> Examination:
    probes = search.probes
    measured: Measured = size_classes(probes, search.sizes)
    if search.undecided:
        evidence, verdict = search.undecided, Verdict.UNDECIDED
    elif search.stable:
        evidence, verdict = "same bits beside other companions, at any position", None
    else:
        evidence, verdict = "no dependence; bits differ by rounding even at one shape", None
    if search.chosen is not None:
        gap = search.chosen.found.gap
        notes = (
            *notes,
            f"a choice (top-k, argmax) near a tie falls otherwise in fp64: counted apart, moves by {gap:.1e}",
        )
    if search.assumed:
        fast = search.subject.probes == "fast"
        where, stronger = ("between sizes", "default") if fast else ("at sizes above the batch's", "thorough")
        notes = (*notes, f'less than 1e-5 {where} is taken for rounding: probes="{stronger}" tests it')
    module = first_module(probes, measured) if search.subject.probes != "fast" else None
    lines = (*rounding_note(measured, module, search.stable), *probes.notes(), *notes)
    return Examination(probes=probes.count, evidence=evidence, verdict=verdict, notes=lines, measured=measured)
