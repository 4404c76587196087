"""From what a user types (`path/task.py`, `pkg.module`, `pkg.module:attribute`) to a `Task`."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import os
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from evalmode.errors import EvalmodeError, TaskError
from evalmode.task.definition import ARGUMENTS, Task, line_of
from evalmode.task.importing import import_file, importing_from

__all__ = ["load_task", "nearest"]

_WITH_ATTRIBUTE = re.compile(r"(?P<where>.+):(?P<attribute>[A-Za-z_][\w.]*)")
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def load_task(
    reference: str | os.PathLike[str], *, weights: str | os.PathLike[str] | None = None, for_data: bool = False
) -> Task:
    """The task that `reference` names, with its model built; `for_data`, without one that needs weights.

    A reference is a Python file or a module (`pkg.module`) with `model()` and, as wanted, `test_data()`,
    `train_data()`, `split(batch)`, `forward(model, inputs)`, `prediction(outputs)`, `metrics` and `loss`, or with an
    `evalmode.Task`. After a colon it names one attribute: a task, a module, a class or a function that builds a module.
    A file is executed afresh each time; it may import its neighbours.

    Raises:
        TaskError: there is no such file, module or attribute, it fails to load, or it defines no task; the message
            names the file, the function and what was expected.
    """
    text = os.fspath(reference)
    match = _WITH_ATTRIBUTE.fullmatch(text)
    where, attribute = (match["where"], match["attribute"]) if match and not Path(text).exists() else (text, "")
    module = _load_file(where) if _is_path(where) else _load_module(where)
    task = _from_attribute(module, where, attribute) if attribute else _from_module(module, where)
    return _named(task, text).built(weights, for_data=for_data)


def nearest(name: str, names: list[str], cutoff: float = 0.6) -> str:
    """A hint with the nearest of `names`, or nothing if none is near.

    Example:
        >>> nearest("modle", ["model", "split"])
        'did you mean `model`?'
    """
    close = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"did you mean `{close[0]}`?" if close else ""


def _named(task: Task, reference: str) -> Task:
    shown = os.fsencode(reference).decode(errors="replace")  # a file's name may be no text
    return dataclasses.replace(task, name=task.name or shown, reference=reference)


def _is_path(where: str) -> bool:
    return (
        where.endswith((".py", ".ipynb"))
        or where in {".", ".."}
        or "/" in where
        or os.sep in where
        or Path(where).is_file()
    )


def _load_file(where: str) -> ModuleType:
    try:
        path = Path(where).expanduser()
    except RuntimeError as error:
        raise TaskError(f"there is no file {where}: {error}", expected="a task file") from error
    if not path.is_file() or path.suffix != ".py":
        raise _no_such_file(where, path)
    path = path.resolve()
    try:
        return import_file(path)
    except SyntaxError as error:
        raise TaskError(
            f"{where} cannot be read as Python: {error.msg}\n"
            f"  at {error.filename or path}:{error.lineno}: {(error.text or '').strip()}",
            expected="valid Python",
        ) from error
    except (EvalmodeError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _failed_to_load(where, path, error) from error


def _no_such_file(where: str, path: Path) -> TaskError:
    if path.is_dir():
        return TaskError(f"{where} is a folder", expected="a Python file", fix=f"{path / 'task.py'}")
    if path.is_file():
        return TaskError(f"{where} is not a Python file", expected="a file that ends in .py")
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest(path.name, siblings)
    return TaskError(
        f"there is no file {where}",
        expected="a task file (evalmode init writes one), or a module as pkg.module",
        fix=hint or None,
    )


def _failed_to_load(where: str, path: Path, error: BaseException) -> TaskError:
    message = f"{type(error).__name__}: {error}".rstrip(": ")
    fix = None
    if isinstance(error, SystemExit):
        message = f"it called sys.exit({error.code!r})"
        fix = "put what the file does as a program under `if __name__ == '__main__':`"
    elif isinstance(error, ImportError) and (error.name or "").startswith("evalmode.task"):
        message = "ImportError: a relative import, but a task file is no part of a package"
        fix = f"name it as a module of its package: {_dotted(path)}"
    elif isinstance(error, ModuleNotFoundError):
        fix = f"install `{error.name}`, or run where it can be imported"
    return TaskError(f"{where} failed while it was loaded: {message}\n  at {line_of(error)}", fix=fix)


def _dotted(path: Path) -> str:
    parts = [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts)


def _load_module(where: str) -> ModuleType:
    if not _DOTTED.fullmatch(where):
        raise TaskError(
            f"{where!r} is neither a file nor a module name",
            expected="path/task.py, pkg.module or pkg.module:attribute",
        )
    try:
        with importing_from(str(Path.cwd())):  # as `python -m` does; the console script does not
            return importlib.import_module(where)
    except (EvalmodeError, KeyboardInterrupt):
        raise
    except BaseException as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (where == missing or where.startswith(f"{missing}.")):
            raise _no_such_module(where, missing) from error
        raise _failed_to_load(where, Path(where), error) from error


def _no_such_module(where: str, missing: str) -> TaskError:
    parent, _, last = missing.rpartition(".")
    if parent:
        paths = list(getattr(sys.modules.get(parent), "__path__", []))
        known = [entry.name for entry in pkgutil.iter_modules(paths)]
    else:
        known = [entry.name for entry in pkgutil.iter_modules()]
    hint = nearest(last, known, cutoff=0.7)
    if not hint and parent and hasattr(sys.modules.get(parent), last):
        hint = f"an attribute follows a colon: {parent}:{last}"
    return TaskError(
        f"there is no module {missing}" + (f" (from {where})" if missing != where else ""),
        expected="a module that Python can import from here, or a file as path/task.py",
        fix=hint or None,
    )


def _from_attribute(module: ModuleType, where: str, attribute: str) -> Task:
    from torch import nn

    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            names = [name for name in dir(value) if not name.startswith("_")]
            raise TaskError(f"{where} has no `{attribute}`", fix=nearest(part, names) or None)
        value = getattr(value, part)
    if isinstance(value, Task):
        return value
    if isinstance(value, nn.Module) or callable(value):
        return Task(model=value, reference=f"{where}:{attribute}")
    raise TaskError(
        f"{where}:{attribute} is of type {type(value).__name__}",
        expected="a module, a class or function that builds one, or an evalmode.Task",
    )


def _from_module(module: ModuleType, where: str) -> Task:
    tasks = {name: value for name, value in vars(module).items() if isinstance(value, Task)}
    if len({id(task) for task in tasks.values()}) == 1:
        return next(iter(tasks.values()))
    if "task" in tasks:
        return tasks["task"]
    if tasks:
        raise TaskError(
            f"{where} has several tasks: {', '.join(tasks)}", fix=f"choose one: {where}:{next(iter(tasks))}"
        )
    _demand_names(module, where)
    parts = {name: getattr(module, name) for name in ARGUMENTS if hasattr(module, name)}
    if isinstance(parts["model"], ModuleType):
        raise TaskError(f"`model` of {where} is an imported module, not a function", expected="def model()")
    return Task(**parts, reference=where)


def _demand_names(module: ModuleType, where: str) -> None:
    """There is a model, and nothing defined here looks like another known name misspelt."""
    own = [
        name
        for name, value in vars(module).items()
        if name not in ARGUMENTS
        and not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]
    missing = [name for name in ARGUMENTS if not hasattr(module, name)]
    for name in own:
        meant = difflib.get_close_matches(name, missing, n=1, cutoff=0.8)
        if meant and inspect.isfunction(getattr(module, name)):
            raise TaskError(
                f"{where} defines `{name}`, which is no name of a task: did you mean `{meant[0]}`?",
                expected=", ".join(ARGUMENTS),
                fix=f"rename it to `{meant[0]}`, or to `_{name}` if it is a function of your own",
            )
    if "model" in missing:
        near = difflib.get_close_matches("model", own, n=1, cutoff=0.5)
        raise TaskError(
            f"{where} has no function model()" + (f": did you mean `{near[0]}`?" if near else ""),
            expected="def model() that returns a torch.nn.Module, or an evalmode.Task(...)",
            fix="evalmode init writes a task file to start from",
        )
