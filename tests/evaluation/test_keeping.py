"""Ctrl-C at any line of keeping and recording loses nothing and doubles nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tests.evaluation.made_chunks import chunk_bits

from evalmode.certificate import BadSampleRecord
from evalmode.evaluation import journal as journal_module
from evalmode.evaluation import keeping as keeping_module
from evalmode.evaluation import kept as kept_module
from evalmode.evaluation.journal import Journal
from evalmode.evaluation.keeping import Keeping
from evalmode.evaluation.reading import Reading

WATCHED = {module.__file__ for module in (journal_module, keeping_module, kept_module)}


def reading_of(positions):
    return Reading({"loss": np.sin(positions)}, positions % 3, positions % 2, None, None)


class Interrupt:
    """Raises KeyboardInterrupt at the line of `WATCHED` that is run as the `at`-th."""

    def __init__(self, at):
        self.at, self.count = at, 0

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            self.count += 1
            if self.count == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self

    def __enter__(self):
        sys.settrace(self)
        return self

    def __exit__(self, *_):
        sys.settrace(None)


def kept(journal, at=0):
    """Twenty samples and a bad one, in four groups; what is interrupted is flushed, and gone on with."""
    keeping = Keeping(journal)
    interrupt = Interrupt(at)
    groups = [np.arange(start, start + 5, dtype=np.int64) for start in range(0, 20, 5)]
    stopped = None
    for number, group in enumerate(groups):
        try:
            with interrupt:
                keeping.add(group, group, reading_of(group), {})
                if number == 1:
                    keeping.lose(77, "77", "torn")
                keeping.flush()
        except KeyboardInterrupt:
            stopped = number
            keeping.flush()
            break
    return keeping, stopped, interrupt.count


@pytest.mark.parametrize("with_journal", [True, False])
def test_an_interruption_at_any_line_loses_only_what_was_not_added(tmp_path, with_journal):
    lines = kept(Journal.open(tmp_path / "count.sqlite", {}) if with_journal else None)[2]
    assert lines > 60
    for at in range(1, lines + 1, 1 if not with_journal else 3):
        path = tmp_path / f"{at}.sqlite"
        with Journal.open(path, {}) if with_journal else _nothing() as journal:
            keeping, stopped, _ = kept(journal, at)
            samples = keeping.result()
        assert stopped is not None
        positions = samples.ids.tolist()
        assert positions == list(range(len(positions))), at
        assert len(positions) in {5 * stopped, 5 * (stopped + 1)}, at
        assert not positions or samples.rows["loss"].tolist() == np.sin(np.arange(len(positions))).tolist()
        if not with_journal:
            continue
        with Journal.open(path, {}) as journal:
            again = Keeping(journal)
            assert chunk_bits(again.result()) == chunk_bits(samples), at
            assert again.bad == keeping.bad


def test_a_bad_sample_is_known_again_and_not_tried_again(tmp_path: Path):
    with Journal.open(tmp_path / "journal.sqlite", {}) as journal:
        kept(journal)
    with Journal.open(tmp_path / "journal.sqlite", {}) as journal:
        keeping = Keeping(journal)
        assert keeping.bad == {77: BadSampleRecord(id="77", reason="torn")}
        assert sorted(keeping.done().tolist()) == [*range(20), 77]
        assert (keeping.samples, len(keeping.listed())) == (20, 1)


class _nothing:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return None
