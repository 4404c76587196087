"""What names a sample and what it belongs to: its id, and the columns that slices and groups are cut by."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evalmode.errors import TaskError, UnreadColumnError, UsageError
from evalmode.observe.tree import describe
from evalmode.predictor.optimized import OptimizedPredictor

__all__ = ["GROUPS", "Labels", "each_apart", "given_values", "inputs_named", "lone_input", "without_columns"]

Values = NDArray[Any]
GROUPS = "groups="
"""The name under which values given as `groups` are kept: no column of the data is called so."""
_MISSING = "missing"


class Labels:
    """Ids and columns of the samples of a batch.

    `ids` and `groups` are a column's name, or one value for each sample of the data; by itself a sample's id is its
    place in the data. `columns` are further names; with `every`, all columns of one value for each sample are taken.
    """

    def __init__(
        self,
        ids: str | Sequence[Any] | Values | None,
        groups: str | Sequence[Any] | Values | None,
        columns: Collection[str],
        given: Mapping[str, Values],
        *,
        every: bool,
    ) -> None:
        self.id_column = ids if isinstance(ids, str) else None
        self.id_values = None if ids is None or isinstance(ids, str) else _one_each(ids, "ids")
        self.group_column = groups if isinstance(groups, str) else None
        self.given = dict(given)
        if groups is not None and not isinstance(groups, str):
            self.given[GROUPS] = _one_each(groups, "groups")
        wanted = [*columns, *([groups] if isinstance(groups, str) else [])]
        self.columns = tuple(dict.fromkeys(wanted))
        self.every = every

    @property
    def named(self) -> tuple[str, ...]:
        """The columns of the data that are read here, and so are no inputs of the model."""
        return (*self.columns, *((self.id_column,) if self.id_column else ()))

    def require_length(self, samples: int | None) -> None:
        """Refuse values that were given for another number of samples than the data has; None where it cannot tell."""
        for name, values in (("ids", self.id_values), *self.given.items()):
            if values is not None and samples is not None and len(values) != samples:
                raise UsageError(
                    f"{name.removesuffix('=')} holds {len(values)} values for {samples} samples",
                    expected="one for each sample of the data, in its order",
                )
        if self.id_values is not None and len(np.unique(self.id_values)) < len(self.id_values):
            raise UsageError("two samples have the same id", expected="an id of its own for each sample")

    def ids(self, batch: Any, positions: NDArray[np.int64], size: int) -> Values:
        """The ids of the samples at `positions`."""
        if self.id_values is not None:
            return self._at(self.id_values, positions)
        if self.id_column is None:
            return positions
        return _column(batch, self.id_column, size)[: len(positions)]

    def name(self, position: int) -> str:
        """How a sample is called that could not be read."""
        return str(self.id_values[position]) if self.id_values is not None else str(position)

    def of(self, batch: Any, positions: NDArray[np.int64], size: int) -> dict[str, Values]:
        """The columns of the samples at `positions`.

        With `every`, a column may be missing from other batches: a sequence of length 1 is one value for each sample.
        """
        found = {name: self._at(values, positions) for name, values in self.given.items()}
        for name in self.columns:
            found[name] = _column(batch, name, size)[: len(positions)]
        if self.every and isinstance(batch, Mapping):
            for name in batch:
                values = None
                if name not in found:
                    with contextlib.suppress(
                        UnreadColumnError
                    ):  # a predicate that looks it up is told that it is not there
                        values = _values(batch[name], size)
                if values is not None:
                    found[str(name)] = values[: len(positions)]
        return found

    @staticmethod
    def _at(values: Values, positions: NDArray[np.int64]) -> Values:
        if len(positions) and int(positions.max()) >= len(values):
            raise UsageError(
                f"there are {len(values)} values of ids, groups or slices, and more samples", expected="one for each"
            )
        return values[positions]


def lone_input(inputs: Any, wanted: Collection[str]) -> tuple[Any, str]:
    """The input itself where it is the only one and the model has no argument of its name, and in words that it is.

    Example:
        >>> lone_input({"pixels": 1}, {"x"})
        (1, "inputs: 'pixels' alone, handed over without its name")
    """
    if not isinstance(inputs, Mapping) or len(inputs) != 1 or not wanted:
        return inputs, ""
    (name,) = inputs
    if name in wanted:
        return inputs, ""
    return inputs[name], f"inputs: {name!r} alone, handed over without its name"


def without_columns(batch: Any, named: Collection[str], wanted: Collection[str]) -> Any:
    """The batch without columns that only name or group its samples; those that the model takes stay."""
    if not named or not isinstance(batch, Mapping):
        return batch
    return {name: batch[name] for name in batch if name not in named or name in wanted}


def inputs_named(model: Any) -> frozenset[str]:
    """The names of the inputs that a module's `forward`, or a predictor's plan, takes."""
    if isinstance(model, OptimizedPredictor):
        return frozenset((*model.plan.parameters, *(tensor.name for tensor in model.signature.inputs)))
    try:
        return frozenset(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError, AttributeError):  # a scripted module, or no module
        return frozenset()


def given_values(values: Any, name: str) -> Values:
    """Numbers or texts that were given one for each sample, as an array; None among them is NaN, or 'missing'.

    Raises:
        UsageError: they are something else.

    Example:
        >>> given_values(["a", None], "site").tolist()
        ['a', 'missing']
    """
    if isinstance(values, list | tuple) and any(isinstance(value, str) for value in values):
        values = np.array(values, object)  # NaN beside texts is a missing one, not the text "nan"
    array = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)
    if array.dtype.kind == "O" and array.ndim == 1:
        absent = [value is None or (isinstance(value, float) and math.isnan(value)) for value in array.tolist()]
        there = np.array([value for value, none in zip(array.tolist(), absent, strict=True) if not none])
        if there.dtype.kind in "biuf":
            array = np.array([np.nan if none else value for value, none in zip(array, absent, strict=True)], float)
        elif there.dtype.kind == "U":
            array = np.array([_MISSING if none else value for value, none in zip(array, absent, strict=True)], str)
    return _one_each(array, name)


def each_apart(groups: Values) -> tuple[Values, int]:
    """The groups with one of its own for each sample that has none (NaN), and how many these are.

    Example:
        >>> each_apart(np.array([7.0, 7.0, np.nan, np.nan]))
        (array([0, 0, 1, 2]), 2)
    """
    if groups.dtype.kind != "f" or not (absent := np.isnan(groups)).any():
        return groups, 0
    numbers = np.empty(len(groups), np.int64)
    known, numbers[~absent] = np.unique(groups[~absent], return_inverse=True)
    alone = int(absent.sum())
    numbers[absent] = len(known) + np.arange(alone)
    return numbers, alone


def _one_each(values: Any, name: str) -> Values:
    array = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)
    if array.dtype.kind == "O" and array.ndim == 1 and len({type(value) for value in array}) == 1:
        array = np.array(array.tolist())  # a column of pandas is one of objects
    if array.ndim != 1 or array.dtype.kind not in "biufU":
        raise UsageError(
            f"{name} is {array.dtype} of shape {array.shape}",
            expected="a column's name, or one number or text for each sample",
        )
    return array


def _column(batch: Any, name: str, size: int) -> Values:
    if not isinstance(batch, Mapping) or name not in batch:
        there = ", ".join(map(repr, batch)) if isinstance(batch, Mapping) else f"{describe(batch)}, without names"
        raise TaskError(
            f"the data has no column {name!r}",
            expected=f"one of its columns: {there}",
            fix="samples that are mappings, or the values themselves as an array",
        )
    values = _values(batch[name], size)
    if values is None:
        raise TaskError(
            f"the column {name!r} is {describe(batch[name])}", expected="one number or text for each sample"
        )
    return values


def _values(part: Any, size: int) -> Values | None:
    """One number or text for each sample as an array; None for anything else."""
    if isinstance(part, torch.Tensor):
        part = part.detach().cpu()
        part = part[:, 0] if part.ndim == 2 and part.shape[1] == 1 else part
        if part.shape != (size,):
            return None
        held: Values = part.float().numpy() if part.dtype is torch.bfloat16 else part.numpy()
        return held
    if isinstance(part, np.ndarray):
        return part if part.shape == (size,) and part.dtype.kind in "biufU" else None
    if isinstance(part, list | tuple) and len(part) == size and all(isinstance(v, str | int | float) for v in part):
        array = np.asarray(part)
        return array if array.dtype.kind in "biufU" else None
    return None
