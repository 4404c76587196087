"""Which modules are in evaluation, and for whom: modes are counted per module.

Of the evaluations in flight on a module (nested, on other threads, in other tasks) the first switches it and the last
switches it back. A module that was not in training when it was met is not touched and not counted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from evalmode.errors import ConflictingModesError, FrozenModeError, SwitchError
from evalmode.mode.baked import training_operators
from evalmode.mode.discover import Discovery, discover
from evalmode.mode.frozen import frozen_mode
from evalmode.mode.overrides import Override, Standing, enter_overrides, leave_overrides, overrides_of
from evalmode.mode.snapshot import warn_touched

__all__ = ["ModeHold", "adopt_module", "forget_module", "hold_modes", "read_flag", "release_modes", "write_flag"]


@dataclass(slots=True, eq=False)
class ModeHold:
    """One evaluation's share: the modules it holds in evaluation and those it keeps in training."""

    discovery: Discovery
    kept: frozenset[int] = frozenset()
    taken: list[nn.Module] = field(default_factory=list)
    overridden: tuple[nn.Module, ...] = ()
    flags: list[tuple[nn.Module, bool]] | None = None
    """The flags before overrides are called, which may change any of them."""
    standings: list[Standing] = field(default_factory=list)
    touched: dict[int, str] = field(default_factory=dict)
    released: bool = False


