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
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from evalmode.finding import Place
from evalmode.mode.discover import discover

__all__ = ["ModuleStack", "is_installed", "is_user_file", "module_paths", "place_of"]

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_EVALMODE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STANDARD = tuple(sorted({os.path.abspath(sysconfig.get_paths()[name]) + os.sep for name in ("stdlib", "platstdlib")}))
_INSTALLED = (os.sep + "site-packages" + os.sep, os.sep + "dist-packages" + os.sep)
_MODULE_CALL = nn.Module._call_impl.__code__  # noqa: SLF001 - the frame that separates one module from the next


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
    `within_module`, it ends at the call of the module on top: a line outside of it is no line.
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
        return Place(module=module)
    return line_place(module, chosen.f_code.co_filename, chosen.f_lineno)


def line_place(module: str, filename: str, line: int) -> Place:
    """A place with its source line, as far as the source can be read."""
    return Place(module=module, file=filename, line=line, source=linecache.getline(filename, line).strip())


def is_installed(filename: str) -> bool:
    """Whether code of this file belongs to an installed package."""
    return any(part in filename for part in _INSTALLED)


def _is_calling_rule(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") in ("evalmode.predictor.calling", "evalmode.checking.subject")


class ModuleStack:
    """The modules that are running on this thread, by path, while the context is open.

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
        self.running: list[tuple[nn.Module, str]] = []
        self._thread = threading.get_ident()
        self._handles: list[Any] = []

    @property
    def top(self) -> str:
        """The path of the innermost module that is running, `""` for the model itself."""
        return self.running[-1][1] if self.running else ""

    @property
    def module(self) -> nn.Module | None:
        """The innermost module that is running."""
        return self.running[-1][0] if self.running else None

    @property
    def top_is_known(self) -> bool:
        """Whether the innermost running module belongs to the model: it was not built inside `forward`."""
        return not self.running or id(self.running[-1][0]) in self.paths

    def __enter__(self) -> Self:
        self._thread = threading.get_ident()
        self._handles = [
            register_module_forward_pre_hook(self._before),
            register_module_forward_hook(self._after, always_call=True),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self.running.clear()

    def path_of(self, module: nn.Module) -> str:
        """The path of `module`; one built inside `forward` is named after the module that built it."""
        if id(module) in self.paths:
            return self.paths[id(module)]
        return ".".join(part for part in (self.top, f"<{type(module).__name__} built in forward>") if part)

    def _before(self, module: nn.Module, arguments: object) -> None:
        if threading.get_ident() == self._thread:
            self.running.append((module, self.path_of(module)))
            self.entered(module)

    def _after(self, module: nn.Module, arguments: object, output: object) -> None:
        if threading.get_ident() != self._thread:
            return
        while self.running:  # a module whose hooks were cut short by an exception is dropped with its caller
            if self.running[-1][0] is module:
                self.left(module)
                self.running.pop()
                return
            self.running.pop()

    def entered(self, module: nn.Module) -> None:
        """Called when `module` has become the innermost one; for subclasses that watch more."""

    def left(self, module: nn.Module) -> None:
        """Called before `module` stops being the innermost one."""
