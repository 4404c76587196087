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

from evalmode.observe.bytecode import code_bytes

__all__ = ["code_digest"]


def code_digest(model: nn.Module, forward: Callable[..., Any] | None = None) -> str:
    """SHA-256 over the code of the classes of a model's modules, of `forward`, and of the files they were written in.

    Code that is called from there in other files is not seen, nor are the values that closures hold.

    Example:
        >>> code_digest(nn.Linear(2, 2)) == code_digest(nn.Linear(3, 3)) != code_digest(nn.ReLU())
        True
    """
    digest = hashlib.sha256()
    kinds = {kind for module in model.modules() for kind in type(module).__mro__ if kind not in nn.Module.__mro__}
    files: set[str] = set()
    for kind in sorted(kinds, key=lambda kind: (kind.__module__, kind.__qualname__)):
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        if kind.__module__.partition(".")[0] == "torch":  # its version is part of the environment
            continue
        files.add(kind.__module__)
        for name, value in sorted(vars(kind).items()):
            function = getattr(value, "__func__", value)
            if isinstance(function, types.FunctionType):
                digest.update(name.encode())
                digest.update(code_bytes(function.__code__))
    code = getattr(forward, "__code__", None)
    if code is not None:
        digest.update(code_bytes(code))
        files.add(getattr(forward, "__module__", ""))
    for name in sorted(files):
        with contextlib.suppress(OSError, TypeError):
            module = sys.modules.get(name)
            digest.update(Path(inspect.getfile(module)).read_bytes() if module is not None else b"")
    return digest.hexdigest()
