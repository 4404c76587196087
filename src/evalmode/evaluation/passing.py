"""One pass over the data: group after group is run and read, and what cannot be is told or left out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evalmode.errors import BatchError, EvalmodeError, ModelRunError, RowCountError, TaskError, UnreadColumnError
from evalmode.evaluation.companions import is_late
from evalmode.evaluation.devices import out_of_memory, to_host
from evalmode.evaluation.groups import Group, Lost
from evalmode.evaluation.keeping import Keeping
from evalmode.evaluation.labels import Labels
from evalmode.evaluation.parting import Parting, rows_of_group
from evalmode.evaluation.progress import Tracker
from evalmode.evaluation.reading import Reader, Reading, row_alone, rows_again
from evalmode.evaluation.running import Runner
from evalmode.evaluation.split import Split
from evalmode.evaluation.told import in_short, of_group, of_sample, unread
from evalmode.observe.columns import Columns

__all__ = ["Pass"]


@dataclass(frozen=True, slots=True)
class _Ran:
    """A group that was started, with what is known of its samples; on a GPU its outputs may be on their way."""

    group: Group
    outputs: Any
    target: Any
    inputs: Any
    ids: NDArray[Any]
    columns: dict[str, NDArray[Any]]
    arrived: Callable[[], object] | None


class Pass:
    """Runs groups through `runner`, reads them with `reader`, and keeps them in `keeping`.

    With `on_bad_sample="skip"` a sample that cannot be read, run or measured is counted and left out; otherwise it is
    an error that names it. On a GPU a group is read while the next one runs: nothing waits for the device as a whole.
    """

    def __init__(
        self,
        runner: Runner,
        reader: Reader,
        keeping: Keeping,
        labels: Labels,
        tracker: Tracker,
        *,
        split: Split | None,
        wanted: frozenset[str],
        on_bad_sample: Literal["error", "skip"],
    ) -> None:
        self.runner, self.reader, self.keeping, self.labels, self.tracker = runner, reader, keeping, labels, tracker
        self.parting = Parting(labels, split, wanted, reader.say, named=runner.named)
        self.skip = on_bad_sample == "skip"
        self.parts = False  # whether a group could be taken apart
        self.odd: tuple[Group, TaskError] | None = None
        self.notes: list[str] = []
        self.reason: EvalmodeError | None = None

    def over(self, items: Iterable[Group | Lost]) -> None:
        """Every group, in the order given."""
        waiting: _Ran | None = None
        for item in items:
            if isinstance(item, Lost):
                self._lost(item)
                continue
            started = self._start(item)
            if waiting is not None:
                self._finish(waiting)
                waiting = None
            if started is not None and started.arrived is not None:
                waiting = started
            elif started is not None:
                self._finish(started)
            if self.odd is not None and self.parts:
                if waiting is not None:
                    self._finish(waiting)
                    waiting = None
                self._take_up_odd()
        if waiting is not None:
            self._finish(waiting)
        if self.odd is not None:
            self._take_up_odd()

    def look(self, group: Group) -> Reading | None:
        """Let the reader decide by this group what was not stated; nothing of it is kept.

        Bad samples of it are left aside, as they were when the group was run; then there is no reading of it.
        """
        try:
            ran = self._start(group, keep=False)
        except EvalmodeError as error:
            if not self.skip or out_of_memory(error):
                raise
            self._look_one_by_one(group)
            return None
        if ran is None:
            return None
        _arrive(ran)
        if len(ran.group) < len(group):  # samples were lost
            self._decide(ran)
            return None
        try:
            return self.reader.read(ran.outputs, ran.target, len(group), group.size)
        except EvalmodeError as error:
            if not self.skip or isinstance(error, RowCountError):
                raise
            self._decide(ran)
            return None

    def _look_one_by_one(self, group: Group) -> None:
        """The model fails on the group: the first sample that it takes decides, as in `_one_by_one`."""
        inputs, target = self.parting.pair(group.batch)
        for row in range(len(group)):
            with contextlib.suppress(EvalmodeError):
                outputs, arrived = to_host(self.runner.outputs(row_alone(inputs, row, group.size)))
                if arrived is not None:
                    arrived()
                self.reader.read(outputs, row_alone(target, row, group.size), 1, group.size)
                return

    def _decide(self, ran: _Ran) -> None:
        """Let the readable samples of a group decide together: one alone may look like data of another kind."""
        size, outputs, target = ran.group.size, ran.outputs, ran.target
        good = [
            row
            for row in range(len(ran.group))
            if self.reader.readable(row_alone(outputs, row, size), row_alone(target, row, size), size)
        ]
        if good:
            self.reader.decide(rows_again(outputs, good, size), rows_again(target, good, size), len(good), size)

    def _start(self, group: Group, *, keep: bool = True) -> _Ran | None:
        """The group, started; None where nothing is left of it to read.

        Samples of which a column is looked up that cannot be read are lost, and the group goes on without them.
        """
        try:
            return self._started(group, keep=keep)
        except EvalmodeError as error:
            column = unread(error)
            reasons = {} if column is None else column.reasons
            rows = [row for row, place in enumerate(group.positions) if place not in reasons]
            if len(rows) == len(group) or not isinstance(group.batch, Columns):
                raise
            for place in group.positions:
                if place in reasons and (keep or not self.skip):
                    self._lost(Lost(place, reasons[place], column))
            if not rows:
                return None
        return self._start(rows_of_group(group, rows), keep=keep)

    def _started(self, group: Group, *, keep: bool) -> _Ran | None:
        try:
            parted = self.parting(group)
        except TaskError as error:
            if unread(error) is not None:
                raise
            return self._apart(group, error, keep=keep)
        self.parts = True
        inputs, target, ids, columns = parted.inputs, parted.target, parted.ids, parted.columns
        self.runner.largest = max(self.runner.largest, group.size)
        try:
            outputs = self._run(inputs, ids, late=keep and is_late(group.positions))
        except EvalmodeError as error:
            told = isinstance(error, BatchError | ModelRunError)
            if not keep or not told or out_of_memory(error) or unread(error) is not None:
                raise
            self._one_by_one(group, inputs, target, ids, columns, error)
            return None
        outputs, arrived = to_host(outputs)
        return _Ran(group, outputs, target, inputs, ids, columns, arrived)

    def _apart(self, group: Group, error: TaskError, *, keep: bool) -> _Ran | None:
        """A group that cannot be taken apart, without the samples that cannot be.

        Where no group could be before, it waits for one that can: if there is none, the fault is not the samples'.
        """
        bad = self.parting.failing(group, quick=keep and not self.parts)
        if not bad:
            raise error
        if len(bad) == len(group) and not self.parts:
            if self.odd is not None:
                self._take_up_odd()
                return self._apart(group, error, keep=keep)
            self.odd = (group, error) if keep else None
            return None
        return self._without(group, bad, keep=keep)

    def _take_up_odd(self) -> None:
        """The group that waited, row by row: by now there is one that could be taken apart, or there is no other."""
        if self.odd is None:
            return
        (group, error), self.odd = self.odd, None
        bad = self.parting.failing(group, quick=False)
        if len(bad) == len(group) and not self.parts:
            raise error
        started = self._without(group, bad, keep=True)
        if started is not None:
            self._finish(started)

    def _without(self, group: Group, bad: Mapping[int, TaskError], *, keep: bool) -> _Ran | None:
        """A group that goes on without its bad rows."""
        self._lose(group, bad, keep=keep)
        rows = [row for row in range(len(group)) if row not in bad]
        return self._started(rows_of_group(group, rows), keep=keep) if rows else None

    def _lose(self, group: Group, bad: Mapping[int, TaskError], *, keep: bool) -> None:
        names = self.parting.names(group)
        for row, own in bad.items():
            named = of_sample(names[row], own)
            if not self.skip:
                raise named from own
            if keep:
                self._leave_out(group.positions[row], names[row], named.got, named)

    def _run(self, inputs: Any, ids: NDArray[Any], *, late: bool) -> Any:
        while True:
            try:
                return self.runner.outputs(inputs, late=late)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if not self.runner.shrink(inputs):
                    raise self.runner.too_large(ids[0]) from error

    def _finish(self, ran: _Ran) -> None:
        _arrive(ran)
        try:
            reading = self.reader.read(ran.outputs, ran.target, len(ran.group), ran.group.size)
        except RowCountError:
            raise  # no sample of the group is known by its row
        except EvalmodeError as error:
            if self.skip and self.reader.chosen is None:
                self._decide(ran)
            self._read_one_by_one(ran, error)
            return
        self._keep(ran.group, slice(len(ran.group)), ran.ids, reading, ran.columns)

    def _keep(
        self, group: Group, rows: slice, ids: NDArray[Any], reading: Reading, columns: dict[str, NDArray[Any]]
    ) -> None:
        positions = np.asarray(group.positions[rows], np.int64)
        digests = np.array(group.digests[rows], np.uint64) if group.digests else None
        self.keeping.add(positions, ids[rows], reading, {name: own[rows] for name, own in columns.items()}, digests)
        self.tracker.add(len(positions), reading, rooted=self.reader.first_is_rooted)

    def _read_one_by_one(self, ran: _Ran, error: EvalmodeError) -> None:
        """Find the samples for which reading fails, each beside copies of itself; the others count."""
        size, bad, good = ran.group.size, [], []
        for row in range(len(ran.group)):
            try:
                outputs, target = (row_alone(tree, row, size) for tree in (ran.outputs, ran.target))
                good.append((row, self.reader.read(outputs, target, 1, size)))
            except EvalmodeError as own:
                bad.append((row, own))
                if not self.skip and good:
                    break
        if not bad:
            raise error
        if not self.skip:
            alike = not good and len(ran.group) > 1 and not self.keeping.samples
            raise (
                of_group(ran.ids, [row for row, _ in bad], error) if alike else of_sample(ran.ids[bad[0][0]], bad[0][1])
            )
        self._sort_out(ran.group, ran.ids, ran.columns, bad, good)

    def _one_by_one(
        self,
        group: Group,
        inputs: Any,
        target: Any,
        ids: NDArray[Any],
        columns: dict[str, NDArray[Any]],
        error: EvalmodeError,
    ) -> None:
        """Find the samples on which the model fails, each beside copies of itself; the others count."""
        bad: list[tuple[int, EvalmodeError]] = []
        good: list[tuple[int, Reading]] = []
        for row in range(len(group)):
            try:
                outputs, arrived = to_host(self.runner.outputs(row_alone(inputs, row, group.size)))
                if arrived is not None:
                    arrived()
                good.append((row, self.reader.read(outputs, row_alone(target, row, group.size), 1, group.size)))
            except RowCountError:
                raise
            except EvalmodeError as own:
                bad.append((row, own))
                if not self.skip:
                    raise of_sample(ids[row], own) from error
        if not bad:
            raise error
        self._sort_out(group, ids, columns, bad, good)

    def _sort_out(
        self,
        group: Group,
        ids: NDArray[Any],
        columns: dict[str, NDArray[Any]],
        bad: list[tuple[int, EvalmodeError]],
        good: list[tuple[int, Reading]],
    ) -> None:
        for row, own in bad:
            named = of_sample(ids[row], own)
            self._leave_out(group.positions[row], str(ids[row]), named.got, named)
        for row, reading in good:
            self._keep(group, slice(row, row + 1), ids, reading, columns)

    def _lost(self, lost: Lost) -> None:
        if lost.position < 0:
            self.notes.append(lost.reason)
            return
        name = self.labels.name(lost.position)
        own = lost.cause.fix if isinstance(lost.cause, UnreadColumnError) else "mend it"
        error = BatchError(
            f"sample {name}: {lost.reason}",
            expected="a sample that can be read",
            fix=f"{own}, or on_bad_sample='skip' leaves such samples out, counts and lists them",
        )
        if not self.skip:
            raise error from lost.cause
        self._leave_out(lost.position, name, lost.reason, error)

    def _leave_out(self, position: int, name: str, reason: str, error: EvalmodeError) -> None:
        self.reason = self.reason or error
        self.keeping.lose(position, name, in_short(reason.removeprefix(f"sample {name}: ")))
        self.tracker.add(1)


def _arrive(ran: _Ran) -> None:
    if ran.arrived is not None:
        ran.arrived()
