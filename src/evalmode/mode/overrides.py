"""Call the `train()` and `eval()` that modules define themselves, each at most once per direction.

Such a method may recurse into children that have one too, may be reached by its parent's or not, and may do anything
(merge adapters, cast weights). While a direction runs, a stand-in before each of them lets the first due call through,
swallows the others, and notes which tensors it changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from evalmode.mode.baked import carries_graph
from evalmode.mode.frozen import frozen_mode
from evalmode.mode.snapshot import Changes, WriteWatch

__all__ = ["Override", "Standing", "enter_overrides", "leave_overrides", "overrides_of"]

_ABSENT = object()
_PLAIN = frozenset((bool, int, float, str, type(None)))


@dataclass(slots=True, eq=False)
class Override:
    """A module whose own `train()` or `eval()` was called on the way into evaluation."""

    module: nn.Module
    changes: Changes = field(default_factory=Changes)
    called: dict[str, bool] = field(default_factory=dict)
    """What was called on the way in, by name."""
    left: dict[str, bool] = field(default_factory=dict)
    """What was called on the way out, by name."""
    touched: bool | None = None
    failed: bool = False
    books: dict[str, object] = field(init=False)
    """The module's own plain values (`merged = False`), which an override that fails half-way leaves wrong."""

    def __post_init__(self) -> None:
        own = self.module.__dict__
        self.books = {name: value for name, value in own.items() if type(value) in _PLAIN and name != "training"}

    def put_back(self) -> None:
        """Give tensors back the bits they had, and after a failure the plain values too. Safe to call twice."""
        self.changes.put_back()
        if self.failed:
            self.module.__dict__.update(self.books)


def overrides_of(module: nn.Module) -> tuple[str, ...]:
    """Which of `train` and `eval` the module defines itself, on its class or on the instance.

    A graph's are not counted (an exported module's raise), nor is the mark of a frozen module.
    """
    if carries_graph(module) or frozen_mode(module) is not None:
        return ()
    kind = type(module)
    return tuple(
        name
        for name, original in (("train", nn.Module.train), ("eval", nn.Module.eval))
        if name in module.__dict__ or getattr(kind, name) is not original
    )


def enter_overrides(
    overriding: Iterable[nn.Module], due: list[Override], modules: list[nn.Module], standings: list[Standing]
) -> None:
    """Call `eval()`, or `train(False)` where only `train` is overridden, of the modules in `due`, parents first.

    `overriding` are all modules that override either; those not due are kept from being called by their parents. What
    each call changed is in its `Override.changes` afterwards, also if one of them raises. The stand-ins are noted in
    `standings`: an interruption while they are taken away leaves some to the caller's `remove()`.
    """
    watch = WriteWatch(modules)
    standing = Standing(mode=False, due={id(item.module): item for item in due}, watch=watch)
    standings.append(standing)
    try:
        standing.install(overriding)
        watch.watch()
        for item in due:
            names = overrides_of_shimmed(item.module)
            if "eval" in names and "eval" not in item.called:
                item.module.eval()
            elif "eval" not in names and "train" not in item.called:
                item.module.train(False)
    finally:
        standing.remove()
        if watch.latest is not None:
            watch.note_replaced(watch.latest)
        for item in due:
            item.changes.seal()


def leave_overrides(
    overriding: Iterable[nn.Module], due: list[Override], standings: list[Standing]
) -> BaseException | None:
    """Call `train(True)` of the modules in `due` that override it, parents first; the first error is returned.

    An override that raises keeps none of the others from being called. Called again after an interruption, it goes on
    where it was.
    """
    standing = Standing(mode=True, due={id(item.module): item for item in due}, watch=None)
    standings.append(standing)
    error: BaseException | None = None
    try:
        standing.install(overriding)
        for item in due:
            for _ in range(2):  # a second time if an interruption fell between here and the override
                if "train" not in overrides_of_shimmed(item.module) or "train" in item.left:
                    break
                try:
                    item.module.train(True)
                except BaseException as raised:  # noqa: BLE001 - KeyboardInterrupt too: it is raised at the end
                    error = error or raised
    finally:
        standing.remove()
    return error


def overrides_of_shimmed(module: nn.Module) -> tuple[str, ...]:
    """Which of `train` and `eval` have a stand-in on this module at the moment."""
    return tuple(name for name in ("train", "eval") if isinstance(module.__dict__.get(name), _StandIn))


@dataclass(slots=True)
class Standing:
    """One direction: which overrides are due, and the stand-ins to take away afterwards."""

    mode: bool
    due: dict[int, Override]
    watch: WriteWatch | None
    installed: list[tuple[dict[str, Any], str, object]] = field(default_factory=list)

    def install(self, overriding: Iterable[nn.Module]) -> None:
        for module in overriding:
            own = module.__dict__
            for name in overrides_of(module):
                stand_in = _StandIn(self, module, name, getattr(module, name))
                self.installed.append((own, name, own.get(name, _ABSENT)))
                own[name] = stand_in

    def remove(self) -> None:
        """Safe to call again after an interruption."""
        if self.watch is not None:
            self.watch.leave()
        while self.installed:
            own, name, before = self.installed[-1]
            if before is _ABSENT:
                own.pop(name, None)
            else:
                own[name] = before
            self.installed.pop()


@dataclass(slots=True, eq=False)
class _StandIn:
    standing: Standing
    module: nn.Module
    name: str
    original: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        item = self.standing.due.get(id(self.module))
        if item is None:
            return self.module
        noted = item.left if self.standing.mode else item.called
        if self.name in noted:
            return self.module
        watch = self.standing.watch
        outer = None
        if watch is not None:
            outer, watch.current, watch.latest = watch.current, item.changes, item.changes
        try:  # noted and called in one line, so that an interruption cannot fall between them
            return noted.setdefault(self.name, True) and self.original(*args, **kwargs)
        except BaseException:
            item.failed = True
            raise
        finally:
            if watch is not None:
                watch.current = outer
                watch.note_replaced(item.changes)
