"""A process that evaluates in children of its own and kills them where it is told; it imports torch once for all.

It reads a request per line, as JSON, and answers in a line. Run by `test_kill.py`; no thread is ever started in this
process, so that a child is whole after the fork.
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
from evalmode.evaluation import journal_file, keeping
from evalmode.evaluation.chunk import Chunk
from evalmode.evaluation.chunk_bytes import packed
from evalmode.evaluation.evaluator import evaluate

SAMPLES = 240


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


def run(request):
    """One evaluation in this process; its outcome is written to a file."""
    torch.set_num_threads(1)
    keeping._CHUNK_SAMPLES = 16
    model = evalmode.load(request["artifact"]) if request["artifact"] else network()
    counter = counted(request["what"], request["at"])
    result = evaluate(
        model,
        test_data(),
        journal=request["journal"],
        batch_size=request["batch_size"],
        metrics=["accuracy", "log loss"],
        slices="class",
        on_bad_sample="skip",
        keep_predictions=True,
        progress=False,
    )
    sys.setprofile(None)
    Path(request["out"]).write_bytes(outcome(result))
    Path(request["out"] + ".count").write_text(str(counter.count))


def optimize(request):
    """An artifact of the model, made by the search among eager plans alone."""
    batch = torch.stack([test_data()[index][0] for index in range(8)])
    predictor = evalmode.optimize(network(), batch, backends=["eager"], budget_s=10)
    predictor.save(request["optimize"])


def child(request):
    os.dup2(2, 1)
    try:
        (optimize if "optimize" in request else run)(request)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main():
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(request)
        if request.get("what") == "seconds":
            time.sleep(request["at"])
            os.kill(pid, signal.SIGKILL)  # it is this process's own, and not waited for yet: the id is no other's
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"killed": os.WIFSIGNALED(status), "status": status}), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
