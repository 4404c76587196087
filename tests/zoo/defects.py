"""Plant a defect: `plant(case, kind, seed)` puts it at random depth into a copy of any clean model that it suits."""

from __future__ import annotations

import copy
import inspect
import random
import types
from dataclasses import dataclass
from pathlib import Path

import torch
from tests.zoo.case import Case, seeded
from tests.zoo.faults import (
    companions,
    determinism,
    gradients,
    harmless,
    modes,
    randomness,
    state,
    statistics,
    values,
)
from tests.zoo.faults.fault import FAULTS, Fault
from tests.zoo.oracles import ORACLES
from tests.zoo.sites import Site, sites_of
from torch import nn

__all__ = ["CONTROLS", "KINDS", "Planted", "Refused", "matches", "plant"]

FILES = (randomness, modes, statistics, state, gradients, determinism, companions, values, harmless)
KINDS: dict[str, Fault] = {kind: fault for kind, fault in FAULTS.items() if fault.clause}
"""The defects by kind."""
CONTROLS: dict[str, Fault] = {kind: fault for kind, fault in FAULTS.items() if not fault.clause}
"""What looks like a defect and is none."""
TRIES = 12


@dataclass(frozen=True)
class Planted:
    """A copy of a clean model with one defect, and what must be said about it.

    One of `codes` must be found at `module_path`, and at one of `lines` of `file` where `line_required`; codes in
    `also` may be reported beside it as consequences. `depth` is how many modules deep the place is.
    """

    model: nn.Module
    kind: str
    clause: str
    codes: frozenset[str]
    also: frozenset[str]
    module_path: str
    file: str
    lines: frozenset[int]
    line_required: bool

    @property
    def depth(self) -> int:
        return self.module_path.count(".") + bool(self.module_path)


@dataclass(frozen=True)
class Refused:
    """Why a kind of defect could not be planted into a model."""

    reason: str


def plant(case: Case, kind: str, seed: int = 0) -> Planted | Refused:
    """A copy of the case's model with a defect of this kind at work, at a place that `seed` decides.

    Places are tried in random order until the defect's oracle sees it; `Refused` says why there is none.
    """
    fault = FAULTS[kind]
    chooser = random.Random(f"{case.name} {kind} {seed}")
    found = sites_of(case)
    suited = [site for site in found if _suits(fault, site, case.model.get_submodule(site.path))]
    if not suited:
        return Refused(f"no module of {case.name} suits it ({len(found)} tried)")
    chooser.shuffle(suited)
    for site in suited[:TRIES]:
        model = _with_fault(case, fault, site, chooser.randrange(2**31))
        if ORACLES[fault.effect](case, model):
            path = (site.path + fault.child).removeprefix(".")
            return Planted(
                model, kind, fault.clause, fault.codes, fault.also, path, fault.file, fault.lines, fault.line_required
            )
    return Refused(f"it shows no effect at {min(len(suited), TRIES)} places of {case.name}")


def _suits(fault: Fault, site: Site, module: nn.Module) -> bool:
    if fault.at_root:
        return not site.path
    if site.calls > 1 and fault.prepare is not None:  # what is prepared fits the tensor of the first call
        return False
    if fault.per_sample and not site.per_sample:
        return False
    if fault.prepare is not None and fault.child and isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return False
    return fault.suits is None or fault.suits(module, site.example)


def _with_fault(case: Case, fault: Fault, site: Site, seed: int) -> nn.Module:
    model = copy.deepcopy(case.model)
    module = model.get_submodule(site.path)
    if fault.prepare is not None:
        with torch.random.fork_rng(devices=[]):
            seeded(seed)
            fault.prepare(module, site.example)
    if fault.forward is not None:
        _replace_forward(module, fault)
    return model


def _replace_forward(module: nn.Module, fault: Fault) -> None:
    """Give this one module another `forward`; its signature stays, since callers may look at it."""
    forward = fault.forward
    if forward is None:
        raise ValueError(f"{fault.kind} has no forward pass")
    own = types.FunctionType(forward.__code__, forward.__globals__, forward.__name__, None, forward.__closure__)
    setattr(own, "__signature__", inspect.signature(type(module).forward))  # noqa: B010 - mypy knows no such attribute
    module.forward = types.MethodType(own, module)


def matches(planted: Planted, module: str, file: str, line: int) -> bool:
    """Whether a reported place is the planted one; `file` may be relative or shortened.

    A module built inside `forward` is named after the one that built it.
    """
    path = planted.module_path
    if module != path and not module.startswith(f"{path}.<".removeprefix(".")):
        return False
    if not planted.lines or (not planted.line_required and not line):
        return True
    return bool(file) and Path(file).name == Path(planted.file).name and line in planted.lines
