"""Make `backward()` without effect inside evaluation, whatever graph it is called on.

Grad mode alone does not: a graph built before evaluation began still fills `.grad`. `torch.autograd.backward`, which
every spelling of backward() ends in, calls the engine through one name of its module; a guard stands there while an
evaluation is in flight, so that a forward pass costs nothing. The guard asks for the calling thread's own evaluation:
another thread's training passes through, and so does `torch.autograd.grad`, which touches no `.grad`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch

from evalmode.errors import BackwardInEvaluationError
from evalmode.mode.grad_mode import innermost_hold

__all__ = ["guard_backward", "unguard_backward"]

_NAME = "_engine_run_backward"
_lock = threading.RLock()
_holders: set[object] = set()
_guard: Callable[..., Any] | None = None


def guard_backward(holder: object) -> None:
    """Keep the guard in place until `unguard_backward(holder)`."""
    global _guard  # noqa: PLW0603 - one guard per process, as there is one engine
    with _lock:
        _holders.add(holder)
        current = getattr(torch.autograd, _NAME)
        if _guard is None or (current is not _guard and not _wraps(current, _guard)):
            _guard = _guarded(current)
            setattr(torch.autograd, _NAME, _guard)


def unguard_backward(holder: object) -> None:
    """Take the guard away when nobody needs it, unless someone has wrapped it meanwhile. Safe to call twice."""
    global _guard  # noqa: PLW0603 - see guard_backward
    with _lock:
        _holders.discard(holder)
        if not _holders and _guard is not None and getattr(torch.autograd, _NAME) is _guard:
            setattr(torch.autograd, _NAME, _guard.__wrapped__)  # type: ignore[attr-defined]
            _guard = None


def _wraps(function: Any, guard: object) -> bool:
    while (function := getattr(function, "__wrapped__", None)) is not None:
        if function is guard:
            return True
    return False


def _guarded(engine: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(engine)
    def run_backward(*args: Any, **kwargs: Any) -> Any:
        hold = innermost_hold()
        if hold is None or hold.on_backward == "allow" or not kwargs.get("accumulate_grad", False):
            return engine(*args, **kwargs)
        if hold.on_backward == "ignore":
            return ()
        raise BackwardInEvaluationError(
            "backward() was called inside evaluation; no .grad was changed",
            expected="a backward pass outside the `evaluating` block: evaluation mode promises that no gradient moves",
            fix="move backward() out of the block, or use evaluating(model, gradients=True) for gradients of inputs "
            '(torch.autograd.grad is free to use; on_backward="ignore" makes backward() do nothing)',
            explain="no-gradients",
        )

    return run_backward
