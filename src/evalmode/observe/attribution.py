"""Say where in a model something happens: the module path on top, and the line of the user's code.

Module paths come from global forward hooks that exist only while somebody watches; lines come from the call stack. The
innermost frame that is neither torch, evalmode nor the standard library is the line, and code of the user's own is
preferred to an installed package that it calls from the same module.
"""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import FrameType, TracebackType
from typing import Self

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from evalmode.finding import Place
from evalmode.mode.discover import discover
from evalmode.observe.other_threads import followed_by, following_threads

__all__ = ["ModuleStack", "handed_from", "is_installed", "is_user_file", "module_paths", "place_of"]

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_EVALMODE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STANDARD = tuple(sorted({os.path.abspath(sysconfig.get_paths()[name]) + os.sep for name in ("stdlib", "platstdlib")}))
_INSTALLED = (os.sep + "site-packages" + os.sep, os.sep + "dist-packages" + os.sep)
_MODULE_CALL = nn.Module._call_impl.__code__  # noqa: SLF001 - the frame that separates one module from the next


class _Here(threading.local):
    """The line that handed this thread its work, if it is followed."""

    origin: Place | None = None


_here = _Here()


def module_paths(model: nn.Module) -> dict[int, str]:
    """The path of each module of `model` by `id`, hidden ones included."""
    return discover(model).paths()


def is_user_file(filename: str) -> bool:
    """Whether code of this file is the user's: not torch, not evalmode, not the standard library."""
    if filename.startswith("<"):
        return filename.startswith("<eval_with_key>") or not filename.startswith("<frozen")
    if filename.startswith((_TORCH, _EVALMODE)):
        return False
    return not filename.startswith(_STANDARD) or any(part in filename for part in _INSTALLED)


def place_of(module: str, *, within_module: bool = False, frame: FrameType | None = None) -> Place:
    """The place of what happens right now: `module` and the line of the user's code that leads here.

    The walk ends where evalmode called the model, so that the line of the `check` call is never blamed. With
    `within_module`, it ends at the call of the module on top: a line outside of it is no line. On another thread
    without a line of its own, it is the line that handed the work over.
    """
    current: FrameType | None = frame if frame is not None else sys._getframe(1)  # noqa: SLF001 - the documented way to a stack
    chosen: FrameType | None = None
    while current is not None:
        code = current.f_code
        if code is _MODULE_CALL and (within_module or chosen is not None):
            break
        if _is_calling_rule(current):
            break
        if is_user_file(code.co_filename):
            if not is_installed(code.co_filename):
                chosen = current
                break
            chosen = chosen or current
        current = current.f_back
    if chosen is None:
        handed = _here.origin if current is None else None
        return Place(module=module) if handed is None else replace(handed, module=module)
    return line_place(module, chosen.f_code.co_filename, chosen.f_lineno)


def line_place(module: str, filename: str, line: int) -> Place:
    """A place with its source line, as far as the source can be read."""
    return Place(module=module, file=filename, line=line, source=linecache.getline(filename, line).strip())


def is_installed(filename: str) -> bool:
    """Whether code of this file belongs to an installed package."""
    return any(part in filename for part in _INSTALLED)


def _is_calling_rule(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") in ("evalmode.predictor.calling", "evalmode.checking.subject")


def handed_from() -> Place | None:
    """The line that handed this thread its work; None on the thread of the forward pass itself."""
    return _here.origin


@dataclass(frozen=True, slots=True)
class _Running:
    """A module that is running, its path, and whether gradients were on when it was entered."""

    module: nn.Module
    path: str
    gradients: bool


class ModuleStack:
    """The modules that are running on this thread, by path, while the context is open.

    A thread that the forward pass hands work to goes on from the modules that ran where it was handed over.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> seen = []
        >>> with ModuleStack(model) as stack:
        ...     handle = model[0].register_forward_pre_hook(lambda *_: seen.append(stack.top))
        ...     _ = model(torch.zeros(1))
        >>> seen
        ['0']
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.paths = module_paths(model) if model is not None else {}
        self._threads: dict[int, list[_Running]] = {}
        self._open = ExitStack()

    @property
    def running(self) -> list[_Running]:
        """What runs on this thread, the innermost last; nothing on a thread that is not followed."""
        return self._threads.get(threading.get_ident(), [])

    @property
    def top(self) -> str:
        """The path of the innermost module that is running, `""` for the model itself."""
        running = self.running
        return running[-1].path if running else ""

    @property
    def module(self) -> nn.Module | None:
        """The innermost module that is running."""
        running = self.running
        return running[-1].module if running else None

    @property
    def top_is_known(self) -> bool:
        """Whether the innermost running module belongs to the model: it was not built inside `forward`."""
        module = self.module
        return module is None or id(module) in self.paths

    def __enter__(self) -> Self:
        self._threads = {threading.get_ident(): []}
        with ExitStack() as stack:
            for handle in (
                register_module_forward_pre_hook(self._before),
                register_module_forward_hook(self._after, always_call=True),
            ):
                stack.callback(handle.remove)
            stack.enter_context(following_threads())
            stack.enter_context(followed_by(self))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        self._threads = {}

    def hand_over(self) -> Callable[[], AbstractContextManager[object]]:
        """Go on, on the thread that enters the context, from what runs here."""
        running, origin = tuple(self.running), place_of(self.top)
        return lambda: self._resumed(running, origin)

    @contextmanager
    def _resumed(self, running: tuple[_Running, ...], origin: Place) -> Iterator[None]:
        thread = threading.get_ident()
        before = self._threads.get(thread), _here.origin
        self._threads[thread], _here.origin = list(running), origin
        try:
            yield
        finally:
            _here.origin = before[1]
            if before[0] is None:
                self._threads.pop(thread, None)
            else:
                self._threads[thread] = before[0]

    def path_of(self, module: nn.Module) -> str:
        """The path of `module`; one built inside `forward` is named after the module that built it."""
        if id(module) in self.paths:
            return self.paths[id(module)]
        return ".".join(part for part in (self.top, f"<{type(module).__name__} built in forward>") if part)

    def _before(self, module: nn.Module, arguments: object) -> None:
        running = self._threads.get(threading.get_ident())
        if running is not None:
            running.append(_Running(module, self.path_of(module), torch.is_grad_enabled()))

    def _after(self, module: nn.Module, arguments: object, output: object) -> None:
        running = self.running
        while running:  # a module whose hooks were cut short by an exception is dropped with its caller
            if running[-1].module is module:
                self.left(running[-1].gradients)
                running.pop()
                return
            running.pop()

    def left(self, gradients: bool) -> None:
        """Called before the innermost module stops being it; `gradients` is the mode in which it was entered."""
