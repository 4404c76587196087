"""Which of a project's allow-list patterns concern a model: one list serves every model of the project."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

__all__ = ["split_patterns"]


def split_patterns(patterns: Iterable[str], model: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The patterns that match a module path of `model`, and the others; something else than a module has no paths.

    Example:
        >>> from torch import nn
        >>> split_patterns(["*.mc", "0"], nn.Sequential(nn.Dropout()))
        (('0',), ('*.mc',))
    """
    listed = tuple(patterns)
    if not listed:
        return (), ()
    from torch import nn

    from evalmode.mode.discover import discover

    paths = list(discover(model).paths().values()) if isinstance(model, nn.Module) else []
    fitting = tuple(pattern for pattern in listed if any(fnmatch.fnmatchcase(path, pattern) for path in paths))
    return fitting, tuple(pattern for pattern in listed if pattern not in fitting)
