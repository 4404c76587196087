"""Follow the work that a forward pass sends to other threads.

Grad mode and torch's modes belong to a thread, so what a pass does elsewhere is out of sight. While `following_threads`
is open, a function that its thread hands to a new thread or to a pool of threads takes along what watches there:
evalmode's own modes of torch, and every `Follower`. Threads that others start are left alone.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing.pool import ThreadPool
from types import TracebackType
from typing import Any, Protocol, Self

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from evalmode.mode.dispatch_mode import DispatchMode

__all__ = ["Follower", "followed_by", "following_threads"]

_POOLS = ("concurrent.futures.thread", "multiprocessing.pool")
_HANDS_OVER: tuple[tuple[type, str], ...] = (
    (ThreadPoolExecutor, "submit"),
    (ThreadPool, "apply_async"),
    (ThreadPool, "_map_async"),
    (ThreadPool, "imap"),
    (ThreadPool, "imap_unordered"),
)


class Follower(Protocol):
    """Something that watches one thread and can go on watching on another."""

    def hand_over(self) -> Callable[[], AbstractContextManager[object]]:
        """What makes the context that the other thread enters; called on the thread that hands the work over."""


class _Here(threading.local):
    """What is open on this thread."""

    sight: following_threads | None = None
    followers: tuple[Follower, ...] = ()


_here = _Here()
_lock = threading.Lock()
_originals: dict[tuple[type, str], Any] = {}
_open_sights = 0


class following_threads:  # noqa: N801 - a context manager, named for what the block does
    """Inside this context, what this thread hands to other threads is watched there too, until the context ends.

    Example:
        >>> import torch
        >>> from evalmode.observe.still import still
        >>> with ThreadPoolExecutor(1) as pool, following_threads(), still():
        ...     pool.submit(torch.rand, 2).result()
        tensor([0.5000, 0.5000])
    """

    def __init__(self) -> None:
        self.open = False
        self._outer: following_threads | None = None

    def __enter__(self) -> Self:
        global _open_sights  # noqa: PLW0603 - the patches are the process's, and so is their count
        with _lock:
            _open_sights += 1
            if _open_sights == 1:
                _install()
        self._outer, _here.sight = _here.sight, self
        self.open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _open_sights  # noqa: PLW0603 - as above
        self.open = False
        _here.sight = self._outer
        with _lock:
            _open_sights -= 1
            if _open_sights == 0:
                _uninstall()


@contextmanager
def followed_by(follower: Follower) -> Iterator[None]:
    """Inside this context, work that this thread hands over takes `follower` along."""
    outer = _here.followers
    _here.followers = (*outer, follower)
    try:
        yield
    finally:
        _here.followers = outer


class _FunctionRelay(TorchFunctionMode):
    """A function mode of another thread, heard here for as long as that thread listens."""

    def __init__(self, mode: TorchFunctionMode, sight: following_threads) -> None:
        super().__init__()
        self.mode = mode
        self._sight = sight

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self._sight.open:
            return func(*args, **(kwargs or {}))
        return self.mode.__torch_function__(func, types, args, kwargs)


class _OperatorRelay(DispatchMode):
    """A dispatch mode of another thread, heard here for as long as that thread listens."""

    supports_higher_order_operators = True

    def __init__(self, mode: TorchDispatchMode, sight: following_threads) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mode = mode
        self._sight = sight

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self._sight.open:
            return func(*args, **(kwargs or {}))
        return self.mode.__torch_dispatch__(func, types, args, kwargs)


def _handed(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, taking along what watches this thread."""
    sight, followers = _here.sight, _here.followers
    if sight is None or not sight.open:
        return function
    functions = [mode for mode in map(_heard, _get_current_function_mode_stack()) if mode is not None]
    operators = [mode for mode in map(_heard, _get_current_dispatch_mode_stack()) if mode is not None]
    resumptions = [follower.hand_over() for follower in followers]

    def followed(*args: Any, **named: Any) -> Any:
        if not sight.open:
            return function(*args, **named)
        before = _here.sight, _here.followers
        _here.sight, _here.followers = sight, followers
        try:
            with ExitStack() as stack:
                for resume in resumptions:
                    stack.enter_context(resume())
                for mode in functions:
                    stack.enter_context(_FunctionRelay(mode, sight))
                for mode in operators:
                    stack.enter_context(_OperatorRelay(mode, sight))
                return function(*args, **named)
        finally:
            _here.sight, _here.followers = before

    return followed


def _heard(mode: Any) -> Any:
    """The mode of evalmode that `mode` is or relays; None for a mode of the model's, which stays on its thread."""
    if isinstance(mode, _FunctionRelay | _OperatorRelay):
        return mode.mode
    return mode if type(mode).__module__.startswith("evalmode.") else None


def _install() -> None:
    for owner, name in _HANDS_OVER:
        _originals[owner, name] = vars(owner).get(name)
        setattr(owner, name, _taking_along(getattr(owner, name)))
    _originals[threading.Thread, "start"] = threading.Thread.start
    threading.Thread.start = _starting(threading.Thread.start)  # type: ignore[method-assign, assignment]


def _uninstall() -> None:
    for (owner, name), original in _originals.items():
        if getattr(vars(owner).get(name), "__evalmode__", False):  # else another has wrapped it meanwhile
            if original is None:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
    _originals.clear()


def _taking_along(submit: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(submit)
    def submitting(pool: Any, function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        return submit(pool, _handed(function), *args, **named)

    submitting.__evalmode__ = True  # type: ignore[attr-defined]
    return submitting


def _starting(start: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    @functools.wraps(start)
    def starting(thread: threading.Thread) -> None:
        target = getattr(thread, "_target", None)
        if getattr(target, "__module__", None) in _POOLS:  # lives on; what a pool is given takes along by itself
            return start(thread)
        own, run = vars(thread).get("run"), thread.run
        body = _handed(run)
        if body is run:
            return start(thread)

        def running() -> None:
            _give_back_run(thread, own)
            body()

        thread.run = running  # type: ignore[method-assign]
        try:
            return start(thread)
        except BaseException:
            _give_back_run(thread, own)
            raise

    starting.__evalmode__ = True  # type: ignore[attr-defined]
    return starting


def _give_back_run(thread: threading.Thread, own: Any) -> None:
    if own is None:
        vars(thread).pop("run", None)
    else:
        thread.run = own  # type: ignore[method-assign]
