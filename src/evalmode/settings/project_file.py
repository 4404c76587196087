"""`[tool.evalmode]` of the nearest pyproject.toml: defaults and allow-lists that a project keeps in one place."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from evalmode.errors import UsageError

__all__ = ["PROBES", "Probes", "Settings", "read_settings"]

Probes = Literal["fast", "default", "thorough"]
PROBES: tuple[Probes, ...] = get_args(Probes)
"""How much `check` tries."""

_LISTS = {
    "select": 'a list of clauses and codes, as in ["finite", "EM17"]',
    "ignore": 'a list of clauses and codes, as in ["EM171"]',
    "allow": 'a list of patterns of module paths, as in ["*.mc_dropout"]',
    "inputs": 'a list of shapes, samples first, as in ["8,3,224,224"]',
}
_WORDS = {"probes": " or ".join(map(repr, PROBES)), "task": 'a task, as in "task.py" or "pkg.module:attribute"'}
_KEYS = (*_LISTS, *_WORDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a project has set. `file` is None where nothing was; `keys` are the keys that stand in the file."""

    file: Path | None = None
    keys: tuple[str, ...] = ()
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    probes: Probes = "default"
    task: str = ""

    @property
    def origin(self) -> str:
        """Where the settings come from, for people: the file as one would type it here."""
        if self.file is None:
            return "no settings"
        return f"[tool.evalmode] in {os.path.relpath(self.file)}"

    def task_reference(self) -> str:
        """`task` as it is to be loaded here: a file is meant from the folder of the settings."""
        where, colon, attribute = self.task.partition(":")
        if self.file is None or not (where.endswith(".py") or "/" in where):
            return self.task
        return os.path.relpath(self.file.parent / where) + colon + attribute


def read_settings(start: str | os.PathLike[str] = ".") -> Settings:
    r"""The settings of the nearest pyproject.toml with a table `[tool.evalmode]`, from `start` upward.

    Raises:
        UsageError: a pyproject.toml on the way cannot be read, or the table has an unknown key or a value of a wrong
            type; the message names the file and the key.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "pyproject.toml").write_text('[tool.evalmode]\nignore = ["EM171"]')
        ...     read_settings(folder).ignore
        ('EM171',)
    """
    place = Path(start).expanduser().resolve()
    for folder in (place, *place.parents):
        file = folder / "pyproject.toml"
        if not file.is_file():
            continue
        table = _table(file)
        if table is not None:
            return _settings(file, table)
    return Settings()


def _table(file: Path) -> object | None:
    import tomllib

    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {os.path.relpath(file)}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{os.path.relpath(file)} cannot be read as TOML: {error}", expected="valid TOML, in UTF-8"
        ) from error
    tool = content.get("tool", {})
    return tool.get("evalmode") if isinstance(tool, Mapping) else None


def _settings(file: Path, table: object) -> Settings:
    where = f"[tool.evalmode] in {os.path.relpath(file)}"
    if not isinstance(table, Mapping):
        raise UsageError(f"{where} is {_named(table)}", expected="a table", fix=f"its keys are {', '.join(_KEYS)}")
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
            raise UsageError(
                f"{where} has an unknown key {key!r}",
                expected=", ".join(_KEYS),
                fix=f"did you mean `{near[0]}`?" if near else None,
            )
        if key in _LISTS:
            values[key] = _strings(value, key, where)
        elif not isinstance(value, str) or not value.strip():
            raise UsageError(f"`{key}` of {where} is {_named(value)}", expected=_WORDS[key])
        else:
            values[key] = value
    if "probes" in values and values["probes"] not in PROBES:
        near = difflib.get_close_matches(values["probes"], PROBES, n=1)
        raise UsageError(
            f"`probes` of {where} is {values['probes']!r}",
            expected=_WORDS["probes"],
            fix=f"did you mean {near[0]!r}?" if near else None,
        )
    return Settings(file=file, keys=tuple(values), **values)


def _strings(value: object, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        fix = f"{key} = [{value!r}]".replace("'", '"') if isinstance(value, str) else None
        raise UsageError(f"`{key}` of {where} is {_named(value)}", expected=_LISTS[key], fix=fix)
    for item in value:
        if not isinstance(item, str) or not item.strip():
            raise UsageError(f"`{key}` of {where} holds {_named(item)}", expected=_LISTS[key])
    return tuple(item.strip() for item in value)


def _named(value: object) -> str:
    """A value of TOML in words and as it is."""
    kinds = {bool: "a boolean", int: "a whole number", float: "a number", str: "a string", list: "a list"}
    kind = kinds.get(type(value), "a table" if isinstance(value, Mapping) else f"a {type(value).__name__}")
    return f"{kind}: {value!r}"
