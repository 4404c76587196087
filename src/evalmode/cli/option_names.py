"""What an error advises, in the words of the command line instead of those of Python."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from evalmode.errors import EvalmodeError

__all__ = ["as_options", "options_of"]

_PHRASES = {
    "evaluation.save()": "`evalmode evaluate --out`",
    "a file of keep_predictions=": "a file of `evalmode evaluate --keep-predictions`",
    "evalmode.compare(model_a, model_b, data=data)": "evalmode compare A B --data TASK",
    "forward=lambda model, batch: ...": "def forward(model, batch): ... in the task",
}
_NAMES = (
    "allow_native", "backends", "batch_size", "batch_sizes", "budget_s", "confidence", "device", "exact",
    "higher_is_better", "journal", "keep_predictions", "limit", "margin", "metric", "metrics", "on_bad_sample",
    "probes", "slices", "stable", "workers",
)  # fmt: skip
_LIST = r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]"
_MAPPING = r"\{[^{}]*\}"
_CALL = r"[\w.]+\((?:[^()]|\([^()]*\))*\)"  # Python, and so left as it is
_ARGUMENT = re.compile(
    rf"{_CALL}|(?<![\w.(])(?P<name>{'|'.join(_NAMES)})=(?P<value>{_LIST}|{_MAPPING}|'[^']*'|[^\s,;)]*)"
)

Options = Mapping[str, tuple[str, str]]


def options_of(params: Iterable[Any]) -> Options:
    """The options of a command by the names of its parameters: what sets each, and what turns it off."""
    return {param.name: (_long(param.opts), _long(param.secondary_opts)) for param in params if _long(param.opts)}


def _long(spellings: Iterable[str]) -> str:
    return next((option for option in spellings if option.startswith("--")), "")


def as_options(error: EvalmodeError, options: Options) -> str:
    """The message, with what was expected and the fix as options of the command; what was got stays as it is.

    Example:
        >>> print(as_options(EvalmodeError("confidence is 95", fix="confidence=0.95"), {"confidence": ("--conf", "")}))
        confidence is 95
          fix: --conf 0.95
    """
    expected, fix = (None if text is None else _translated(text, options) for text in (error.expected, error.fix))
    return str(EvalmodeError(error.got, expected=expected, fix=fix, explain=error.explain))


def _translated(text: str, options: Options) -> str:
    for phrase, option in _PHRASES.items():
        text = text.replace(phrase, option)
    return _ARGUMENT.sub(lambda found: _option(found, options), text)


def _option(found: re.Match[str], options: Options) -> str:
    name, value = found["name"], found["value"]
    if name is None:
        return found[0]
    known = [option for option in (name, name.removesuffix("s"), name.removesuffix("_s")) if option in options]
    if not known:
        return f"{found[0]} (in Python)"
    if value.startswith("{") and not _is_literal(value):
        return f"{found[0]} (in Python)"
    on, off = options[known[0]]
    if value == "False" and off:
        return off
    return on if value in {"", "True"} else " ".join(f"{on} {part}" for part in _parts(value))


def _is_literal(value: str) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return False
    return True


def _parts(value: str) -> list[str]:
    """A value as words of the shell, one for each entry of a list; an entry that only Python can hold is left out."""
    try:
        tree = ast.parse(value, mode="eval").body
    except SyntaxError:
        return [value]
    if isinstance(tree, ast.Dict):
        pairs = zip(tree.keys, tree.values, strict=True)
        return [shlex.quote(f"{ast.unparse(name).strip(chr(39))}={ast.unparse(part)}") for name, part in pairs if name]
    if not isinstance(tree, ast.List):
        return [_word(tree) or value.removeprefix("math.")]
    return [word for word in map(_word, tree.elts) if word]


def _word(tree: ast.expr) -> str:
    try:
        value = ast.literal_eval(tree)
    except ValueError:
        return ""
    if isinstance(value, tuple):
        return shlex.quote("/".join(map(str, value)))
    return "..." if value is ... else shlex.quote(str(value))
