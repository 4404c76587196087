"""What a model's code is, as far as it can be told: a plan found for other code is not taken from the cache."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from evalmode.mode.discover import discover
from evalmode.observe.bytecode import code_bytes

__all__ = ["code_digest"]


def code_digest(
    model: nn.Module, forward: Callable[..., Any] | None = None, graph: ExportedProgram | None = None
) -> str | None:
    """SHA-256 over what a model computes: its `graph`, its code, that of `forward`, and the files they were written in.

    A graph holds the settings of all modules, and what code in other files and closures did. Where there is none, the
    printed form of the model and the defaults of its functions take its place; None where `forward` is an object whose
    code cannot be seen.

    Example:
        >>> code_digest(nn.Linear(2, 2)) == code_digest(nn.Linear(2, 2)) != code_digest(nn.Linear(2, 2, bias=False))
        True
    """
    digest = hashlib.sha256()
    kinds = {
        kind for module in discover(model).modules for kind in type(module).__mro__ if kind not in nn.Module.__mro__
    }
    files: set[str] = set()
    for kind in sorted(kinds, key=lambda kind: (kind.__module__, kind.__qualname__)):
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        if kind.__module__.partition(".")[0] == "torch":  # its version is part of the environment
            continue
        files.add(kind.__module__)
        for name, value in sorted(vars(kind).items()):
            digest.update(_function_bytes(name, getattr(value, "__func__", value)))
    for module in model.modules():
        digest.update(_function_bytes("forward", getattr(vars(module).get("forward"), "__func__", None)))
        digest.update(_function_bytes("forward", vars(module).get("forward")))
    if forward is not None and not isinstance(forward, types.FunctionType) and graph is None:
        return None
    digest.update(_function_bytes("forward", forward))
    files.add(getattr(forward, "__module__", None) or "")
    digest.update((repr(model) if graph is None else str(graph.graph)).encode())
    for name in sorted(files):
        with contextlib.suppress(OSError, TypeError):
            source = sys.modules.get(name)
            digest.update(Path(inspect.getfile(source)).read_bytes() if source is not None else b"")
    return digest.hexdigest()


def _function_bytes(name: str, value: object) -> bytes:
    """What a function does, with its defaults; nothing of what is no function."""
    if not isinstance(value, types.FunctionType):
        return b""
    defaults = repr((value.__defaults__, sorted((value.__kwdefaults__ or {}).items())))
    return name.encode() + code_bytes(value.__code__) + defaults.encode()
