"""no-randomness: a forward pass draws no random number.

What it does
------------
Watches the operators of a forward pass. A random operator counts only if a random stream moved, so a dropout in
evaluation or attention with probability 0 does not. Python's and numpy's global streams are compared too.

Codes
-----
    EM121 a dropout module is built inside forward
    EM122 functional dropout is on in evaluation mode
    EM123 attention dropout is on in evaluation mode
    EM124 dropout between recurrent layers is on in evaluation mode
    EM125 random numbers are drawn in evaluation mode
    EM126 a random stream of Python's or numpy's is drawn from
    EM127 a module left in training mode draws random numbers

Why it matters
--------------
The same sample gets another answer each time. Published results were wrong because dropout was on at test time.

Example
-------
`F.dropout` is on by default, whatever the model's mode:

    import torch
    import torch.nn.functional as F
    from torch import nn

    class Net(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.1)

    model, batch = Net().eval(), torch.randn(8, 4)

Use instead
-----------
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Net(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.1, training=self.training)

    model, batch = Net().eval(), torch.randn(8, 4)

Fix and its safety
------------------
Give the module's mode to the function (`training=self.training`), or make the layer in `__init__`, where `eval()`
reaches it. In training nothing changes. If the randomness is meant (Monte Carlo dropout, sampling), allow it by module
path: `check(model, batch, allow=["*.mc_dropout"])`.

Limits
------
torch's, Python's and numpy's global streams are watched, and generators that the model holds. One held elsewhere shows
only as a difference: see `deterministic`. What draws the same numbers each time does not count: a torch generator that
the forward pass seeds anew, or torch's stream, seeded inside `torch.random.fork_rng()`, which gives it back. What is
drawn on other inputs only (a branch not taken) is not seen.

Source
------
https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout.html
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from evalmode.checking.examination import Examination
from evalmode.checking.subject import Subject
from evalmode.finding import Finding, Place
from evalmode.observe.changed_lines import changed_lines
from evalmode.observe.host_randomness import find_host_draws
from evalmode.observe.state import Difference, StateChange
from evalmode.observe.watch import Draw

CLAUSE = "no-randomness"
_SUMMARIES = {
    "EM121": "a dropout module is built inside forward",
    "EM122": "functional dropout is on in evaluation mode",
    "EM123": "attention dropout is on in evaluation mode",
    "EM124": "dropout between recurrent layers is on in evaluation mode",
    "EM125": "random numbers are drawn in evaluation mode",
    "EM126": "a random stream of Python's or numpy's is drawn from",
    "EM127": "a module left in training mode draws random numbers",
}
_FIXES = {
    "EM121": "make it in __init__ (self.drop = nn.Dropout(p)) and call self.drop(x)",
    "EM122": "pass training=self.training, as in F.dropout(x, p, training=self.training)",
    "EM123": "dropout_p=p if self.training else 0.0",
    "EM124": "pass train=self.training; the layer's own eval() must be reached",
    "EM125": "draw only if self.training, or allow it by module path",
    "EM126": "draw only if self.training, or use numbers fixed in __init__",
    "EM127": "call eval() on the module",
}
_FIX_SWITCH = "do not call train() in forward: it undoes eval()"
_RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))
_ATTENTION = frozenset(("scaled_dot_product_attention", "multi_head_attention_forward"))


def examine(subject: Subject) -> Examination:
    """Test the clause on `subject`."""
    observation = subject.observation()
    draws = subject.draws()
    if any(draw.is_outside for draw in draws):
        gc.collect()  # a module that the pass built may be held by nothing but itself
    findings = _at_calls(subject, _grouped([(code_of(draw), _place_of(draw), draw) for draw in draws]))
    findings.extend(_of_moved_streams(subject, bool(draws)))
    count = len(draws)
    return Examination(
        probes=1 if len(draws) == len(observation.draws) else 3,
        evidence=f"{count} random draw{'s' if count != 1 else ''}",
        findings=tuple(findings),
        measured={"draws": count, "operators": observation.operators},
    )


def _place_of(draw: Draw) -> Place:
    if not draw.is_outside:
        return draw.place
    return replace(draw.place, module=draw.place.module.replace(" built in forward>", " outside the model>"))


def code_of(draw: Draw) -> str:
    """The code of the cause that a draw points to."""
    is_dropout = "Dropout" in draw.module_class or "dropout" in draw.function
    if draw.stranger is not None and is_dropout and not draw.is_outside:
        return "EM121"
    if draw.function in _ATTENTION or "attention" in draw.operator:
        code = "EM123"
    elif draw.function in _RECURRENT or "_rnn" in draw.operator:
        code = "EM124"
    elif "dropout" in draw.function or "dropout" in draw.operator:
        code = "EM122"
    else:
        code = "EM125"
    return "EM127" if draw.in_training else code


def _of_moved_streams(subject: Subject, drew: bool) -> list[Finding]:
    first = subject.first_pass()
    moved = first.streams
    findings: list[Finding] = []
    own = [held for held in first.generators if not isinstance(held.generator, torch.Generator)]
    if own or {"python", "numpy"} & set(moved):
        found = find_host_draws(subject.bare_pass(), subject.model, own=own)
        unplaced = [("EM126", Place(one.module), one.path) for one in own] or [("EM126", Place(), "python")]
        findings.extend(_grouped([("EM126", draw.place, draw.stream) for draw in found] or unplaced))
    if not drew and any(name == "torch" or name.startswith("cuda") for name in moved):
        reseeded = find_host_draws(subject.bare_pass(), subject.model, ("torch",))
        findings.append(
            Finding(
                "EM125",
                CLAUSE,
                "torch's random stream is moved by the forward pass",
                reseeded[0].place if reseeded else Place(),
                seen="the stream's state differs afterwards, though no random operator was seen",
                fix="do not seed or draw inside forward; use torch.random.fork_rng() where it must be",
            )
        )
    return findings


def _grouped(events: Sequence[tuple[str, Place, object]]) -> list[Finding]:
    """One finding for each line; a cause without a line is one finding for each module."""
    groups: dict[tuple[object, ...], list[tuple[Place, object]]] = {}
    for code, place, event in events:
        alone = code == "EM127" or not place.file
        key = (code, place.module) if alone else (code, place.file, place.line)
        groups.setdefault(key, []).append((place, event))
    return [_finding(str(key[0]), members) for key, members in groups.items()]


def _finding(code: str, members: Sequence[tuple[Place, object]]) -> Finding:
    place = members[0][0]
    modules = list(dict.fromkeys(member.module for member, _ in members))
    names = sorted({_event_name(event) for _, event in members})
    seen = f"{len(members)} draw{'s' if len(members) > 1 else ''} in one pass: {', '.join(names)}"
    if len(modules) > 1:
        seen += f"; in {len(modules)} modules, {', '.join(modules[:3])}{' ...' if len(modules) > 3 else ''}"
    return Finding(code, CLAUSE, _SUMMARIES[code], place, seen=seen, fix=_FIXES[code])


def _at_calls(subject: Subject, findings: list[Finding]) -> list[Finding]:
    """The findings, with a module that `forward` itself brings into training placed at the line that does so."""
    modules = {path: module for path, module, _ in subject.state.attributes}
    run = subject.bare_pass()  # from the state in which every pass starts
    switched = [
        Difference(
            StateChange("flag", path, "training"),
            before=False,
            read=functools.partial(_in_training, modules[path]),
            differs=functools.partial(_in_training, modules[path]),
        )
        for path in dict.fromkeys(finding.place.module for finding in findings if finding.code == "EM127")
        if path in modules and not _in_training(modules[path])
    ]
    if not switched:
        return findings
    lines = {change.module: place for change, place in changed_lines(run, subject.model, switched).items()}
    at_lines: dict[Place, list[Finding]] = {}
    kept = []
    for finding in findings:
        line = lines.get(finding.place.module) if finding.code == "EM127" else None
        if line is None:
            kept.append(finding)
        else:
            at_lines.setdefault(line, []).append(finding)
    return kept + [switched for line, members in at_lines.items() for switched in _switched_at(line, members)]


def _switched_at(line: Place, members: Sequence[Finding]) -> list[Finding]:
    """One finding at the module that holds all that the line switched; one each where only the model does."""
    modules = [finding.place.module for finding in members]
    pieces = zip(*(f"{module}.".split(".") for module in modules), strict=False)
    above = itertools.takewhile(lambda row: len(set(row)) == 1, pieces)
    holder = ".".join(row[0] for row in above if row[0])
    if len(modules) == 1 or not holder:
        places = [replace(line, module=module) for module in modules]
        return [replace(one, place=at, fix=_FIX_SWITCH) for one, at in zip(members, places, strict=True)]
    more = (
        f"{members[0].seen}; so in {len(modules)} modules, {', '.join(modules[:3])}{' ...' if len(modules) > 3 else ''}"
    )
    return [replace(members[0], place=replace(line, module=holder), seen=more, fix=_FIX_SWITCH)]


def _in_training(module: nn.Module) -> bool:
    return bool(getattr(module, "training", False))


def _event_name(event: object) -> str:
    if isinstance(event, Draw):
        return event.operator.removesuffix(".default").replace("aten.", "")
    return {"python": "the random module", "numpy": "numpy.random"}.get(str(event), os.fspath(str(event)))
