"""A real process that evaluates is killed again and again, and ends in the result of one that never was."""

import itertools
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

KILLS = 20


class Children:
    """Evaluations in children of one long-lived process."""

    def __init__(self, kind, folder):
        self.folder = folder
        self.plan = None
        self.errors = (folder / "stderr").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.evaluation.killed_runs", kind],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def ask(self, **request):
        """Whether the child was killed; any other end than that, or a good one, is a failure."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        said = (self.folder / "stderr").read_text(errors="replace")
        assert answer, said
        status, self.plan = json.loads(answer).values()
        assert status in {0, signal.SIGKILL}, said
        return status == signal.SIGKILL

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        self.errors.close()


@pytest.fixture(params=["plain", "optimized"])
def children(request, tmp_path):
    started = Children(request.param, tmp_path)
    yield started
    started.close()
    assert ("eager" in started.plan) == (request.param == "optimized")


@pytest.mark.slow
def test_killed_at_random_points_it_ends_in_the_same_result(children, tmp_path):
    out = tmp_path / "out"

    def evaluated(journal, what="", at=0, batch_size=16):
        """Whether it was killed."""
        path = None if journal is None else str(journal)
        return children.ask(journal=path, what=what, at=at, batch_size=batch_size, out=str(out))

    def count():
        return int(Path(f"{out}.count").read_text())

    # What an evaluation gives that was never interrupted, and how many points there are to kill it at.
    assert not evaluated(None)
    uninterrupted = out.read_bytes()
    assert not evaluated(tmp_path / "calls.sqlite", "calls")
    assert out.read_bytes() == uninterrupted
    calls = count()
    started = time.monotonic()
    assert not evaluated(tmp_path / "statements.sqlite", "statements")
    seconds = time.monotonic() - started
    assert out.read_bytes() == uninterrupted
    statements = count()
    assert statements > 200 and calls > 1000

    generator = random.Random(0)
    most = {"calls": calls, "statements": statements, "seconds": seconds}
    kinds = itertools.cycle(["calls", "statements", "statements", "seconds"])
    kills, number, before, gone_on_from = 0, 0, -1, set()
    while kills < KILLS or (len(gone_on_from) <= 4 and kills < 3 * KILLS):
        journal = tmp_path / f"journal {number}.sqlite"
        what = next(kinds)
        at = generator.uniform(0, most[what])
        batch_size = generator.choice([5, 7, 64, 240])
        out.unlink(missing_ok=True)
        killed = evaluated(journal, what, at if what == "seconds" else int(at) + 1, batch_size)
        if killed:
            kills += 1
            chunks = chunks_in(journal, tmp_path / "copy.sqlite")
            stands, before = chunks == before, chunks
            gone_on_from.add(chunks)
        if killed and stands and generator.random() < 0.5:  # so far on, it is killed before it does any more
            killed = evaluated(journal)
        if not killed:
            number, before = number + 1, -1
            assert out.read_bytes() == uninterrupted
    assert not evaluated(journal)
    assert out.read_bytes() == uninterrupted
    assert not evaluated(journal)  # finished: nothing is run again
    assert out.read_bytes() == uninterrupted
    assert len(gone_on_from) > 4  # it was killed before its first chunk, after its last, and between


def chunks_in(journal, copy):
    """How many chunks a killed evaluation left; a copy is looked into, as a look would tidy the journal up."""
    for suffix in ("", "-wal"):
        Path(f"{copy}{suffix}").unlink(missing_ok=True)
        if Path(f"{journal}{suffix}").exists():
            shutil.copy(f"{journal}{suffix}", f"{copy}{suffix}")
    if not copy.exists():
        return None
    with closing(sqlite3.connect(copy)) as database:
        return database.execute("SELECT count(*) FROM chunks").fetchone()[0]
