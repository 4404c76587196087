"""Notice a `with` block that spans an `await` or a `yield`, where other code of the thread runs inside the block."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
import warnings
from collections.abc import Iterator

from evalmode.errors import EvalmodeWarning

__all__ = ["warn_if_suspended_inside"]

_SUSPENDING_CODE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.GeneratorExp)
_SUSPENSIONS = (ast.Await, ast.Yield, ast.YieldFrom, ast.AsyncFor, ast.AsyncWith)


def warn_if_suspended_inside(frame: types.FrameType | None, stacklevel: int) -> None:
    """Warn if the `with` statement that `frame` is entering holds an `await` or `yield` in its body.

    A generator that `contextlib` drives is a context manager itself: there the hold is what is wanted.
    """
    if frame is None or not frame.f_code.co_flags & _SUSPENDING_CODE:
        return
    driver = frame.f_back
    if driver is not None and driver.f_code.co_filename.endswith("contextlib.py"):
        return
    line = _suspension_in_with(frame.f_code, frame.f_lineno)
    if line:
        warnings.warn(
            f"this `with evaluating(...)` block is suspended at line {line}: until it ends, whatever else runs in this "
            "thread has no gradients and evaluation's random streams. As a decorator (@evaluating(model)) they are "
            "held only while the function runs",
            EvalmodeWarning,
            stacklevel=stacklevel + 1,
        )


@functools.lru_cache(maxsize=256)
def _suspension_in_with(code: types.CodeType, line: int) -> int:
    """The line of the first suspension inside the innermost `with` that is entered at `line`; 0 if there is none."""
    try:
        lines, first = inspect.getsourcelines(code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError, TypeError):  # no source to read
        return 0
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and any(
            item.context_expr.lineno <= line - first + 1 <= (item.context_expr.end_lineno or item.context_expr.lineno)
            for item in node.items
        )
    ]
    if not blocks:
        return 0
    for statement in blocks[-1].body:
        for node in _own_nodes(statement):
            if isinstance(node, _SUSPENSIONS):
                return node.lineno + first - 1
    return 0


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and what is below it, without the bodies of functions defined there."""
    if not isinstance(node, _FUNCTIONS):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _own_nodes(child)
