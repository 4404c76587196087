"""A mapping some entries of which cannot be read: they are there, and raise when they are looked up, not before."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from typing import Any

from torch.utils.data import default_collate

from evalmode.errors import UnreadColumnError

__all__ = ["Columns", "together"]


class Columns(dict[str, Any]):
    """The columns of one sample, or of a batch of `samples`. `unread` says, by column and place in the data, why not.

    Keys, length, membership and iteration are those of a dict with all columns. In place of a value that cannot be read
    another one of its kind is held, which only `stored` shows: shapes and batches are made as if it were there.

    Raises:
        UnreadColumnError: a column is looked up that cannot be read.

    Example:
        >>> columns = Columns({"x": 1, "y": 0}, {"y": {7: "a value is missing"}})
        >>> len(columns), "y" in columns, columns["x"]
        (2, True, 1)
        >>> columns["y"]
        Traceback (most recent call last):
        evalmode.errors.UnreadColumnError: sample 7: the column 'y' cannot be read: a value is missing
          expected: columns that are looked up to have a number, a text, or a list of numbers of one shape
          fix: a split(batch) that looks other columns up, or mend the file
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        unread: Mapping[str, Mapping[int, str]],
        samples: Sequence[Columns] = (),
        place: int = -1,
    ) -> None:
        super().__init__(values)
        self.unread = {name: dict(reasons) for name, reasons in unread.items() if reasons}
        self.samples, self.place = samples, place

    def stored(self) -> Iterable[tuple[str, Any]]:
        """Every entry as it is held."""
        return super().items()

    def holding(self, values: Iterable[Any]) -> Columns:
        """The same columns with other values."""
        return Columns(dict(zip(super().keys(), values, strict=True)), self.unread, self.samples, self.place)

    def again(self, rows: Sequence[int]) -> Columns:
        """The batch made of the samples at `rows`; a row may be repeated."""
        return together([self.samples[row] for row in rows])

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if name in self.unread:
            raise _unread(name, self.unread[name])
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        self.unread.pop(name, None)
        super().__setitem__(name, value)

    def __iter__(self) -> Iterator[str]:  # defined, so that dict(columns) and {**columns} look every column up
        return super().__iter__()

    def __or__(self, other: Any) -> Any:
        return {**self, **other}

    def __ror__(self, other: Any) -> Any:
        return {**other, **self}

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def __copy__(self) -> Columns:
        return self.copy()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self))})"

    def get(self, name: str, default: Any = None) -> Any:
        if name not in self:
            return default
        return self[name]

    def setdefault(self, name: str, default: Any = None) -> Any:
        if name not in self:
            self[name] = default
        return self[name]

    def pop(self, name: str, *default: Any) -> Any:
        if name in self:
            self[name]
        return super().pop(name, *default)

    def popitem(self) -> tuple[str, Any]:
        name = next(reversed(self))
        return name, self.pop(name)

    def items(self) -> Any:
        return ItemsView(self)

    def values(self) -> Any:
        return ValuesView(self)

    def copy(self) -> Columns:
        return self.holding(super().values())

    def update(self, *others: Any, **named: Any) -> None:
        for name, value in dict(*others, **named).items():
            self[name] = value


def _unread(column: str, reasons: Mapping[int, str]) -> UnreadColumnError:
    told = {place: f"the column {column!r} cannot be read: {reason}" for place, reason in reasons.items()}
    first = min(told)
    return UnreadColumnError(
        f"sample {first}: {told[first]}",
        expected="columns that are looked up to have a number, a text, or a list of numbers of one shape",
        fix="a split(batch) that looks other columns up, or mend the file",
        reasons=told,
    )


def together(samples: list[Columns]) -> Columns:
    """Samples as one batch; a column whose values make no batch cannot be read in any of them."""
    unread: dict[str, dict[int, str]] = {}
    for sample in samples:
        for name, reasons in sample.unread.items():
            unread.setdefault(name, {}).update(reasons)
    held = [dict(sample.stored()) for sample in samples]
    values = {}
    for name in held[0]:
        parts = [one[name] for one in held]
        try:
            values[name] = default_collate(parts)
        except (TypeError, ValueError, RuntimeError) as error:
            values[name] = parts
            reason = f"its values make no batch: {type(error).__name__}: {error}"
            unread[name] = {sample.place: reason for sample in samples}
    return Columns(values, unread, samples)
