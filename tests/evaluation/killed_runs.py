"""A process that evaluates in children of its own and kills them where it is told; it imports and builds once for all.

It reads a request per line, as JSON, and answers in a line. `test_kill.py` runs it, with "plain" or "optimized".
"""

import contextlib
import json
import os
import signal
import sqlite3
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from torch import nn

import evalmode
from evalmode.evaluation import groups, journal_file, keeping, running
from evalmode.evaluation.chunk import Chunk
from evalmode.evaluation.chunk_bytes import packed
from evalmode.evaluation.evaluator import evaluate

SAMPLES = 2000


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4)).eval()


def test_data():
    """A dataset of which two samples cannot be read; `on_bad_sample="skip"` leaves them out."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 6, generator=generator)
    targets = torch.randint(4, (SAMPLES,), generator=generator)

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return SAMPLES

        def __getitem__(self, index):
            if index in {17, 200}:
                raise OSError("cannot be decoded")
            return inputs[index], targets[index]

    return Samples()


def outcome(result):
    """Everything of an evaluation but the time it took, as bytes."""
    samples = result.samples
    chunk = Chunk(
        np.arange(len(samples)),
        samples.ids,
        samples.rows,
        samples.target,
        samples.prediction,
        samples.scores,
        samples.columns,
        confidence=None if samples.confidence is None else np.stack([samples.confidence] * 2, 1),
    )
    record = json.loads(result.to_json())
    record["evaluation"].pop("seconds")
    return json.dumps(record, sort_keys=True).encode() + b"\n" + packed(chunk)


class Counter:
    """Counts what happens and kills its own process at a given count; 0 never does."""

    def __init__(self, at):
        self.at, self.count = at, 0

    def __call__(self, *_):
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0


def counted(what, at):
    """A counter of Python's calls and returns, or of SQLite's instructions and statements."""
    counter = Counter(at)
    if what == "calls":
        sys.setprofile(counter)
    elif what == "statements":
        connect = sqlite3.connect

        def watched(*arguments, **options):
            database = connect(*arguments, **options)
            database.set_progress_handler(counter, 1)
            database.set_trace_callback(counter)
            return database

        journal_file.sqlite3.connect = watched
    return counter


def run(model, request):
    """One evaluation in this process; its outcome is written to a file."""
    counter = counted(request["what"], request["at"])
    result = evaluated(model, request["journal"], request["batch_size"])
    sys.setprofile(None)
    Path(request["out"]).write_bytes(outcome(result))
    Path(request["out"] + ".count").write_text(str(counter.count))


def evaluated(model, journal=None, batch_size=16):
    return evaluate(
        model,
        test_data(),
        journal=journal,
        batch_size=batch_size,
        metrics=["accuracy", "log loss"],
        on_bad_sample="skip",
        keep_predictions=True,
        progress=False,
    )


def child(model, request):
    os.dup2(2, 1)
    try:
        run(model, request)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main():
    torch.set_num_threads(1)  # no pool of threads, which no child would have
    keeping._CHUNK_SAMPLES = groups.LARGEST = running.LARGEST = 16  # many chunks, to be killed between
    model = network()
    if sys.argv[1] == "optimized":
        batch = torch.stack([test_data()[index][0] for index in range(8)])
        model = evalmode.optimize(model, batch, backends=["eager"], budget_s=1)
    evaluated(model)  # imports what is imported on first use
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(model, request)
        if request["what"] == "seconds":
            time.sleep(request["at"])
            os.kill(pid, signal.SIGKILL)  # it is this process's own, and not waited for yet: the id is no other's
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": status, "plan": str(getattr(model, "plan", ""))}), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
