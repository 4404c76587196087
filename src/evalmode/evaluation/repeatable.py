"""Whether a dataset gives a sample the same values whenever it is read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evalmode.errors import TaskError
from evalmode.evaluation.batches import loaded_apart
from evalmode.evaluation.groups import Sample
from evalmode.evaluation.identity import sample_digest
from evalmode.evaluation.loading import Loading
from evalmode.evaluation.parquet import ParquetRows

__all__ = ["require_repeatable"]

_READ = 6


def require_repeatable(loading: Loading, name: Callable[[int], str]) -> None:
    """Refuse a dataset that gives a sample other values at each read, as with training's augmentation left on.

    The first sample, the last and some between are read twice, by the processes that read samples; arrays, lists and
    Parquet files are not. A sample that cannot be read is told when its turn comes.

    Raises:
        TaskError: a sample has other values at the second read.
    """
    dataset, samples = loading.source.dataset, loading.samples or 0
    if loading.source.fetch is None or isinstance(dataset, ParquetRows | list) or not samples:
        return
    places = np.unique(np.linspace(0, samples - 1, min(_READ, samples)).round().astype(int)).tolist()
    before: dict[int, int] = {}
    for sample in loaded_apart(lambda: loading.fetched([*places, *places])):
        if not isinstance(sample, Sample):
            continue
        digest = sample_digest(sample.value)
        if before.setdefault(sample.position, digest) != digest:
            raise TaskError(
                f"{loading.source.kind} gives a sample other values at each read: sample {name(sample.position)}",
                expected="the same values for a sample, whenever it is read",
                fix="turn random augmentation and noise off in the test data, or seed it by the sample's position; "
                "exact=False evaluates the batches as they come, and says so",
            )
