"""Calling what the user wrote: its failure is told as the user's, with what it was called on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evalmode.errors import EvalmodeError, TaskError
from evalmode.observe.tree import describe

__all__ = ["called"]


def called(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` of a task, known to its author as `name`, returns.

    Raises:
        TaskError: it raises; its own error is the cause.

    Example:
        >>> called("prediction(outputs)", lambda outputs: outputs + 1, 2)
        3
    """
    try:
        return function(*arguments)
    except EvalmodeError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise TaskError(
            f"{name} fails with {type(error).__name__}: {first}",
            expected=f"a function that takes {' and '.join(map(describe, arguments))}",
            fix="call it on one batch by hand; split(batch) and prediction(outputs) say what it is given",
        ) from error
