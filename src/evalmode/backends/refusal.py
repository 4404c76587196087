"""A back end's own error in one line: the operator that it cannot take, where it names one."""

from __future__ import annotations

import re

from evalmode.errors import BackendError, MissingExtraError

__all__ = ["EXTRA", "refusal", "require"]

EXTRA = "not installed: pip install 'evalmode[optimize]'"
"""What `missing` says of a package of the extra."""

_OPERATOR = re.compile(
    r"\b(?:torch\.ops\.)?(aten|prims|torchvision|quantized|quantized_decomposed)(?:\.|::)(\w+(?:\.\w+)?)"
)
_NO_CAUSE = (
    "Traceback",
    "File ",
    "While executing",
    "Original traceback",
    "Check '",
    "FrontEnd API",
    "Exception from ",
    "Set TORCH",
    "|",
    "<class ",
)
_LONGEST = 200
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def refusal(backend: str, error: BaseException, doing: str = "build") -> BackendError:
    """The error to raise where a back end's own library raised `error`.

    Example:
        >>> print(refusal("openvino", RuntimeError("No conversion rule found for operations: aten::fft_rfft")).got)
        openvino cannot build it: `aten.fft_rfft`: No conversion rule found for operations: aten::fft_rfft
    """
    if isinstance(error, BackendError):
        return error
    text = _COLOURS.sub("", str(error))
    cause = _cause(text) or type(error).__name__
    operator = _OPERATOR.search(cause) or (_OPERATOR.search(text) if _blames_an_operator(text) else None)
    if operator is None:
        return BackendError(f"{backend} cannot {doing} it: {cause}")
    name = f"{operator[1]}.{operator[2]}"
    told = "" if cause.replace("::", ".") == name else f": {cause}"
    return BackendError(f"{backend} cannot {doing} it: `{name}`{told}")


def require(backend: str, missing: str | None) -> None:
    """Nothing where `missing` is None.

    Raises:
        MissingExtraError: the back end cannot be used here; the message says what to install.
    """
    if missing is not None:
        what, _, command = missing.partition(": ")
        raise MissingExtraError(f"{backend} is {what}", fix=command or None)


def _blames_an_operator(text: str) -> bool:
    return any(word in text.lower() for word in ("operation", "operator", "unsupported", "not supported", "dispatch"))


def _cause(text: str) -> str:
    lines = [line.strip().removeprefix("-- ").removesuffix(" with a message:") for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith(_NO_CAUSE)]
    # The library's own words come last: what precedes them is the way that led there.
    wanted = next((line for line in told if _OPERATOR.search(line)), told[0] if told else "")
    return wanted if len(wanted) <= _LONGEST else wanted[: _LONGEST - 1] + "…"
