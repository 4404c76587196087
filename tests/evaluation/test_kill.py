"""A real process that evaluates is killed again and again, and ends in the result of one that never was."""

import itertools
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = 24


class Children:
    """Evaluations in children of one long-lived process."""

    def __init__(self, folder):
        self.folder = folder
        self.errors = (folder / "stderr").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.evaluation.killed_runs"],
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
        status = json.loads(answer)["status"]
        assert status in {0, signal.SIGKILL}, said
        return status == signal.SIGKILL

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        self.errors.close()


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    started = Children(tmp_path_factory.mktemp("children"))
    yield started
    started.close()


@pytest.fixture(scope="module", params=["plain", "optimized"])
def artifact(request, children, tmp_path_factory):
    if request.param == "plain":
        return None
    path = str(tmp_path_factory.mktemp("artifact") / "model.evalmode")
    assert not children.ask(optimize=path)
    return path


@pytest.mark.slow
def test_killed_at_random_points_it_ends_in_the_same_result(children, artifact, tmp_path):
    out = tmp_path / "out"

    def evaluated(journal, what="", at=0, batch_size=16):
        """Whether it was killed."""
        path = None if journal is None else str(journal)
        return children.ask(artifact=artifact, journal=path, what=what, at=at, batch_size=batch_size, out=str(out))

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
    assert statements > 200 and calls > 2000

    generator = random.Random(0)
    most = {"calls": calls, "statements": statements, "seconds": seconds}
    kinds = itertools.cycle(["calls", "statements", "statements", "seconds"])
    kills, ends, number = 0, 0, 0
    while kills < KILLS:
        journal = tmp_path / f"journal {number}.sqlite"
        what = next(kinds)
        at = generator.uniform(0, most[what])
        batch_size = generator.choice([1, 7, 16, 240])
        out.unlink(missing_ok=True)
        if evaluated(journal, what, at if what == "seconds" else int(at) + 1, batch_size):
            kills += 1
        else:
            ends += 1
            number += 1
            assert out.read_bytes() == uninterrupted
    assert not evaluated(journal)
    assert out.read_bytes() == uninterrupted
    assert not evaluated(journal)  # finished: nothing is run again
    assert out.read_bytes() == uninterrupted
