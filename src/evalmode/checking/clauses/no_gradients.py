"""no-gradients: no graph is built, no .grad moves, and backward() has no effect.

What it does
------------
Runs the model under `no_grad` and watches whether any operator records a graph, whether gradients are still off
afterwards, whether any `.grad` differs, and whether a tensor that the pass made lives on when its outputs are gone
(what is kept on a module is told by `no-state-change`). Then calls `backward()` inside `evalmode.evaluating`, where it
must do nothing, after another forward pass (`fast`: without one). The caller's own grad mode is not judged.

Codes
-----
    EM161 a graph is built under no_grad
    EM162 forward leaves gradients switched on
    EM163 a .grad is changed by the forward pass
    EM164 a tensor is kept after the forward pass

Why it matters
--------------
A graph keeps every activation alive, so memory grows; a `.grad` that moves spoils the next training step; gradients
left on change what the caller's code after it does.

Example
-------
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            with torch.enable_grad():
                return self.layer(x)

    model, batch = Net().eval(), torch.randn(8, 4)

Use instead
-----------
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(x)

    model, batch = Net().eval(), torch.randn(8, 4)

Fix and its safety
------------------
Take `enable_grad` out of `forward` and let the caller choose: training has gradients on anyway. A model that needs a
derivative to answer (forces from an energy) may allow it by module path; `detach()` what it returns.

Limits
------
Tested under `no_grad`, which holds for one thread: what `forward` hands to another thread or to a pool of threads is
watched there, but not what a thread does that ran before. What a model does with gradients on is its training, and not
tested here.

Source
------
https://docs.pytorch.org/docs/stable/notes/autograd.html#locally-disabling-gradient-computation
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.parameter import is_lazy

from evalmode.checking.examination import Examination
from evalmode.checking.subject import Subject
from evalmode.errors import ModelRunError
from evalmode.finding import Finding, Place
from evalmode.mode.switch import evaluating
from evalmode.observe.kept_outside import KeptOutside, made_tensors
from evalmode.observe.tree import tensor_leaves
from evalmode.observe.watch import Event, Observation
from evalmode.predictor.calling import call

CLAUSE = "no-gradients"


def examine(subject: Subject) -> Examination:
    """Test the clause on `subject`."""
    observation = subject.observation()
    first = subject.first_pass()
    changed = [change.path for change in first.of_kind("gradient")]
    findings: list[Finding] = []
    if first.gradients_on:
        findings.append(_leak(observation))
    elif (observation.graphs or observation.outputs_have_graph) and not (changed and observation.backwards):
        findings.extend(_graphs(observation))
    if changed:
        findings.append(_moved(observation, changed))
    effect = [] if findings else _backward_effect(subject)
    if effect:
        findings.append(_moved(observation, effect))
    findings.extend(_kept(subject))
    on_modules = {(found.code, found.place.module) for found in subject.findings if found.code == "EM153"}
    return Examination(
        probes=5,
        evidence="no graph; backward() had no effect",
        findings=tuple(findings),
        through=tuple(sorted(on_modules)),
        measured={"graphs": len(observation.graphs)},
    )


def _backward_effect(subject: Subject) -> list[str]:
    """Names of what a `backward()` inside evaluation changes: nothing, if the promise holds.

    Outputs carry no graph there, so graphs over the parameters are built before entering, and called on inside, after a
    forward pass (`fast`: without one).
    """
    subject.prepare()
    trainable = [own for own in subject.model.parameters() if own.requires_grad and not is_lazy(own)]
    with torch.enable_grad():
        before = [_scalar_of(parameter) for parameter in trainable if parameter.numel()]
    with evaluating(subject.model, on_backward="ignore"):
        tensors = [] if subject.probes == "fast" else _with_gradient(subject)
        for scalar in (*before, *(leaf.sum() for leaf in tensors)):
            scalar.backward()
    return [change.path for change in subject.state.changes() if change.kind == "gradient"]


def _with_gradient(subject: Subject) -> list[torch.Tensor]:
    """The outputs of one more pass, in the grad mode of the moment, that require a gradient."""
    subject.passes += 1
    try:
        outputs = call(subject.model, subject.batch, subject.forward)
    except ModelRunError:  # it has run before: it needs what backward() gives, which has no effect here
        return []
    return [leaf for _, leaf in tensor_leaves(outputs) if leaf.is_floating_point() and leaf.requires_grad]


def _scalar_of(parameter: torch.Tensor) -> torch.Tensor:
    """A real number that hangs on `parameter`, whatever its layout and dtype."""
    dense = parameter if parameter.layout is torch.strided else parameter.to_dense()
    first = dense.flatten()[:1].sum()
    return first.real if first.is_complex() else first


def _kept(subject: Subject) -> list[Finding]:
    """Tensors that live on although the outputs are gone and the model is back in its state: one finding a line."""
    if not subject.observation().keeps_tensors:
        return []
    made = made_tensors(subject.bare_pass(), subject.model)
    subject.prepare()
    groups: dict[Place, list[KeptOutside]] = {}
    for kept in made.alive():
        groups.setdefault(kept.place, []).append(kept)
    findings = []
    for place, members in groups.items():
        size = sum(kept.size for kept in members)
        graph = " with their graph" if any(kept.with_graph for kept in members) else ""
        seen = f"{len(members)} tensor{'s' if len(members) > 1 else ''}{graph}, {size:,} bytes, held after the pass by "
        seen += f"something outside the model; made by {members[0].operator.removesuffix('.default')}"
        fix = "return it as an output; or keep x.detach().cpu() outside forward, and drop it"
        findings.append(Finding("EM164", CLAUSE, "a tensor is kept after the forward pass", place, seen=seen, fix=fix))
    return findings


def _graphs(observation: Observation) -> list[Finding]:
    """One finding for each line that switches gradients on, or that hands work to a thread where they are on.

    Where `backward()` runs it is its line; without any such line it is the first operator that records.
    """
    elsewhere = [event for event in observation.graphs if event.handed_at is not None]
    here = [event for event in observation.graphs if event.handed_at is None]
    switches = [event for event in observation.gradient_switches if event.place.file] if here else []
    by_line: dict[tuple[str, int], Event] = {}
    for event in observation.backwards or switches or here[:1]:
        by_line.setdefault((event.place.file, event.place.line), event)
    seen, fix = _recorded(here), "take enable_grad() out of forward; the caller decides, and training has it on anyway"
    if observation.backwards:
        seen = f"{seen}; backward() ran, and every .grad of the model is as before"
        fix = "take enable_grad() and backward() out of forward; derivatives that the answer needs: torch.autograd.grad"
    places = [event.place for event in by_line.values()] or [Place()] * (not elsewhere)
    findings = [_graph(place, seen, fix) for place in places]
    groups: dict[Place | None, list[Event]] = {}
    for event in elsewhere:
        groups.setdefault(event.handed_at, []).append(event)
    fix = "grad mode is per thread: with torch.no_grad(): inside the function that the thread runs; if it trains too, "
    fix += "with torch.set_grad_enabled(on):, where on is torch.is_grad_enabled() from before it was handed over"
    return findings + [
        _graph(events[0].place, f"{_recorded(events)}; all on another thread", fix) for events in groups.values()
    ]


def _recorded(events: Sequence[Event]) -> str:
    count = f"{len(events)} operator{'' if len(events) == 1 else 's'} recorded a graph"
    if not events:
        return count
    return f"{count}, the first is {events[0].operator} in {events[0].place.module or 'the model itself'}"


def _graph(place: Place, seen: str, fix: str) -> Finding:
    return Finding("EM161", CLAUSE, "a graph is built under no_grad", place, seen=seen, fix=fix)


def _leak(observation: Observation) -> Finding:
    switches = [event for event in observation.gradient_switches if event.place.file]
    place = switches[-1].place if switches else Place(observation.leaking_module or "")
    return Finding(
        "EM162",
        CLAUSE,
        "forward leaves gradients switched on",
        place,
        seen="torch.is_grad_enabled() was False before the forward pass and True after it",
        fix="use it as a block (with torch.set_grad_enabled(...):), which puts it back",
    )


def _moved(observation: Observation, changed: list[str]) -> Finding:
    place = observation.backwards[0].place if observation.backwards else Place(changed[0].rpartition(".")[0])
    return Finding(
        "EM163",
        CLAUSE,
        "a .grad is changed by the forward pass",
        place,
        seen=f"{len(changed)} changed, the first is {changed[0]}",
        fix="use torch.autograd.grad(outputs, inputs), which writes no .grad",
    )
