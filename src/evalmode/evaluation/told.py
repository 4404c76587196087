"""Errors of a group of samples, told of the samples that are its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from evalmode.errors import EvalmodeError, UnreadColumnError

__all__ = ["all_bad", "in_short", "of_group", "of_sample", "unread"]

_COUNTED = re.compile(r" in \d+ of \d+ samples(?: of a batch)?(?: \(first: \d+\))?")
_SHOWN = 500  # characters of a reason: the whole of it is in the error


def of_sample(name: Any, error: EvalmodeError) -> EvalmodeError:
    """The same error, with the sample's id in place of how many samples of the group it was seen in."""
    return _again(error, f"sample {name}: {_COUNTED.sub('', error.got)}")


def of_group(names: Sequence[Any] | NDArray[Any], bad: Sequence[int], error: EvalmodeError) -> EvalmodeError:
    """The same error, which counts the samples of a group and not what fills it up.

    `names` are the ids of the samples, `bad` are the rows of those that fail.
    """
    counted = f" in {len(bad):,} of {len(names):,} samples (first: {names[bad[0]]})"
    got = _COUNTED.sub(lambda _: counted, error.got)
    return error if got == error.got else _again(error, got)


def all_bad(first: EvalmodeError, count: int) -> EvalmodeError:
    """The error where no sample is left: how many were left out, and why the first one was."""
    return _again(first, f"all {count:,} samples were left out; {first.got}" if count > 1 else first.got)


def in_short(reason: str) -> str:
    """A reason as it is listed.

    Example:
        >>> len(in_short("x" * 10_000))
        501
    """
    return reason if len(reason) <= _SHOWN else f"{reason[:_SHOWN]}…"


def _again(error: EvalmodeError, got: str) -> EvalmodeError:
    made = type(error)(got, expected=error.expected, fix=error.fix, explain=error.explain)
    made.__cause__ = error.__cause__
    return made


def unread(error: BaseException) -> UnreadColumnError | None:
    """The column that could not be read, where that is why something failed."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, UnreadColumnError):
        seen = seen.__cause__
    return seen
