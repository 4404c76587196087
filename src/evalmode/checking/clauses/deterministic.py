"""deterministic: the same input gives the same bits.

What it does
------------
Runs the model again and again on the same batch, with the same random streams, and compares the bits of every output
tensor. Randomness alone is the business of `no-randomness`: the streams are the same each time.

Codes
-----
    EM181 the same input does not give the same bits
    EM182 the same input gives other bits in a fresh process

Why it matters
--------------
An answer that cannot be reproduced can neither be debugged nor audited, and a comparison of two models measures noise.

Example
-------
A counter that the forward pass moves makes each answer another one:

    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    model, batch = Net().eval(), torch.randn(8, 4)

Use instead
-----------
    import torch
    from torch import nn

    class Net(nn.Module):
        def forward(self, x):
            return x * 2

    model, batch = Net().eval(), torch.randn(8, 4)

Fix and its safety
------------------
Take out what differs from call to call: a counter, a clock, a generator of its own, the order of a set. On a GPU,
`torch.use_deterministic_algorithms(True)` replaces operators that add in any order, at some cost in speed.

Limits
------
Repeats in this process, on this machine, with its number of threads. Rare races may need more repeats than were made.

Source
------
https://docs.pytorch.org/docs/stable/notes/randomness.html
"""

from __future__ import annotations

from evalmode.checking.examination import Examination
from evalmode.checking.subject import Outputs, Subject
from evalmode.finding import Finding, Place
from evalmode.observe.batching import difference
from evalmode.observe.first_difference import first_difference
from evalmode.observe.trace import Parting
from evalmode.observe.tree import same_bits

CLAUSE = "deterministic"
_REPEATS = {"fast": 1, "default": 3, "thorough": 10}


def examine(subject: Subject) -> Examination:
    """Test the clause on `subject`."""
    repeats = _REPEATS[subject.probes]
    seen = subject.first_pass()
    first = subject.run() if seen.changes else seen.outputs  # the repeats go on from what a pass leaves, if it does
    for repeat in range(1, repeats + 1):
        again = subject.run(restore=repeat == 1 and not seen.changes)
        differing = [path for path in first if path not in again or not same_bits(first[path], again[path])]
        if differing or first.keys() != again.keys():
            kept = _through_state(subject, first)
            if kept:
                return Examination(probes=repeat + 1, evidence="same bits again from the same state", through=kept)
            subject.given_outputs = None
            finding = _finding(subject, first, again, differing)
            return Examination(probes=repeat, evidence="", findings=(finding,))
    if not first:
        return Examination(probes=repeats, evidence="no tensor among the outputs; the model ran the same way")
    return Examination(probes=repeats, evidence="same bits again, here")


def _through_state(subject: Subject, first: Outputs) -> tuple[tuple[str, str], ...]:
    """Findings of what a pass leaves in the model, if it is that alone which makes the next pass another one."""
    clauses = {"no-state-change"} | ({"no-randomness"} if subject.state.generators else set())
    kept = {(found.code, found.place.module) for found in subject.findings if found.clause in clauses}
    if not kept:
        return ()
    again = subject.run()
    same = first.keys() == again.keys() and all(same_bits(first[path], again[path]) for path in first)
    return tuple(sorted(kept)) if same else ()


def _finding(subject: Subject, first: Outputs, again: Outputs, differing: list[str]) -> Finding:
    subject.state.put_back(streams=False, quick=True)
    parting = _parting(subject)
    gaps = [difference(first[path], again[path])[0] for path in differing if path in again]
    seen = f"outputs differ by up to {max(gaps):.2g}" if gaps else "other outputs the second time"
    if parting is not None:
        seen += f"; first in {parting.operator.replace('aten.', '').removesuffix('.default')}"
    return Finding(
        "EM181",
        CLAUSE,
        "the same input does not give the same bits",
        parting.place if parting is not None else Place(),
        seen=f"{seen}, with the same random streams",
        fix="take out what differs from call to call: a counter, a clock, a generator of its own, the order of a set",
    )


def _parting(subject: Subject) -> Parting | None:
    """Where two passes part; the second goes on from what the first left."""
    one_pass = subject.bare_pass()
    return first_difference((one_pass, one_pass), subject.model)
