"""What an error advises, in the words of the command line instead of those of Python."""

from __future__ import annotations

import re

from evalmode.errors import EvalmodeError

__all__ = ["as_options"]

_PHRASES = {
    "evaluation.save()": "`evalmode evaluate --out`",
    "forward=lambda model, batch: ...": "def forward(model, batch): ... in the task",
}
_OPTIONS = (
    "allow_native", "batch_size", "budget_s", "confidence", "device", "exact", "journal", "keep_predictions", "limit",
    "margin", "on_bad_sample", "workers",
)  # fmt: skip
_NAMED = {"budget_s": "--budget", "exact": "--exact"}
_ARGUMENT = re.compile(rf"(?<![\w.(])({'|'.join(_OPTIONS)})=(?P<value>[^\s,;)]*)")


def as_options(error: EvalmodeError) -> str:
    """The message, with what was expected and the fix as options; what was got stays as it is.

    Example:
        >>> print(as_options(EvalmodeError("confidence is 95", fix="confidence=0.95")))
        confidence is 95
          fix: --confidence 0.95
    """
    expected, fix = (None if text is None else _translated(text) for text in (error.expected, error.fix))
    return str(EvalmodeError(error.got, expected=expected, fix=fix, explain=error.explain))


def _translated(text: str) -> str:
    for phrase, option in _PHRASES.items():
        text = text.replace(phrase, option)
    return _ARGUMENT.sub(_option, text)


def _option(found: re.Match[str]) -> str:
    name, value = found[1], found["value"]
    if name == "exact" and value == "False":
        return "--as-it-comes"
    option = _NAMED.get(name, "--" + name.replace("_", "-"))
    return option if value in {"", "True"} else f"{option} {value.strip(chr(39))}"
