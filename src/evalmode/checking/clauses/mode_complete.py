"""mode-complete: every part of the model that has a mode is in evaluation mode.

What it does
------------
Reads the flag of every module: registered ones, and those held in plain lists, dicts and attributes that `eval()` never
reaches. Reads the training arguments that a traced, scripted or exported graph carries. Looks for flags of the user's
own: what an `eval()` of a module's own would set, though no parent calls it (a parent calls `train(False)`), and
attributes named like a training flag (`train_mode`, `mode = "train"`) that are on and change what the model draws or
gives. A root in training is one finding; the other clauses are then tested after `eval()`.

Codes
-----
    EM101 the model is in training mode
    EM102 a module was left in training mode
    EM103 a module is never reached by eval()
    EM104 a training flag of its own stayed on
    EM105 training mode is baked into a graph

Why it matters
--------------
One dropout or batch norm left in training makes answers random or makes them depend on the batch, and nothing fails.

Example
-------
A block in a plain list is used in `forward`, but `eval()` does not know it:

    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = [nn.Dropout(0.5)]

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model, batch = Net().eval(), torch.randn(8, 4)

Use instead
-----------
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Dropout(0.5)])

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model, batch = Net().eval(), torch.randn(8, 4)

Fix and its safety
------------------
Call `model.eval()`, or run inside `evalmode.evaluating(model)`, which reaches hidden modules too and puts every flag
back. Registering a hidden module adds its parameters to `state_dict()` and to the optimiser: usually what was meant.
A graph baked in training has to be traced or exported again, after `eval()`. A flag of your own is best replaced by
`self.training`, or set in `train(self, mode=True)`, which every parent calls.

Limits
------
A flag of the user's own that is not named like one shows only in what it does: see the other clauses. A hidden module
without parameters and without a mode (an activation, a loss) is passed over. A container of more than 10,000 items is
searched that far; where the rest may hold modules the verdict is `undecided`.

Source
------
https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.eval
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import fx, jit, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from evalmode.checking.examination import Examination
from evalmode.checking.own_flags import own_flags
from evalmode.checking.subject import Subject
from evalmode.clause import Verdict
from evalmode.finding import Finding, Place
from evalmode.mode.baked import training_operators
from evalmode.mode.discover import Discovery, Truncation, discover
from evalmode.observe.operators import is_exported

CLAUSE = "mode-complete"
_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None), torch.Tensor, nn.Parameter))
_WITH_MODE = (_DropoutNd, _NormBase, nn.RReLU, nn.RNNBase, nn.MultiheadAttention, nn.Transformer)


def examine(subject: Subject) -> Examination:
    """Test the clause on `subject`."""
    found = discover(subject.model)
    paths = found.paths()
    findings = _baked(found, paths)
    if subject.found_training:
        findings.append(
            Finding(
                "EM101",
                CLAUSE,
                "the model is in training mode",
                Place(""),
                seen="model.training is True; the other clauses were tested after eval()",
                fix="model.eval()",
            )
        )
    hidden = found.hidden()
    findings.extend(_left_in_training(found, paths, hidden))
    findings.extend(_hidden_in_training(found, paths, hidden))
    findings.extend(_own_flags(subject, findings))
    reach = f"{len(hidden)} out of reach of eval(), all in evaluation mode" if hidden else "none out of reach of eval()"
    notes = tuple(
        f"{(paths.get(id(cut.holder), '') + cut.label).lstrip('.')}: {cut.searched:,} of {cut.size:,} items searched"
        for cut in found.truncated
    )
    count = len(found.modules)
    open_ended = any(_may_hold_modules(cut) for cut in found.truncated)
    evidence = f"{count} module{'s' if count != 1 else ''}, {reach}"
    return Examination(
        probes=count,
        evidence=f"{evidence} as far as was searched: a container is too long" if open_ended else evidence,
        findings=tuple(findings),
        verdict=Verdict.UNDECIDED if open_ended else None,
        notes=notes,
        measured={"modules": count, "hidden": len(hidden)},
    )


def _may_hold_modules(cut: Truncation) -> bool:
    """Whether what was not searched of a long container may hold modules: plain data (a vocabulary) does not."""
    container = cut.holder.__dict__.get(cut.label.removeprefix("."))
    values = container.values() if isinstance(container, dict) else container
    if not isinstance(values, Iterable):  # further down than an attribute: it is not looked up again
        return True
    return any(type(value) not in _PLAIN for value in values)


def has_mode(module: nn.Module) -> bool:
    """Whether `module` itself may behave differently in training: torch's own kinds, or code that reads the flag."""
    if isinstance(module, _WITH_MODE):
        return True
    kind = type(module)
    if kind.__module__.startswith("torch.nn.") or kind.forward is nn.Module.forward:
        return False
    try:
        return "training" in inspect.getsource(kind)
    except (OSError, TypeError):  # no source: it may
        return True


