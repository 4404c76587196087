"""no-state-change: a forward pass changes nothing that the model owns.

What it does
------------
Compares every parameter, buffer, attribute, list, dictionary and array of every module, and of plain objects and
functions that a module holds, with what it was before a forward pass: tensors bit for bit, writes through `.data`
included. So it does with what the user's own code reaches from `forward` on: globals of its files, attributes of its
classes, values of an enclosing function. What changed is traced to its line. What is not part of `state_dict()` counts
only if it depends on the content of the batch or changes again in the next pass: a table made once for a shape does
not.

Codes
-----
    EM151 running statistics are updated in evaluation mode
    EM152 a buffer or parameter is written in evaluation mode
    EM153 a tensor is kept on a module
    EM154 a Python attribute, list or dictionary is changed

Why it matters
--------------
An evaluation that changes the model spoils the next one: answers depend on what was asked before, memory grows, and a
frozen layer drifts. Two requests in two threads overwrite each other's values.

Example
-------
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += len(x)
            return x * 2

    model, batch = Net().eval(), torch.randn(8, 4)

Use instead
-----------
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            if self.training:
                self.seen += len(x)
            return x * 2

    model, batch = Net().eval(), torch.randn(8, 4)

Fix and its safety
------------------
Write to the model only `if self.training`; hand activations back as outputs, or take them with a forward hook that is
removed afterwards. Training is unchanged. Where the code that reads a kept tensor stands elsewhere, change it too.

Limits
------
What the code of an installed package keeps in globals, classes and closures is not compared, nor the state of an
iterator or an `lru_cache`, nor what a hook keeps that others hung on a module. A tensor kept outside of the model shows
in `no-gradients`. An attribute that depends on the shape of the batch alone (`self.size = x.shape[-1]`) is passed over.

Source
------
https://docs.pytorch.org/docs/stable/notes/modules.html#module-state
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _NormBase

from evalmode.checking.examination import Examination
from evalmode.checking.subject import Subject
from evalmode.errors import ModelRunError
from evalmode.finding import Finding, Place
from evalmode.observe.changed_lines import changed_lines
from evalmode.observe.content import content_digest, held_tensors
from evalmode.observe.state import ABSENT, Difference, StateChange
from evalmode.observe.tree import same_bits

CLAUSE = "no-state-change"
_SUMMARIES = {
    "EM151": "running statistics are updated in evaluation mode",
    "EM152": "a buffer or parameter is written in evaluation mode",
    "EM153": "a tensor is kept on a module",
    "EM154": "a Python attribute, list or dictionary is changed",
}
_FIXES = {
    "EM151": "training=self.training, and leave the layer in eval(); momentum=0.0 keeps statistics in training too",
    "EM152": "write to it only if self.training",
    "EM153": "return it as an output, or take it with a forward hook that is removed afterwards",
    "EM154": "change it only if self.training, or count and collect outside the model",
}
_STATISTICS = frozenset(("running_mean", "running_var", "num_batches_tracked"))
_SMALL = 100_000  # elements of a tensor that is compared from line to line


def examine(subject: Subject) -> Examination:
    """Test the clause on `subject`."""
    changed, passes = _changed(subject)
    findings = _findings(subject, changed)
    subject.prepare()
    tensors = len(subject.state.tensors)
    return Examination(
        probes=passes,
        evidence=f"{tensors} tensor{'s' if tensors != 1 else ''}, same bits afterwards",
        findings=tuple(findings),
        measured={"tensors": tensors, "changed": len(changed)},
    )


def _changed(subject: Subject) -> tuple[list[tuple[Difference, str]], int]:
    """What one pass changes and counts, with what was seen of it; and how many passes it took to tell."""
    if not subject.first_pass().of_kind("flag", "tensor", "attribute"):
        return [], 1
    run = subject.bare_pass()
    run()
    differences = subject.state.differences()
    if not differences:
        return [], 1
    seen = {difference.change: _seen(difference) for difference in differences}
    first = _digests(differences)
    run()
    again = _digests(differences)
    other = _after_other_content(subject, differences)
    kept = []
    for difference in differences:
        change = difference.change
        lasting = difference.registered in ("parameter", "buffer") and again[change] != _digest_of(difference.before)
        if lasting or again[change] != first[change] or other.get(change, first[change]) != first[change]:
            kept.append((difference, seen[change]))
    return kept, 3


def _digests(differences: Sequence[Difference]) -> dict[StateChange, str]:
    return {difference.change: _digest_of(difference.read()) for difference in differences}


def _digest_of(value: Any) -> str:
    return "absent" if value is ABSENT else content_digest(value)


def _after_other_content(subject: Subject, differences: Sequence[Difference]) -> dict[StateChange, str]:
    """The digests after one pass on a batch of the same shape that holds one of the samples throughout."""
    if isinstance(subject.axis, str) or subject.axis.size < 2:
        return {}
    run = subject.bare_pass(subject.samples([subject.axis.size - 1] * subject.axis.size))
    try:
        run()
    except ModelRunError:  # nothing to compare with: the two passes before decide
        return {}
    return _digests(differences)


def _findings(subject: Subject, changed: Sequence[tuple[Difference, str]]) -> list[Finding]:
    """One finding for each code and running module; the lines and names are told in it."""
    named = {finding.place.module for finding in subject.findings}
    counted = [item for item in changed if item[0].change.kind != "flag" or item[0].change.module not in named]
    places = _places(subject, [difference for difference, _ in counted])
    groups: dict[tuple[str, str, str], list[tuple[Difference, str]]] = {}
    for difference, seen in counted:
        place = places[difference.change]
        key = (_code(subject, difference), place.module, place.file)
        groups.setdefault(key, []).append((difference, seen))
    found = []
    for (code, _, _), members in groups.items():
        at = sorted({places[difference.change] for difference, _ in members}, key=lambda place: place.line)
        texts = [f"{difference.change.path} {seen}" for difference, seen in members[:3]]
        seen = "; ".join(texts) + (f"; and {len(members) - 3} more" if len(members) > 3 else "")
        if len(at) > 1:
            lines = ", ".join(str(place.line) for place in at[1:])
            seen += f"; also at line{'s' if len(at) > 2 else ''} {lines}"
        found.append(Finding(code, CLAUSE, _SUMMARIES[code], at[0], seen=seen, fix=_FIXES[code]))
    return found


def _places(subject: Subject, differences: Sequence[Difference]) -> dict[StateChange, Place]:
    """The line of each change: that of the operator that wrote, or the one after which it shows."""
    if not differences:
        return {}
    subject.state.put_back(streams=False)
    written = dict(reversed(subject.observation().writes))
    places = {
        item.change: written[item.change.path].place
        for item in differences
        if item.change.kind == "tensor" and item.change.path in written
    }
    rest = [item for item in differences if item.change not in places and _is_cheap(item)]
    if rest:
        places |= changed_lines(subject.bare_pass(), subject.model, rest)
    return {item.change: places.get(item.change, Place(item.change.module)) for item in differences}


def _is_cheap(difference: Difference) -> bool:
    return not isinstance(difference.before, torch.Tensor) or difference.before.numel() <= _SMALL


def _code(subject: Subject, difference: Difference) -> str:
    change = difference.change
    if difference.registered:
        owner = next((module for path, module, _ in subject.state.attributes if path == change.module), None)
        statistics = isinstance(owner, _NormBase) or change.name.rpartition(".")[2] in _STATISTICS
        return "EM151" if statistics and difference.registered != "parameter" else "EM152"
    return "EM153" if change.kind == "tensor" or _gained_tensors(difference) else "EM154"


def _gained_tensors(difference: Difference) -> bool:
    """Whether what is held now holds tensors that were not held before, elsewhere than in a list that grows."""
    known = {id(tensor) for tensor in held_tensors(difference.before)}
    return any(id(tensor) not in known for tensor in held_tensors(difference.read()))


def _seen(difference: Difference) -> str:
    """What happened to one value, in numbers."""
    before, now = difference.before, difference.read()
    if isinstance(now, torch.Tensor) and isinstance(before, torch.Tensor):
        return _tensor_change(before, now, replaced=difference.change.kind == "attribute")
    if isinstance(now, torch.Tensor):
        graph = ", with its graph" if now.grad_fn is not None else ""
        return f"holds a tensor {tuple(now.shape)} of {now.numel() * now.element_size():,} bytes{graph}"
    if isinstance(now, np.ndarray) and isinstance(before, np.ndarray) and now.shape == before.shape:
        return f"changed in {int((now != before).sum())} of {now.size} elements"
    if before is ABSENT or now is ABSENT:
        return "appeared" if before is ABSENT else "disappeared"
    if isinstance(now, dict | list | set | tuple | collections.deque) and hasattr(before, "__len__"):
        if len(now) != len(before):
            return f"went from {len(before)} to {len(now)} items"
        return f"holds other values in its {len(now)} items"
    plain = (bool, int, float, str, type(None))
    if isinstance(now, plain) and isinstance(before, plain):
        return f"went from {before!r:.20} to {now!r:.20}"
    return f"holds another {type(now).__name__}"


def _tensor_change(old: torch.Tensor, now: torch.Tensor, *, replaced: bool) -> str:
    before = old.detach()
    if before.shape != now.shape:
        return f"went from {tuple(before.shape)} to {tuple(now.shape)}"
    if before.dtype != now.dtype:
        return f"went from {before.dtype} to {now.dtype}"
    if same_bits(before, now.detach()):
        other = "is another tensor, with the same values for this batch"
        return other if replaced else f"has requires_grad {now.requires_grad}, which it had not"
    if before.is_floating_point():
        moved = (now.detach().double() - before.double()).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
        return f"moved by up to {float(moved.max()):.2g}"
    return f"changed in {int((now != before).sum())} of {now.numel()} elements"
