"""Choose modules of a model by object, name pattern or type, and say clearly when a choice finds nothing."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable

from torch import nn

from evalmode.errors import PatternError
from evalmode.mode.discover import Discovery, discover

__all__ = ["Choice", "select_modules"]

Choice = nn.Module | str | type[nn.Module]


def select_modules(choices: Choice | Iterable[Choice], found: Discovery, argument: str) -> dict[int, nn.Module]:
    """The chosen modules and everything below them, by `id`.

    A choice is a module of the model, a pattern on module paths (`encoder.*`, `*.dropout`; `fnmatch` rules) or a
    module type.

    Raises:
        PatternError: a choice finds nothing in the model, or is something else.
    """
    if isinstance(choices, str | nn.Module | type):
        choices = (choices,)
    if not isinstance(choices, Iterable):
        raise _wrong_choice(choices, argument)
    chosen: dict[int, nn.Module] = {}
    for choice in choices:
        matches = _matching(choice, found, argument)
        for module in discover(*matches).modules:
            chosen[id(module)] = module
    return chosen


def _matching(choice: object, found: Discovery, argument: str) -> list[nn.Module]:
    if isinstance(choice, nn.Module):
        if not any(choice is module for module in found.modules):
            raise PatternError(
                f"{argument} got a {type(choice).__name__} that is not part of the model",
                expected="a module that the model contains",
                fix="take it from this very model, not from a copy of it",
            )
        return [choice]
    if isinstance(choice, str):
        paths = found.paths()
        named = {id(module): paths.get(id(module), "") for module in found.modules}
        matches = [
            module
            for module in found.modules
            if named[id(module)] == choice or fnmatch.fnmatchcase(named[id(module)], choice)  # `blocks[0]` as it is
        ]
        if not matches:
            raise PatternError(
                f"{argument}={choice!r} matches no module of the model",
                expected=_nearest(choice, [path for path in paths.values() if path]),
                fix="name a path of model.named_modules(); * matches any part of it",
            )
        return matches
    if isinstance(choice, type) and issubclass(choice, nn.Module):
        matches = [module for module in found.modules if isinstance(module, choice)]
        if not matches:
            present = sorted({type(module).__name__ for module in found.modules})
            raise PatternError(
                f"{argument}={choice.__name__} matches no module of the model",
                expected=f"one of its types: {', '.join(present[:12])}{' ...' if len(present) > 12 else ''}",
            )
        return matches
    raise _wrong_choice(choice, argument)


def _wrong_choice(choice: object, argument: str) -> PatternError:
    return PatternError(
        f"{argument} got {choice!r}",
        expected="modules of the model, name patterns ('encoder.*') or module types (nn.Dropout)",
    )


def _nearest(pattern: str, paths: list[str]) -> str:
    plain = pattern.replace("*", "").strip(".")
    names = difflib.get_close_matches(plain, paths, n=3, cutoff=0.4)
    last_parts = {path.rpartition(".")[2].partition("[")[0]: path for path in paths}
    names += [last_parts[part] for part in difflib.get_close_matches(plain, last_parts, n=3, cutoff=0.4)]
    names = list(dict.fromkeys(names))[:3]
    if names:
        return "did you mean " + " or ".join(repr(name) for name in names) + "?"
    return f"one of its paths, such as {', '.join(repr(path) for path in paths[:3])}" if paths else "a model with parts"