def _baked(found: Discovery, paths: dict[int, str]) -> list[Finding]:
    findings: list[Finding] = []
    for module in found.unusual:
        path = paths.get(id(module), "")
        operators = training_operators(module)
        if not operators or any(_is_inside(path, other.place.module) for other in findings):
            continue
        findings.append(
            Finding(
                "EM105",
                CLAUSE,
                "training mode is baked into a graph",
                Place(path),
                seen=f"{len(operators)} operator{'s' if len(operators) > 1 else ''}: {', '.join(operators[:3])}",
                fix="call eval() on the original model, then trace, script or export it again",
            )
        )
    return findings


def _left_in_training(found: Discovery, paths: dict[int, str], hidden: set[int]) -> list[Finding]:
    """One finding for each topmost module in training; what is below it is the same cause."""
    exported = [paths[id(module)] for module in found.modules if is_exported(module) and id(module) in paths]
    left = [
        paths[id(module)]
        for module in found.modules
        if id(module) in paths
        and id(module) not in hidden
        and not isinstance(module, jit.ScriptModule | fx.GraphModule)
        and module.training
        and not any(_is_inside(paths[id(module)], graph) for graph in exported)
    ]
    tops: list[str] = []
    for path in sorted(left, key=lambda name: (name.count("."), name)):
        if not any(_is_inside(path, top) for top in tops):
            tops.append(path)
    by_path = {paths[id(module)]: module for module in found.modules if id(module) in paths}
    return [
        Finding(
            "EM102",
            CLAUSE,
            "a module was left in training mode",
            Place(path),
            seen=_seen(by_path[path], sum(_is_inside(other, path) for other in left)),
            fix=f"model.{path}.eval()" if path.isidentifier() else f'model.get_submodule("{path}").eval()',
        )
        for path in sorted(tops, key=list(by_path).index)
        if path
    ]


def _hidden_in_training(found: Discovery, paths: dict[int, str], hidden: set[int]) -> list[Finding]:
    findings: list[Finding] = []
    for module in found.modules:
        path = paths.get(id(module), "")
        if id(module) not in hidden or not getattr(module, "training", False) or not _matters(module):
            continue
        if any(_is_inside(path, other.place.module) for other in findings):
            continue
        findings.append(
            Finding(
                "EM103",
                CLAUSE,
                "a module is never reached by eval()",
                Place(path),
                seen=f"{type(module).__name__} in training, held where nn.Module does not register it",
                fix="hold it in nn.ModuleList, nn.ModuleDict or as an attribute; evaluating(model) reaches it as it is",
            )
        )
    return findings


def _own_flags(subject: Subject, findings: list[Finding]) -> list[Finding]:
    """One finding for each flag, which the other clauses then find off, as they find the model after `eval()`."""
    told = [finding.place.module for finding in findings if finding.code != "EM101"]
    found: list[Finding] = []
    for flag in own_flags(subject):
        if any(_is_inside(flag.path, path) for path in told):
            continue
        subject.mend(flag.path, flag.name, flag.wanted)
        fix = "set it in train(self, mode=True), which every parent calls" if flag.unheard else "use self.training"
        seen = f"{flag.name} is {flag.value!r}, in evaluation {flag.wanted!r}: {flag.effect}; the rest was tested so"
        place = replace(flag.lines[0], module=flag.path) if flag.lines else Place(flag.path)
        found.append(Finding("EM104", CLAUSE, "a training flag of its own stayed on", place, seen=seen, fix=fix))
    return found


def _matters(module: nn.Module) -> bool:
    return any(has_mode(inner) for inner in module.modules()) or next(module.parameters(), None) is not None


def _is_inside(path: str, top: str) -> bool:
    return not top or path == top or path.startswith((f"{top}.", f"{top}["))


def _seen(module: nn.Module, count: int) -> str:
    below = f", with {count - 1} inside it" if count > 1 else ""
    return f"{type(module).__name__}.training is True{below}; the model's own flag is False"
