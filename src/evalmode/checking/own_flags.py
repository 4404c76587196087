"""Flags of the user's own that stayed in training: they are found by changing them and looking at what they did."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from evalmode.checking.subject import Subject
from evalmode.errors import ModelRunError
from evalmode.finding import Place
from evalmode.mode.discover import discover
from evalmode.mode.frozen import frozen_mode
from evalmode.mode.overrides import overrides_of
from evalmode.observe.tree import same_bits
from evalmode.observe.watch import Draw, watch

__all__ = ["OwnFlag", "own_flags"]

_FLAG = re.compile(
    r"_*((is|in|use|do|currently)_?)?(train|training)(_?(mode|phase|time|flag|on))?_*"
    r"|_*(use_|apply_|enable_|do_)?(dropout|noise|stochastic|augment|augmentation)(_?(on|active|enabled|flag))_*"
    r"|_*stochastic_*"
)
_MODE = re.compile(r"_*(mode|phase|stage|split|run_mode)_*")
_TRAINING_WORDS = frozenset(("train", "training", "fit"))
_EVALUATION_WORDS = ("eval", "test", "val", "inference", "predict")
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True, slots=True)
class OwnFlag:
    """A flag that stayed in training: the module's path, the attribute, its value and the one for evaluation.

    `effect` is what the other value changes; `unheard` says that the module's own `eval()` would set it and was not
    called; `lines` are the places that draw random numbers only because of it.
    """

    path: str
    name: str
    value: Any
    wanted: Any
    effect: str
    unheard: bool
    lines: tuple[Place, ...] = ()


def own_flags(subject: Subject) -> list[OwnFlag]:
    """The flags of the model's modules that stayed in training; the model is left as it was."""
    found = discover(subject.model)
    paths = found.paths()
    flags: list[OwnFlag] = []
    for module in found.modules:
        path = paths.get(id(module), "")
        flags.extend(_unheard(subject, module, path))
    told = {(flag.path, flag.name) for flag in flags}
    for module in found.modules:
        path = paths.get(id(module), "")
        for name, value in list(module.__dict__.items()):
            if (path, name) in told or name == "training":
                continue
            for wanted in _evaluation_values(name, value):
                flag = _tried(subject, module, path, name, wanted)
                if flag is not None:
                    flags.append(flag)
                    break
    return flags


def _evaluation_values(name: str, value: object) -> tuple[object, ...]:
    """What the attribute would hold in evaluation if it is a training flag that is on; nothing otherwise."""
    if value is True and _FLAG.fullmatch(name):
        return (False,)
    if isinstance(value, str) and value.lower() in _TRAINING_WORDS and _MODE.fullmatch(name):
        return _EVALUATION_WORDS
    return ()


def _unheard(subject: Subject, module: nn.Module, path: str) -> list[OwnFlag]:
    """Plain attributes that the module's own `eval()` sets: a parent's `eval()` calls `train(False)`, never it."""
    if "eval" not in overrides_of(module) or frozen_mode(module) is not None or module.training:
        return []
    before = _plain_attributes(module)
    try:
        module.eval()
        after = _plain_attributes(module)
        module.eval()
        again = _plain_attributes(module)
    except Exception:  # noqa: BLE001 - it cannot be called here, so nothing is known of what it would set
        return []
    finally:
        subject.prepare()
    return [
        OwnFlag(path, name, before[name], after[name], "its own eval() sets it, and no parent calls that", unheard=True)
        for name in before
        if name in after and after[name] != before[name] and again.get(name) == after[name]
    ]


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if isinstance(value, _PLAIN) and name != "training"}


def _tried(subject: Subject, module: nn.Module, path: str, name: str, wanted: object) -> OwnFlag | None:
    """The flag, if another value changes what the model draws or gives; None if it changes nothing or fails."""
    value = module.__dict__[name]
    as_it_is = subject.observe()
    run = subject.bare_pass()
    module.__dict__[name] = wanted
    try:
        changed = watch(run, subject.model)
    except ModelRunError:  # another value does not run: it is no flag of two values
        return None
    finally:
        subject.prepare()
    fewer = [draw for draw in as_it_is.draws if not _has(changed.draws, draw)]
    if fewer and len(changed.draws) < len(as_it_is.draws):
        effect = f"{len(as_it_is.draws)} random draws with it, {len(changed.draws)} without"
        lines = tuple(dict.fromkeys(draw.place for draw in fewer))
        return OwnFlag(path, name, value, wanted, effect, unheard=False, lines=lines)
    first, second = subject.tensors(as_it_is.outputs), subject.tensors(changed.outputs)
    moved = [leaf for leaf in first if leaf not in second or not same_bits(first[leaf], second[leaf])]
    if not as_it_is.draws and moved:
        effect = f"{len(moved)} of {len(first)} output tensors change with it"
        return OwnFlag(path, name, value, wanted, effect, unheard=False)
    return None


def _has(draws: list[Draw], wanted: Draw) -> bool:
    return any(draw.place == wanted.place for draw in draws)
