"""Going on with a journal: what is read or run again of it has to give what was recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.errors import JournalError
from evalmode.evaluation.groups import Group, Lost, Sample
from evalmode.evaluation.identity import sample_bytes, sample_digest
from evalmode.evaluation.keeping import Keeping
from evalmode.evaluation.loading import Loading
from evalmode.evaluation.reading import Reading

__all__ = ["SameData", "require_same"]

Values = NDArray[Any]
_WHOLE = 256 << 20  # bytes of data that are read again before going on,
_FEWEST = 1024  # and samples where each is large


class SameData:
    """Compares samples that are read again with the digests that the journal holds of them.

    Raises:
        JournalError: a sample that it is called with is not what was recorded.
    """

    def __init__(self, keeping: Keeping, name: Callable[[int], str]) -> None:
        self.journal, self.name, self.digests = keeping.journal, name, keeping.digests()

    def __call__(self, sample: Sample | Lost) -> None:
        before = self.digests.get(sample.position)
        if self.journal is None or before is None:
            return
        if isinstance(sample, Lost) or sample_digest(sample.value) != before:
            raise JournalError(
                f"the journal {str(self.journal.path)!r} is of other data: sample {self.name(sample.position)} "
                + (sample.reason if isinstance(sample, Lost) else "has another input or target now"),
                expected="every sample as it was when it was recorded",
                fix="evaluate that data, name another journal, or delete this one to start again",
            )

    def over(self, loading: Loading) -> None:
        """Read samples of a dataset again: all, or where they are more than 256 MB as many of them, evenly spread, and
        at least 1,024. A stream is compared as it is read."""
        places = np.array([*self.digests])
        if loading.source.fetch is None or not places.size:
            loading.again = self
            return
        size = sample_bytes(loading.source.sample(int(places[0])))
        count = min(max(_WHOLE // max(size, 1), _FEWEST), len(places))
        spread = np.linspace(0, len(places) - 1, count).round().astype(int)
        for sample in loading.fetched(places[spread].tolist()):
            self(sample)


def require_same(group: Group, reading: Reading, keeping: Keeping) -> None:
    """Compare a group that was run again, bit for bit, with what the journal holds of its samples.

    Names and digests tell most other models and settings from those of the journal; this tells the rest, as far as
    they show in the first group.

    Raises:
        JournalError: a sample has another target or another value of a metric now.
    """
    if keeping.journal is None:
        return
    positions, samples = keeping.recorded(np.asarray(group.positions, np.int64))
    rows = [group.positions.index(position) for position in positions.tolist()]
    found = {"target": (samples.target, reading.target), "prediction": (samples.prediction, reading.prediction)}
    found |= {name: (values, reading.rows.get(name)) for name, values in samples.rows.items()}
    for name, (before, now) in found.items():
        if before is None or now is None:
            continue
        same = _rows_alike(before, now[rows])
        if not same.all():
            place = int(np.flatnonzero(~same)[0])
            raise JournalError(
                f"the journal {str(keeping.journal.path)!r} is of another evaluation: sample {samples.ids[place]} has "
                f"{name} {before[place]} there, and {now[rows[place]]} now",
                expected="the same model, data and settings",
                fix="evaluate with those, or name another journal",
            )


def _rows_alike(before: Values, now: Values) -> NDArray[np.bool_]:
    """For each row whether its values have the same bits, whatever width a number was kept in."""
    if before.shape != now.shape:
        return np.zeros(len(before), bool)
    same = before == now
    if before.dtype.kind == now.dtype.kind == "f":
        same = same | (np.isnan(before) & np.isnan(now))
    every: NDArray[np.bool_] = same.reshape(len(before), -1).all(1)
    return every
