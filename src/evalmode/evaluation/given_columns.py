"""Columns as they were given: those of pandas, and lists of numbers or texts, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from evalmode.errors import TaskError, UsageError
from evalmode.evaluation.labels import given_values
from evalmode.observe.tree import describe

__all__ = ["is_texts", "odd_part", "with_arrays"]


def with_arrays(data: Any) -> Any:
    """The data with arrays for the columns of pandas, in a mapping also for lists of numbers and texts.

    What cannot be an array is left as it is.

    Example:
        >>> with_arrays({"age": [3, 4], "site": ["a", "b"]})
        {'age': tensor([3, 4]), 'site': array(['a', 'b'], dtype='<U1')}
    """
    if type(data) in {tuple, list} and len(data) == 2:
        within = isinstance(data, tuple)  # a list of two mappings may be two samples
        return type(data)(
            with_arrays(part) if within and isinstance(part, Mapping) else _from_pandas(part) for part in data
        )
    if isinstance(data, Mapping):
        return {name: _column(value) for name, value in data.items()}
    return data


def is_texts(part: object) -> bool:
    """Whether it is an array of texts, one for each sample."""
    return isinstance(part, np.ndarray) and part.ndim == 1 and part.dtype.kind == "U"


def odd_part(data: Any, name: object, part: Any) -> TaskError:
    """The error for data of which one part is no column."""
    what = f"{part.dtype} of shape {part.shape}" if isinstance(part, np.ndarray) else describe(part)
    return TaskError(
        f"test data of type {type(data).__name__}, whose part {name!r} is {what}",
        expected="an array with one row for each sample; in a mapping also a list of numbers or texts",
        fix="leave that part out, make it an array (a table: frame.to_numpy()), or hand over a dataset of samples",
    )


def _numbers(part: list[int | float]) -> Any:
    """Float32 of floats, as a model takes it; float64 where float32 would make two of them one, as of times."""
    try:
        found = torch.tensor(part)
    except (RuntimeError, ValueError, OverflowError):  # beyond 64 bits with a sign
        return _unsigned(part)
    if found.is_floating_point() and len(found.unique()) < len(set(part)):
        return torch.tensor(part, dtype=torch.float64)
    return found


def _unsigned(part: list[int | float]) -> Any:
    try:
        return np.array(part, np.uint64)
    except OverflowError:
        return part


def _from_pandas(part: Any) -> Any:
    if isinstance(part, torch.Tensor | np.ndarray) or getattr(part, "ndim", None) != 1:
        return part
    if not hasattr(part, "to_numpy"):
        return part
    array = part.to_numpy()
    return array if not isinstance(array, np.ndarray) or array.flags.writeable else array.copy()  # torch warns of those


def _column(part: Any) -> Any:
    if isinstance(part, Mapping):
        return with_arrays(part)
    part = _from_pandas(part)
    listed = isinstance(part, list | tuple) or (isinstance(part, np.ndarray) and part.dtype.kind == "O")
    if not listed or not len(part) or getattr(part, "ndim", 1) != 1:
        return part
    if not all(value is None or isinstance(value, str | int | float | np.number) for value in part):
        return part
    if all(isinstance(value, int | float) for value in part):
        return _numbers([*part])
    try:
        return given_values(part, "a column")
    except UsageError:  # texts beside numbers
        return part
