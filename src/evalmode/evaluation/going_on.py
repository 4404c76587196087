"""Going on with a journal: what is run again of it has to give what was recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.errors import JournalError
from evalmode.evaluation.groups import Group
from evalmode.evaluation.keeping import Keeping
from evalmode.evaluation.reading import Reading

__all__ = ["require_same"]

Values = NDArray[Any]


def require_same(group: Group, reading: Reading, keeping: Keeping) -> None:
    """Compare a group that was run again, bit for bit, with what the journal holds of its samples.

    Names and digests tell most other models, data and settings from those of the journal; this tells the rest, as far
    as they show in the first group.

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
