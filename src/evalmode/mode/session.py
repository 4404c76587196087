"""One entry into evaluation: everything it holds, what it tells about itself, and the way back."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import nn

from evalmode.errors import EvalmodeWarning, UsageError
from evalmode.mode.backward import guard_backward, unguard_backward
from evalmode.mode.derived import require_fresh
from evalmode.mode.discover import Discovery, discover
from evalmode.mode.grad_mode import GradHold, OnBackward, hold_grad_mode, release_grad_mode
from evalmode.mode.ledger import ModeHold, hold_modes, read_flag, release_modes
from evalmode.mode.selection import Choice, select_modules
from evalmode.mode.stash import GradientStash, give_gradients_back, stash_gradients
from evalmode.mode.streams import StreamHold, hold_streams, release_streams

__all__ = ["Ambience", "Session", "Switched", "Wishes"]


def _warn_nothing_in_training(found: Discovery, kept: dict[int, nn.Module]) -> None:
    names = [path or "the model itself" for key, path in found.paths().items() if key in kept]
    warnings.warn(
        f"keep_training leaves {', '.join(names[:3])}{' ...' if len(names) > 3 else ''} as it is, which is evaluation "
        "mode: call train() on it first to have it in training",
        EvalmodeWarning,
        stacklevel=4,
    )


class Wishes:
    """The arguments of one `evaluating` call."""

    __slots__ = ("gradients", "inference_mode", "keep_training", "on_backward", "own_streams")

    def __init__(
        self,
        gradients: bool,
        inference_mode: bool,
        keep_training: Choice | Iterable[Choice],
        on_backward: OnBackward,
        own_streams: bool,
    ) -> None:
        self.gradients = gradients
        self.inference_mode = inference_mode
        self.keep_training: Any = keep_training
        if isinstance(keep_training, Iterable) and not isinstance(keep_training, str | nn.Module | type):
            self.keep_training = tuple(keep_training)  # an iterator is read once
        self.on_backward = on_backward
        self.own_streams = own_streams


class Switched:
    """What one entry into evaluation did. Paths are those of `named_modules()`; `blocks[0]` is held in a plain list."""

    def __init__(self, found: Discovery, modes: ModeHold) -> None:
        self._found = found
        self._modes = modes

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """The models that were given."""
        return self._found.roots

    @property
    def switched(self) -> tuple[str, ...]:
        """Paths of the modules that this evaluation holds in evaluation mode and that were in training."""
        return self._paths(id(module) for module in self._modes.taken)

    @property
    def hidden(self) -> tuple[str, ...]:
        """Paths of the modules that `eval()` of the models does not reach."""
        hidden = self._found.hidden()
        return self._paths(id(module) for module in self._found.modules if id(module) in hidden)

    @property
    def kept(self) -> tuple[str, ...]:
        """Paths of the modules that `keep_training` left as they were."""
        return self._paths(id(module) for module in self._found.modules if id(module) in self._modes.kept)

    @property
    def overridden(self) -> tuple[str, ...]:
        """Paths of the modules whose own `train()` or `eval()` was called."""
        return self._paths(map(id, self._modes.overridden))

    @property
    def truncated(self) -> tuple[str, ...]:
        """Containers too large to be searched whole, and how far the search went."""
        paths = self._found.paths()
        return tuple(
            f"{paths.get(id(cut.holder), '')}{cut.label}".removeprefix(".")
            + f": {cut.searched:,} of {cut.size:,} items searched"
            for cut in self._found.truncated
        )

    def _paths(self, keys: Iterable[int]) -> tuple[str, ...]:
        paths = self._found.paths()
        return tuple(paths[key] for key in keys if key in paths)

    def __repr__(self) -> str:
        parts = [f"{len(self.switched)} of {len(self._found.modules)} modules switched"]
        for name in ("hidden", "kept", "overridden", "truncated"):
            values = getattr(self, name)
            if values:
                shown = ", ".join(value or "the model itself" for value in values[:4])
                parts.append(f"{name}: {shown}{' ...' if len(values) > 4 else ''}")
        return f"<Switched {'; '.join(parts)}>"


class Ambience:
    """What belongs to the thread and the process: grad mode, the guard on backward(), random streams."""

    __slots__ = ("grad", "streams")

    def __init__(self, wishes: Wishes) -> None:
        self.grad = GradHold(wishes.gradients, wishes.inference_mode, wishes.on_backward)
        self.streams = StreamHold() if wishes.own_streams else None

    def hold(self) -> None:
        if self.streams is not None:
            hold_streams(self.streams)
        if self.grad.on_backward != "allow":
            guard_backward(self)
        hold_grad_mode(self.grad)

    def release(self) -> None:
        """Safe to call again after an interruption."""
        unguard_backward(self)
        if self.streams is not None:
            release_streams(self.streams)
        release_grad_mode(self.grad)


class Session:
    """One entry. Every step of `release` may be repeated, so that an interruption inside it loses nothing."""

    modes: ModeHold | None = None  # on the class, for the finaliser of a session whose making was interrupted
    stash: GradientStash | None = None
    ambience: Ambience | None = None

    def __init__(self, models: tuple[nn.Module, ...], wishes: Wishes) -> None:
        self.models = models
        self.wishes = wishes
        self.thread = threading.get_ident()

    def switch(self) -> Switched:
        wishes = self.wishes
        if wishes.gradients and torch.is_inference_mode_enabled():
            raise UsageError(
                "evaluating(..., gradients=True) was entered under torch.inference_mode(), where nothing is recorded",
                fix="leave inference mode first: with torch.inference_mode(False)",
            )
        found = discover(*self.models)
        require_fresh(found.modules)
        kept = select_modules(wishes.keep_training, found, "keep_training") if wishes.keep_training != () else {}
        self.modes = ModeHold(found, frozenset(kept))
        hold_modes(self.modes)
        if kept and not any(read_flag(module) for module in kept.values()):
            _warn_nothing_in_training(found, kept)
        if wishes.gradients:
            self.stash = GradientStash()
            stash_gradients(self.stash, found.modules)
        return Switched(found, self.modes)

    def hold_ambience(self) -> None:
        self.ambience = Ambience(self.wishes)
        self.ambience.hold()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.release()
        except KeyboardInterrupt:
            self.release()
            raise

    def release(self) -> None:
        """Put everything back, then raise the first error that came up on the way."""
        errors: list[BaseException] = []
        for _ in range(3):  # again after an interruption, wherever it fell
            try:
                count = len(errors)
                for step in (self._release_ambience, self._give_gradients_back, self._release_modes):
                    try:
                        step()
                    except BaseException as error:  # noqa: BLE001 - all steps are taken, then it is raised
                        errors.append(error)
                if not any(isinstance(error, KeyboardInterrupt) for error in errors[count:]):
                    break
            except KeyboardInterrupt as interrupt:
                errors.append(interrupt)
        if errors:
            raise errors[0]

    def _release_ambience(self) -> None:
        if self.ambience is not None:
            self.ambience.release()

    def _give_gradients_back(self) -> None:
        if self.stash is not None:
            give_gradients_back(self.stash)

    def _release_modes(self) -> None:
        if self.modes is not None:
            release_modes(self.modes)

    def __del__(self) -> None:
        # An interruption before the first instruction of `__exit__` leaves a session that nobody ends.
        if self.modes is not None and not self.modes.released:
            self.release()
