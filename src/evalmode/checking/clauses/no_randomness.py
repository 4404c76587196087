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
only as a difference: see `deterministic`. A torch generator that the forward pass seeds anew each time draws the same
numbers each time, and does not count. What is drawn on other inputs only (a branch not taken) is not seen.

Source
------
https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout.html
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from evalmode.checking.examination import Examination
from evalmode.checking.subject import Subject
from evalmode.finding import Finding, Place
from evalmode.observe.host_randomness import find_host_draws
from evalmode.observe.streams import read_streams, seed_streams, stream_differences
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
_RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))
_ATTENTION = frozenset(("scaled_dot_product_attention", "multi_head_attention_forward"))


def examine(subject: Subject) -> Examination:
    """Test the clause on `subject`."""
    observation = subject.observation()
    draws = _effective(subject, observation.draws)
    findings = _grouped([(code_of(draw), draw.place, draw) for draw in draws])
    findings.extend(_of_moved_streams(subject, bool(draws)))
    count = len(draws)
    return Examination(
        probes=2 if any(draw.own_stream for draw in observation.draws) else 1,
        evidence=f"{count} random draw{'s' if count != 1 else ''}",
        findings=tuple(findings),
        measured={"draws": count, "operators": observation.operators},
    )


def code_of(draw: Draw) -> str:
    """The code of the cause that a draw points to."""
    is_dropout = "Dropout" in draw.module_class or "dropout" in draw.function
    if draw.built_in_forward and is_dropout:
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


def _effective(subject: Subject, draws: Sequence[Draw]) -> list[Draw]:
    """Without draws from a generator of the pass's own that starts anew each time."""
    own = [draw for draw in draws if draw.own_stream is not None]
    if not own:
        return list(draws)
    again = [draw.own_stream for draw in _second_pass(subject) if draw.own_stream is not None]
    repeated = {id(draw) for draw, state in zip(own, again, strict=False) if draw.own_stream == state}
    return [draw for draw in draws if id(draw) not in repeated]


def _second_pass(subject: Subject) -> list[Draw]:
    """Draws of a pass that goes on from where the first one left the model."""
    first = subject.bare_pass()
    first()
    from evalmode.observe.watch import watch

    return watch(first, subject.model).draws


def _of_moved_streams(subject: Subject, drew: bool) -> list[Finding]:
    run = subject.bare_pass()
    seed_streams(subject.seed)
    before = read_streams()
    run()
    moved = stream_differences(before, read_streams())
    findings: list[Finding] = []
    own = [
        held for held in subject.state.generators if held.moved() and not isinstance(held.generator, torch.Generator)
    ]
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


def _event_name(event: object) -> str:
    if isinstance(event, Draw):
        return event.operator.removesuffix(".default").replace("aten.", "")
    return {"python": "the random module", "numpy": "numpy.random"}.get(str(event), os.fspath(str(event)))
