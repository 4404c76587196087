"""`evaluating`: the switch into evaluation and the exact way back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Literal, TypeVar

from torch import nn

from evalmode.errors import UsageError
from evalmode.mode.decorated import decorated
from evalmode.mode.discover import require_modules
from evalmode.mode.grad_mode import OnBackward
from evalmode.mode.selection import Choice
from evalmode.mode.session import Session, Switched, Wishes
from evalmode.mode.suspension import warn_if_suspended_inside

__all__ = ["Evaluating", "Switched", "evaluating"]

Function = TypeVar("Function", bound=Callable[..., Any])


def evaluating(
    model: nn.Module,
    *more: nn.Module,
    gradients: bool = False,
    inference_mode: bool = False,
    keep_training: Choice | Iterable[Choice] = (),
    on_backward: Literal["error", "ignore"] = "error",
    rng: Literal["own", "leave"] = "own",
) -> Evaluating:
    """Bring one or more models into evaluation for a `with` block or a decorated function, and exactly back after it.

    Inside, every part of the models is in evaluation mode (those too that `model.eval()` does not reach), no graph is
    built, `backward()` changes no `.grad`, and random numbers come from evaluation's own streams. Afterwards, however
    the block ends, each flag that was switched has the value it had, and so have grad mode, random streams and `.grad`.

    Parameters:
        gradients: evaluation behaviour with gradients, for saliency and adversarial work: backward() is allowed,
            inputs receive gradients, and the parameters' `.grad` are given back at exit.
        inference_mode: use `torch.inference_mode()` instead of `torch.no_grad()`: a little faster, but tensors made
            inside cannot take part in training later.
        keep_training: parts to leave in training on purpose, with all that is below them: modules, name patterns
            ("*.dropout") or types (nn.Dropout).
        on_backward: what `backward()` inside does: "error" raises `BackwardInEvaluationError`, "ignore" does nothing.
        rng: "own" swaps the process's random streams (torch on CPU and CUDA, `random`, numpy) for evaluation's own,
            seeded from the training seed, continued by the next evaluation; "leave" does not touch them.

    As a decorator it works on functions, coroutines, generators and asynchronous generators. Grad mode and random
    streams are then held only while the function runs; the models stay in evaluation until it ends. A `with` block that
    spans an `await` or `yield` holds them for its thread meanwhile, and a warning says so.

    Returns: an `Evaluating`; its `with` block gives a `Switched` that lists what was switched.

    Raises:
        NotAModuleError: something else than an `nn.Module` instance was given.
        PatternError: a `keep_training` choice finds nothing.
        FrozenModeError: a part is a graph that was baked in training mode.
        ConflictingModesError: an evaluation in flight wants another mode for a part.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        >>> with evaluating(model) as switched:
        ...     answer = model(torch.ones(1, 2))
        >>> switched.switched
        ('', '0', '1')
        >>> model.training, answer.requires_grad
        (True, False)
    """
    if gradients and inference_mode:
        raise UsageError(
            "evaluating got gradients=True and inference_mode=True",
            expected="at most one of them: inference mode records nothing, so there is nothing to take gradients of",
            fix="leave inference_mode out",
        )
    for name, value, choices in (("on_backward", on_backward, ("error", "ignore")), ("rng", rng, ("own", "leave"))):
        if value not in choices:
            raise UsageError(f"evaluating got {name}={value!r}", expected=" or ".join(repr(c) for c in choices))
    models = require_modules((model, *more), "evaluating")
    policy: OnBackward = "allow" if gradients else on_backward
    return Evaluating(models, Wishes(gradients, inference_mode, keep_training, policy, rng == "own"))


class Evaluating:
    """What `evaluating` returns: a decorator, and a context manager that can be entered again, also while open."""

    def __init__(self, models: tuple[nn.Module, ...], wishes: Wishes) -> None:
        self._models = models
        self._wishes = wishes
        self._open: list[Session] = []

    def __enter__(self) -> Switched:
        warn_if_suspended_inside(sys._getframe(1), stacklevel=2)  # noqa: SLF001 - the documented way to the caller
        session = Session(self._models, self._wishes)
        self._open.append(session)
        try:
            switched = session.switch()
            session.hold_ambience()
            return switched
        except BaseException:
            self._close(session)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        session = None
        try:
            session = self._innermost()
            self._close(session)
        except KeyboardInterrupt:
            self._close(session or self._innermost())
            raise

    def _innermost(self) -> Session:
        if not self._open:
            raise UsageError("evaluating(...) was left but never entered", fix="use it as `with evaluating(model):`")
        thread = threading.get_ident()
        return next((session for session in reversed(self._open) if session.thread == thread), self._open[-1])

    def _close(self, session: Session) -> None:
        try:
            session.release()
        finally:
            if session in self._open:
                self._open.remove(session)

    def __call__(self, function: Function) -> Function:
        """Decorate `function`: each call of it runs in evaluation."""
        if isinstance(function, type):
            raise UsageError(
                f"@evaluating(...) got the class {function.__name__}",
                expected="a function, coroutine function or generator function",
                fix=f"decorate a method of {function.__name__}",
            )
        if not callable(function):
            raise UsageError(f"@evaluating(...) got {function!r}", expected="a function")
        return decorated(function, self._models, self._wishes)