class _Ledger:
    """The one ledger of the process. Every access holds `lock`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.holders: dict[int, ModeHold | set[ModeHold]] = {}
        self.keepers: dict[int, set[ModeHold]] = {}
        self.overrides: dict[int, Override] = {}
        self.holds: set[ModeHold] = set()


_ledger = _Ledger()


def read_flag(module: nn.Module) -> bool:
    """Whether `module` itself is in training; False for a graph that carries no flag."""
    own = module.__dict__
    return bool(own["training"] if "training" in own else getattr(module, "training", False))


def write_flag(module: nn.Module, *, training: bool) -> None:
    """Set the flag of `module` itself, and of nothing below it.

    Raises:
        SwitchError: its class makes the flag read-only.
    """
    own = module.__dict__
    if "training" in own and not hasattr(type(module), "training"):
        own["training"] = training
        return
    if read_flag(module) is training:
        return
    try:
        module.training = training
    except (AttributeError, RuntimeError) as error:
        raise SwitchError(
            f"the training flag of a {type(module).__name__} cannot be set: {error}",
            expected="`training` to be an attribute that can be written",
            fix=f"give {type(module).__name__}.training a setter",
        ) from error


def hold_modes(hold: ModeHold) -> None:
    """Bring every module of `hold.discovery` into evaluation mode, except those it keeps in training.

    Raises:
        ConflictingModesError: an evaluation in flight wants another mode for one of them.
        FrozenModeError: one of them runs a graph that was baked in training mode.
    """
    found = hold.discovery
    with _ledger.lock:
        _ledger.holds.add(hold)
        if not (found.unusual or hold.kept or _ledger.holders or _ledger.keepers):
            # The common case, by the ten thousand modules: nobody else in flight, nothing out of the ordinary.
            hold.taken = [module for module in found.modules if module.__dict__["training"]]
            _ledger.holders.update(dict.fromkeys(map(id, hold.taken), hold))
            for module in hold.taken:
                module.__dict__["training"] = False
            return
        _refuse_baked(hold)
        _refuse_conflicts(hold)
        for key in hold.kept:
            _ledger.keepers.setdefault(key, set()).add(hold)
        hold.taken = [
            module
            for module in found.modules
            if id(module) not in hold.kept and (id(module) in _ledger.holders or read_flag(module))
        ]
        for module in hold.taken:
            _add_holder(id(module), hold)
        overriding = [module for module in found.unusual if overrides_of(module)]
        due = [
            Override(module)
            for module in overriding
            if id(module) not in hold.kept and id(module) not in _ledger.overrides and read_flag(module)
        ]
        flags = [(module, read_flag(module)) for module in found.modules]
        if due:
            hold.overridden = tuple(item.module for item in due)
            hold.flags = flags  # should an override fail
            _ledger.overrides.update({id(item.module): item for item in due})
            enter_overrides(overriding, due, found.modules, hold.standings)
        for module, flag in flags:
            if id(module) in hold.kept:
                write_flag(module, training=flag)
            elif frozen_mode(module) is None and read_flag(module):
                write_flag(module, training=False)
        hold.flags = None


def release_modes(hold: ModeHold) -> None:
    """Let go of every module of `hold`; those that nobody else holds get back what the switch changed.

    Safe to call again after an interruption. The first error of a module's own `train()` is raised at the end, when
    everything else is back in place.
    """
    with _ledger.lock:
        if hold.released:
            return
        mine = []
        for module in hold.taken:
            holder = _ledger.holders.get(id(module))
            if holder is hold:
                mine.append(module)
            elif isinstance(holder, set):
                holder.discard(hold)
                if len(holder) == 1:
                    _ledger.holders[id(module)] = next(iter(holder))
        error = _leave(hold, mine)
        if hold.discovery.unusual:
            for module in mine:
                try:
                    write_flag(module, training=True)
                except SwitchError as refused:
                    error = error or refused
        else:
            for module in mine:
                module.__dict__["training"] = True
        for module in mine:
            _ledger.holders.pop(id(module), None)
        for key in hold.kept:
            keepers = _ledger.keepers.get(key, set())
            keepers.discard(hold)
            if not keepers:
                _ledger.keepers.pop(key, None)
        _ledger.holds.discard(hold)
        _drop_overrides_nobody_needs()
        hold.released = True
    if error is not None:
        raise error
    for path in hold.touched.values():
        warn_touched(path)


def _leave(hold: ModeHold, mine: list[nn.Module]) -> BaseException | None:
    """Call the overrides of `mine` on the way out and put back the tensors that they changed on the way in."""
    for standing in hold.standings:
        standing.remove()
    items = [_ledger.overrides[id(module)] for module in mine if id(module) in _ledger.overrides]
    if not items:
        return None
    if hold.flags is None:  # searched anew: what was added inside keeps its flag as well
        modules = {id(module): module for module in hold.discovery.modules}
        modules |= {id(module): module for module in discover(*hold.discovery.roots).modules}
        hold.flags = [(module, read_flag(module)) for module in modules.values()]
    for item in items:
        if item.touched is None:
            item.touched = item.changes.touched_since()
    overriding = [module for module in hold.discovery.unusual if overrides_of(module)]
    error = leave_overrides(overriding, [item for item in items if item.called], hold.standings)
    for item in reversed(items):  # the way in went parents first: undone last
        if item.touched:
            hold.touched[id(item.module)] = hold.discovery.paths().get(id(item.module), "")
        else:
            item.put_back()
    returning = set(map(id, mine))
    for module, flag in hold.flags:
        if id(module) not in returning and frozen_mode(module) is None:
            write_flag(module, training=flag)
    for item in items:
        _ledger.overrides.pop(id(item.module), None)
    return error


def _drop_overrides_nobody_needs() -> None:
    """Forget those of modules that were frozen inside and stayed so."""
    for key, item in list(_ledger.overrides.items()):
        if key not in _ledger.holders and not any(
            item.module is module for hold in _ledger.holds for module in hold.discovery.modules
        ):
            del _ledger.overrides[key]


def forget_module(module: nn.Module) -> bool:
    """Stop holding `module`: its flag stays as it is at exit. Returns whether it was in training before the switch."""
    with _ledger.lock:
        return _ledger.holders.pop(id(module), None) is not None


def adopt_module(module: nn.Module) -> bool:
    """Let the evaluations in flight that met `module` hold it, so that it returns to training when they end.

    Returns whether there are any.
    """
    with _ledger.lock:
        holds = [
            hold
            for hold in _ledger.holds
            if id(module) not in hold.kept and any(module is other for other in hold.discovery.modules)
        ]
        for hold in holds:
            if not any(module is other for other in hold.taken):
                hold.taken.append(module)
            _add_holder(id(module), hold)
        return bool(holds)


def _add_holder(key: int, hold: ModeHold) -> None:
    holder = _ledger.holders.get(key)
    if holder is None or holder is hold:
        _ledger.holders[key] = hold
    elif isinstance(holder, set):
        holder.add(hold)
    else:
        _ledger.holders[key] = {holder, hold}


def _refuse_conflicts(hold: ModeHold) -> None:
    wanted_in_training = [key for key in hold.kept if key in _ledger.holders]
    wanted_in_evaluation = [
        id(module)
        for module in hold.discovery.modules
        if id(module) not in hold.kept and id(module) in _ledger.keepers and read_flag(module)
    ]
    if not wanted_in_training and not wanted_in_evaluation:
        return
    paths = hold.discovery.paths()
    if wanted_in_training:
        raise ConflictingModesError(
            f"keep_training asks for {_some(wanted_in_training, paths)} in training, but an evaluation in flight has "
            "switched it to evaluation mode",
            expected="evaluations in flight at one time to agree on each module's mode",
            fix="give the outer evaluation the same keep_training, or end it first",
        )
    raise ConflictingModesError(
        f"an evaluation in flight keeps {_some(wanted_in_evaluation, paths)} in training on purpose",
        expected="evaluations in flight at one time to agree on each module's mode",
        fix="give this evaluation the same keep_training, or end the other first",
    )


def _refuse_baked(hold: ModeHold) -> None:
    for module in hold.discovery.unusual:
        operators = training_operators(module)
        if not operators or id(module) in hold.kept:
            continue
        path = hold.discovery.paths().get(id(module), "")
        kind = "TorchScript" if isinstance(module, torch.jit.ScriptModule) else "traced or exported"
        raise FrozenModeError(
            f"`{path or type(module).__name__}` is a {kind} graph that was made in training mode: "
            f"{', '.join(operators[:3])}{' and more' if len(operators) > 3 else ''}",
            expected="a graph made in evaluation mode; its mode is written into it, and no switch reaches it",
            fix="call model.eval() before tracing, scripting or exporting, and make the graph again",
            explain="mode-complete",
        )


def _some(keys: Iterable[int], paths: dict[int, str]) -> str:
    names = [f"`{paths.get(key) or 'the model itself'}`" for key in keys]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
