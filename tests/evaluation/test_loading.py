"""Reading samples ahead and in other processes: streams that block or fail, and processes that die."""

import errno
import itertools
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from evalmode.errors import BatchError, TaskError
from evalmode.evaluation import loader_checks
from evalmode.evaluation.evaluator import evaluate
from evalmode.evaluation.loading import ahead


@pytest.mark.parametrize("leave", ["close", "raise"])
def test_leaving_does_not_wait_for_a_stream_that_blocks(leave):
    released = threading.Event()

    def blocking():
        yield 1
        released.wait(60)

    started = time.monotonic()
    try:
        items = ahead(blocking(), 2)
        assert next(items) == 1
        if leave == "close":
            items.close()
        else:
            with pytest.raises(KeyboardInterrupt):
                items.throw(KeyboardInterrupt)
        assert time.monotonic() - started < 30
    finally:
        released.set()


class Patchy(IterableDataset):
    """3000 samples, 1100 of which in a row cannot be read; with `dead`, none after those."""

    def __init__(self, *, dead=False):
        self.dead, self.place = dead, 0

    def __iter__(self):
        self.place = 0
        return self

    def __next__(self):
        self.place += 1
        if 500 < self.place <= 1600 or (self.dead and self.place > 500):
            raise OSError("torn")
        if self.place > 3000:
            raise StopIteration
        return torch.ones(4), 1


class Counted(Patchy):
    def __len__(self):
        return 3000


@pytest.mark.parametrize(("data", "limit"), [(Patchy(), math.inf), (Patchy(), 3000), (Counted(), None)])
def test_many_bad_samples_in_a_row_end_no_stream_that_goes_on(data, limit):
    record = evaluate(nn.Linear(4, 3), data, limit=limit, on_bad_sample="skip", progress=False).record
    assert (record.samples, record.skipped) == (1900, 1100)


@pytest.mark.parametrize(("data", "limit"), [(Patchy(dead=True), 3000), (Counted(dead=True), None)])
def test_a_stream_that_only_raises_ends_at_its_bound(data, limit):
    record = evaluate(nn.Linear(4, 3), data, limit=limit, on_bad_sample="skip", progress=False).record
    assert (record.samples, record.skipped) == (500, 2500)


class Dying(Dataset):
    """The process that reads sample `place` ends at once."""

    def __init__(self, place):
        self.place = place

    def __len__(self):
        return 400

    def __getitem__(self, place):
        if place == self.place:
            os._exit(1)
        return torch.ones(4), place % 3


def told_of_deaths():
    """Run as a process of its own, which prints what it was told: torch's signal handler may raise anywhere in it."""
    for exact, workers, place in itertools.product([True, False], [1, 2], [0, 70, 200, 399]):
        data = Dying(place) if exact else DataLoader(Dying(place), batch_size=16, num_workers=workers)
        options = {"workers": workers} if exact else {"exact": False}
        try:
            evaluate(nn.Linear(4, 3), data, progress=False, on_bad_sample="skip", **options)
        except TaskError as error:
            print("a process that reads samples died" in error.got and "workers=0" in error.fix)


def test_a_process_that_dies_is_told_wherever_it_shows():
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_loading as t; t.told_of_deaths()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.returncode) == (["True"] * 16, 0), done.stderr[-2000:]


@pytest.mark.parametrize("error", [EOFError(), BrokenPipeError(), OSError(errno.EBADF, os.strerror(errno.EBADF))])
def test_what_breaks_off_is_the_death_of_its_sender(error, monkeypatch):
    monkeypatch.setattr(loader_checks, "_SIGNAL_SECONDS", 0)
    with pytest.raises(TaskError, match="a process that reads samples died"), loader_checks.broken_pipes_told():
        raise error


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), OSError("Caught OSError in DataLoader worker process 0.")]
)
def test_other_errors_of_the_system_are_no_death(error):
    with pytest.raises(OSError) as caught, loader_checks.broken_pipes_told():
        raise error
    assert caught.value is error


class Failing(Dying):
    def __getitem__(self, place):
        if place == self.place:
            raise RuntimeError("this sample is torn")
        return torch.ones(4), place % 3


def test_what_a_dataset_raises_in_a_process_is_no_death():
    loader = DataLoader(Failing(70), batch_size=16, num_workers=1)
    with pytest.raises(
        BatchError, match=r"batch 4 of the data .*RuntimeError: Caught RuntimeError in DataLoader worker"
    ):
        evaluate(nn.Linear(4, 3), loader, exact=False, progress=False)


def test_a_death_that_shows_in_a_metric_is_told():
    def metric(outputs, target):  # torch's handler of the signal raises wherever the main thread is
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    with pytest.raises(TaskError, match=r"a process that reads samples died: DataLoader worker \(pid 7\)"):
        evaluate(nn.Linear(4, 3), Failing(-1), metrics=metric, progress=False)
