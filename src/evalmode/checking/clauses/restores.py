"""restores: leaving evaluation gives back exactly the state before it.

What it does
------------
Sets some modules to training and some not, enters `evalmode.evaluating`, runs the model, and leaves: once in the
ordinary way and once through an exception (`fast`: raised before the model runs). Then compares flags, random streams,
parameters, buffers, `.grad`, `requires_grad` and grad mode with what they were, bit for bit.

Codes
-----
    EM201 a mode is not given back
    EM202 a random stream is not given back
    EM203 a tensor or the grad mode is not given back

Why it matters
--------------
An evaluation in the middle of training must not change the training run: not its frozen parts, not its random numbers,
not its statistics.

Example
-------
Leaving evaluation calls `train()`, which here does more than switch: each evaluation cools the model once more.

    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("temperature", torch.ones(()))

        def train(self, mode=True):
            if mode:
                self.temperature.mul_(0.9)
            return super().train(mode)

        def forward(self, x):
            return x / self.temperature

    model, batch = Net().eval(), torch.randn(8, 4)

Use instead
-----------
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("temperature", torch.ones(()))

        def cool(self):
            self.temperature.mul_(0.9)

        def forward(self, x):
            return x / self.temperature

    model, batch = Net().eval(), torch.randn(8, 4)

Fix and its safety
------------------
Let `train()` and `eval()` switch and nothing else; do what belongs to an epoch in the training loop, by name. What the
forward pass itself writes is told by `no-state-change`, not here.

Limits
------
What a plain attribute of a module refers to is not compared, nor what lies outside the model and torch. A module whose
own `train()` fails cannot be brought into training, so nothing is tested.

Source
------
https://github.com/pytorch/pytorch/issues/18220
"""

from __future__ import annotations

import contextlib

from torch import nn

from evalmode.checking.examination import Examination
from evalmode.checking.subject import Subject
from evalmode.errors import ModelRunError, SwitchError
from evalmode.finding import Finding, Place
from evalmode.mode.discover import discover
from evalmode.mode.overrides import overrides_of
from evalmode.mode.switch import evaluating
from evalmode.observe.state import StateChange, read_state
from evalmode.predictor.calling import call

CLAUSE = "restores"


class _LeavingError(Exception):
    """Raised inside evaluation to leave it the hard way."""


def examine(subject: Subject) -> Examination:
    """Test the clause on `subject`."""
    changes: dict[StateChange, None] = {}
    by_forward = frozenset(subject.first_pass().changes)
    for by_exception in (False, True):
        changes |= dict.fromkeys(_around(subject, by_exception, by_forward))
    subject.state.put_back()
    findings = _findings(subject, list(changes))
    return Examination(probes=2, evidence="modes, random streams, buffers, .grad: same bits", findings=tuple(findings))


def _around(subject: Subject, by_exception: bool, by_forward: frozenset[StateChange]) -> list[StateChange]:
    """What differs after entering and leaving evaluation, and is not the work of a forward pass alone."""
    subject.state.put_back()
    called = _in_training(subject.model)
    flags = _arranged(subject.model)
    more = called and any(change.kind != "flag" for change in subject.state.changes())
    state = read_state(subject.model) if more else subject.state  # a second copy of the model only where train() wrote
    # the model has run before: if it fails here, it needs what backward() gives, and leaves by its own exception
    with contextlib.suppress(_LeavingError, ModelRunError), evaluating(subject.model, on_backward="ignore"):
        if not (by_exception and subject.probes == "fast"):
            subject.passes += 1
            call(subject.model, subject.batch, subject.forward)
        if by_exception:
            raise _LeavingError
    paths = discover(subject.model).paths()
    changed = [
        StateChange("flag", paths.get(id(module), ""), "training")
        for module, flag in flags
        if module.training is not flag
    ]
    kinds = ("stream", "tensor", "gradient", "grad mode")
    left = [change for change in state.changes() if change.kind in kinds]
    return changed + [change for change in left if change.kind == "stream" or change not in by_forward]


def _in_training(model: nn.Module) -> bool:
    """Bring modules with a `train()` of their own into training by calling it; whether there are any."""
    own = [module for module in discover(model).modules if overrides_of(module)]
    for module in own:
        try:
            module.train()
        except Exception as error:
            name = type(module).__name__
            raise SwitchError(f"{name}.train() failed: {type(error).__name__}: {error}") from error
    return bool(own)


def _arranged(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    """Give modules with a plain flag alternating modes, as in a partly frozen training run."""
    found = discover(model)
    unusual = {id(module) for module in found.unusual}
    plain = [module for module in found.modules if id(module) not in unusual and "training" in module.__dict__]
    flags = [(module, position % 3 != 1) for position, module in enumerate(plain)]
    for module, flag in flags:
        module.training = flag
    return flags


def _findings(subject: Subject, changes: list[StateChange]) -> list[Finding]:
    found: list[Finding] = []
    flags = [change for change in changes if change.kind == "flag"]
    streams = [change for change in changes if change.kind == "stream"]
    rest = [change for change in changes if change.kind not in ("flag", "stream")]
    if flags:
        fix = "let train() and eval() of the module change nothing but its own mode"
        found.append(_finding("EM201", "a mode is not given back", flags, Place(flags[0].module), fix))
    if streams:
        fix = "do not seed inside forward; use torch.random.fork_rng() where it must be"
        found.append(_finding("EM202", "a random stream is not given back", streams, Place(), fix))
    written = dict(reversed(subject.observation().writes)) if rest else {}
    groups: dict[Place, list[StateChange]] = {}
    for change in rest:
        place = written[change.path].place if change.path in written else Place(change.module)
        groups.setdefault(place, []).append(change)
    for place, members in groups.items():
        if subject.is_reported(place):
            continue
        fix = "let train() and eval() switch and nothing else"
        found.append(_finding("EM203", "a tensor or the grad mode is not given back", members, place, fix))
    return found


def _finding(code: str, summary: str, changes: list[StateChange], place: Place, fix: str) -> Finding:
    names = ", ".join(change.path for change in changes[:3]) + (" ..." if len(changes) > 3 else "")
    seen = f"{len(changes)} changed: {names}"
    return Finding(code, CLAUSE, summary, place, seen=seen, fix=fix)
