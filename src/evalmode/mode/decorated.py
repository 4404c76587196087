"""Functions, coroutines and generators whose every call runs in evaluation."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, TypeVar

from torch import nn

from evalmode.mode.session import Ambience, Session, Wishes

__all__ = ["decorated"]

Function = TypeVar("Function", bound=Callable[..., Any])


def decorated(function: Function, models: tuple[nn.Module, ...], wishes: Wishes) -> Function:
    """`function`, each call of it in an evaluation of its own.

    The models stay in evaluation from the first step to the last; grad mode and random streams only while it runs.
    """
    wrapper: Callable[..., Any]
    kind: Any = function
    if not (inspect.isroutine(function) or isinstance(function, functools.partial)):
        kind = type(function).__call__  # an object: its `__call__` may be a generator or a coroutine function
    if inspect.isasyncgenfunction(kind):
        wrapper = _asynchronous_generator(function, models, wishes)
    elif inspect.iscoroutinefunction(kind):
        wrapper = _coroutine(function, models, wishes)
    elif inspect.isgeneratorfunction(kind):
        wrapper = _generator(function, models, wishes)
    else:
        wrapper = _function(function, models, wishes)
    return functools.update_wrapper(wrapper, function)  # type: ignore[return-value]


def _function(function: Callable[..., Any], models: tuple[nn.Module, ...], wishes: Wishes) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with Session(models, wishes) as session:
            session.switch()
            session.hold_ambience()
            return function(*args, **kwargs)

    return run


def _generator(
    function: Callable[..., Generator[Any, Any, Any]], models: tuple[nn.Module, ...], wishes: Wishes
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with Session(models, wishes) as session:
            session.switch()
            return (yield from _stepwise(function(*args, **kwargs), session))

    return run


def _coroutine(
    function: Callable[..., Coroutine[Any, Any, Any]], models: tuple[nn.Module, ...], wishes: Wishes
) -> Callable[..., Any]:
    async def run(*args: Any, **kwargs: Any) -> Any:
        with Session(models, wishes) as session:
            session.switch()
            return await _Awaitable(_stepwise(function(*args, **kwargs), session))

    return run


def _asynchronous_generator(
    function: Callable[..., AsyncGenerator[Any, Any]], models: tuple[nn.Module, ...], wishes: Wishes
) -> Callable[..., Any]:
    async def run(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        with Session(models, wishes) as session:
            session.switch()
            inner = function(*args, **kwargs)
            step = inner.asend(None)
            try:
                while True:
                    try:
                        value = await _Awaitable(_stepwise(step.__await__(), session))
                    except StopAsyncIteration:
                        return
                    try:
                        step = inner.asend((yield value))
                    except GeneratorExit:
                        raise
                    except BaseException as error:  # noqa: BLE001 - whatever is thrown in belongs to the inner one
                        step = inner.athrow(error)
            finally:
                await _Awaitable(_stepwise(inner.aclose().__await__(), session))

    return run


class _Awaitable:
    """A generator to be awaited."""

    def __init__(self, steps: Generator[Any, Any, Any]) -> None:
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._steps


def _stepwise(inner: Any, session: Session) -> Generator[Any, Any, Any]:
    """Drive a generator or coroutine, holding grad mode and streams only while it runs."""

    def resume(method: Callable[..., Any], *values: Any) -> Any:
        ambience = Ambience(session.wishes)
        session.ambience = ambience
        try:
            ambience.hold()
            return method(*values)
        finally:
            ambience.release()

    send: Callable[..., Any] = inner.send if hasattr(inner, "send") else lambda _: next(inner)
    try:
        item = resume(send, None)
        while True:
            try:
                received = yield item
            except GeneratorExit:
                resume(inner.close)
                raise
            except BaseException as error:  # noqa: BLE001 - whatever is thrown in belongs to the inner one
                item = resume(inner.throw, error)
            else:
                item = resume(send, received)
    except StopIteration as stop:
        return stop.value
