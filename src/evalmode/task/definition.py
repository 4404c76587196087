"""`Task`: a model, its data, and how to call and judge it."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evalmode.errors import EvalmodeError, TaskError
from evalmode.task.importing import importing_for

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ARGUMENTS", "Task", "call", "line_of"]

ARGUMENTS = {
    "model": (),
    "test_data": (),
    "train_data": (),
    "split": ("batch",),
    "forward": ("model", "inputs"),
    "prediction": ("outputs",),
    "loss": ("outputs", "target"),
    "metrics": (),
}
"""The names that a task may define, with the arguments that each function takes."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its data, and how to call and judge it. Everything but `model` may be left out.

    `model` is a module, or a function `model()` or `model(weights=None)` that builds one. `test_data` and `train_data`
    are data (a DataLoader, a Dataset, a pair of tensors) or functions that give them. `split(batch)` gives inputs and
    target, `forward(model, inputs)` calls the model, `prediction(outputs)` gives the answer, `metrics` and `loss` judge
    it. `reference`, `weights` and `notes` are filled in by `load_task`.

    Raises:
        TaskError: a part is not what it should be; the message names the part, what was got and what was expected.

    Example:
        >>> import torch
        >>> task = Task(model=torch.nn.Linear(3, 2), test_data=(torch.rand(8, 3), torch.arange(8) % 2))
        >>> len(task.data("test_data"))
        2
    """

    model: nn.Module | Callable[..., nn.Module]
    test_data: object = None
    train_data: object = None
    split: Callable[[Any], tuple[Any, Any]] | None = None
    forward: Callable[[Any, Any], Any] | None = None
    prediction: Callable[[Any], Any] | None = None
    metrics: Any = None
    loss: Callable[[Any, Any], Any] | None = None
    name: str = ""
    reference: str = ""
    weights: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part, arguments in ARGUMENTS.items():
            value = getattr(self, part)
            if part in {"split", "forward", "prediction", "loss", "model"} and value is not None:
                _demand_callable(value, part, arguments, self.home)
            if part in {"test_data", "train_data"} and _is_function(value):
                _demand_arguments(value, part, arguments, self.home)

    @property
    def home(self) -> str:
        """Where the task comes from, for messages."""
        return self.reference or "evalmode.Task(...)"

    def built(self, weights: str | os.PathLike[str] | None = None, *, for_data: bool = False) -> Task:
        """This task with its model built: `model` is a module afterwards.

        Where the task is wanted `for_data`, a model that cannot be built without weights stays as it is.
        """
        from torch import nn

        if isinstance(self.model, nn.Module):
            if weights is None:
                return self
            raise TaskError(
                f"weights were given, but `model` of {self.home} is a module already",
                expected="a function model(weights=None) that loads them",
            )
        given = None if weights is None else os.fspath(weights)
        try:
            _demand_weights_fit(self.model, given, self.home)
        except TaskError:
            if for_data:
                return self
            raise
        module = call(self.model, "model", self.home, **({} if given is None else {"weights": given}))
        _demand_module(module, self.home)
        return dataclasses.replace(self, model=module, weights=given)

    def data(self, part: Literal["test_data", "train_data"]) -> Any:
        """The test or training data, from its function if it is one; None if the task has none.

        Raises:
            TaskError: the function failed or gave nothing, or the data is empty.
        """
        data = getattr(self, part)
        if data is None:
            return None
        if _is_function(data):
            data = call(data, part, self.home)
            if data is None:
                raise TaskError(
                    f"{part}() of {self.home} returned None",
                    expected="a DataLoader, a Dataset, or a pair (inputs, targets)",
                    fix=f"end {part}() with `return ...`",
                )
        first = data[0] if isinstance(data, tuple) and data else data
        with contextlib.suppress(TypeError):  # a stream has no length, and a DataLoader over one says so by TypeError
            if isinstance(first, Sized) and len(first) == 0:
                raise TaskError(f"{part} of {self.home} is empty", expected="at least one sample")
        return data


def call(function: Callable[..., Any], part: str, home: str, /, *args: Any, **kwargs: Any) -> Any:
    """The function's result; whatever it raises becomes a `TaskError` that names the function and the line."""
    try:
        with importing_for(function):
            return function(*args, **kwargs)
    except EvalmodeError:
        raise
    except (Exception, SystemExit) as error:
        message = f"{type(error).__name__}: {error}".rstrip(": ")
        raise TaskError(f"{part}() of {home} raised {message}\n  at {line_of(error)}") from error


def line_of(error: BaseException) -> str:
    """The innermost line of the user's own code that an error came through, for messages."""
    frames = traceback.extract_tb(error.__traceback__)
    installed = tuple(sysconfig.get_paths()[name] + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    ours = str(Path(__file__).parents[1]) + os.sep
    own = [frame for frame in frames if not frame.filename.startswith(("<frozen", ours, *installed))]
    if not own:
        return "a line of an installed package" if frames else "an unknown line"
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}"


def _is_function(value: object) -> bool:
    return inspect.isroutine(value) or inspect.isclass(value) or type(value).__name__ == "partial"


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):  # built-in callables may not say what they take
        return None


def _demand_callable(value: object, part: str, arguments: tuple[str, ...], home: str) -> None:
    from torch import nn

    expected = f"a function {part}({', '.join(arguments)})"
    if part == "model":
        expected = "a module, or a function model() that returns one"
        if isinstance(value, nn.Module):
            return
    if not callable(value):
        raise TaskError(f"`{part}` of {home} is {_named(value)}", expected=expected)
    if part != "model":
        _demand_arguments(value, part, arguments, home)


def _demand_arguments(function: Callable[..., Any], part: str, arguments: tuple[str, ...], home: str) -> None:
    signature = _signature(function)
    if signature is None:
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TaskError(
            f"{part}{signature} of {home} takes the wrong arguments: {error}",
            expected=f"def {part}({', '.join(arguments)})",
        ) from error


def _demand_weights_fit(factory: Callable[..., Any], weights: str | None, home: str) -> None:
    signature = _signature(factory)
    if signature is None:
        return
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    takes_weights = kinds.get("weights") in {
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    } or (inspect.Parameter.VAR_KEYWORD in kinds.values())
    if weights is not None and not takes_weights:
        raise TaskError(
            f"weights were given ({weights}), but model{signature} of {home} takes none",
            expected="def model(weights=None)",
        )
    try:
        signature.bind(**({} if weights is None else {"weights": weights}))
    except TypeError as error:
        only_weights = weights is None and takes_weights and "weights" in str(error)
        raise TaskError(
            f"model{signature} of {home} cannot be called without arguments: {error}",
            expected="def model() or def model(weights=None)",
            fix="give --weights F, or write weights=None and build the model without" if only_weights else None,
        ) from error


def _demand_module(value: object, home: str) -> None:
    from torch import nn

    if isinstance(value, nn.Module):
        return
    fix = "return the module alone"
    if value is None:
        fix = "end model() with `return ...`"
    elif inspect.isclass(value):
        fix = f"return an instance: {value.__name__}()"
    elif isinstance(value, dict):
        fix = "load a state dict into the module, and return the module"
    raise TaskError(f"model() of {home} returned {_named(value)}", expected="a torch.nn.Module", fix=fix)


def _named(value: object) -> str:
    if value is None:
        return "None"
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
