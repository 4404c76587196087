"""What does an exact evaluation cost? Beside the bare forward loop, and beside the peers' loops with one metric.

Every contestant evaluates the same small network on the same samples in memory, in turn, round by round, so that drift
of a noisy machine cancels; figures are medians of ratios within a round. Peak memory is that of a process of its own.

    python benchmarks/evaluate.py                 # prints the tables
    python benchmarks/evaluate.py --keep          # and keeps them in benchmarks/results/evaluate.md
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this file bears the name of a peer
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import evalmode

TABLE = Path(__file__).parent / "results" / "evaluate.md"
BATCH = 64
BARE, OURS, FAST = "bare forward loop", "evalmode.evaluate", "evalmode.evaluate, optimised plan"
Contestant = Callable[[], float]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    ).eval()


def contestants(images: Tensor, labels: Tensor, budget: float) -> tuple[dict[str, Contestant], list[str]]:
    """Every loop by name, each giving the accuracy, and which peers are not installed."""
    model = network()
    found: dict[str, Contestant] = {}
    missing = []

    def bare() -> float:
        right = 0
        with torch.no_grad():
            for start in range(0, len(images), BATCH):
                outputs = model(images[start : start + BATCH])
                right += int((outputs.argmax(1) == labels[start : start + BATCH]).sum())
        return right / len(images)

    def ours(model: Any) -> float:
        return evalmode.evaluate(model, (images, labels), metrics=["accuracy"], progress=False)["accuracy"].value

    found[BARE] = bare
    found[OURS] = lambda: ours(model)
    if budget:
        fast = evalmode.optimize(model, images[:BATCH], budget_s=budget)
        found[FAST] = lambda: ours(fast)
    loader = DataLoader(TensorDataset(images, labels), batch_size=BATCH)
    for name, build in (("lightning", _lightning), ("pytorch-ignite", _ignite), ("evaluate", _hugging_face)):
        try:
            found[f"{_title(name)} {importlib.metadata.version(name)}"] = build(model, loader)
        except ImportError:
            missing.append(_title(name))
    return found, missing


def _title(name: str) -> str:
    return {"lightning": "Lightning Trainer.test", "pytorch-ignite": "ignite", "evaluate": "Hugging Face evaluate"}[
        name
    ]


def _lightning(model: nn.Module, loader: Any) -> Contestant:
    """Source: https://lightning.ai/docs/pytorch/stable/common/evaluation_basic.html"""
    lightning: Any = importlib.import_module("lightning")
    torchmetrics: Any = importlib.import_module("torchmetrics")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = model
            self.accuracy = torchmetrics.classification.MulticlassAccuracy(10, average="micro")

        def test_step(self, batch: Any, index: int) -> None:
            self.accuracy(self.inner(batch[0]), batch[1])
            self.log("accuracy", self.accuracy)

    def run() -> float:
        trainer = lightning.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        return float(trainer.test(Module(), loader, verbose=False)[0]["accuracy"])

    return run


def _ignite(model: nn.Module, loader: Any) -> Contestant:
    """Source: https://docs.pytorch.org/ignite/generated/ignite.engine.create_supervised_evaluator.html"""
    engine: Any = importlib.import_module("ignite.engine")
    measures: Any = importlib.import_module("ignite.metrics")
    evaluator = engine.create_supervised_evaluator(model, metrics={"accuracy": measures.Accuracy()})
    return lambda: float(evaluator.run(loader).metrics["accuracy"])


def _hugging_face(model: nn.Module, loader: Any) -> Contestant:
    """Its `accuracy` is a script of the hub; this is the same, written here, for machines without network.

    Source: https://huggingface.co/docs/evaluate/a_quick_tour
    """
    datasets: Any = importlib.import_module("datasets")
    evaluate: Any = importlib.import_module("evaluate")
    from sklearn.metrics import accuracy_score

    class Accuracy(evaluate.Metric):  # type: ignore[misc]
        def _info(self) -> Any:
            features = datasets.Features(predictions=datasets.Value("int32"), references=datasets.Value("int32"))
            return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            return {"accuracy": float(accuracy_score(references, predictions))}

    def run() -> float:
        metric = Accuracy()
        with torch.no_grad():
            for inputs, target in loader:
                metric.add_batch(predictions=model(inputs).argmax(1), references=target)
        return float(metric.compute()["accuracy"])

    return run


def raced(found: dict[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant, round by round; the first round warms up and is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    values = {}
    for turn in range(rounds + 1):
        for name, run in found.items():
            started = time.perf_counter()
            values[name] = run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    if max(values.values()) - min(values.values()) > 1e-4:
        raise SystemExit(f"the contestants do not agree: {values}")
    return seconds


def peak(samples: int) -> None:
    """Print the peak memory of this process above that of the data and the libraries, in MB."""
    inputs = torch.zeros(samples, 16)
    inputs[:, 0] = torch.arange(samples) % 7
    labels = torch.arange(samples) % 4
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    evalmode.evaluate(model, (inputs[:2000], labels[:2000]), progress=False)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark of a child is its parent's
    before = highest()
    started = time.perf_counter()
    evalmode.evaluate(model, (inputs, labels), progress=False)
    seconds = time.perf_counter() - started
    print((highest() - before) / 1024, seconds)


def highest() -> int:
    """The largest resident memory of this process since it was last reset, in kB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def memory_rows(sizes: list[int]) -> list[str]:
    rows = ["", "| samples | peak memory above data and libraries | per sample | seconds |", "|---:|---:|---:|---:|"]
    for size in sizes:
        run = subprocess.run(
            [sys.executable, __file__, "--peak", str(size)], capture_output=True, text=True, check=True
        )
        megabytes, seconds = map(float, run.stdout.split()[-2:])
        rows.append(f"| {size:,} | {megabytes:.1f} MB | {megabytes * 2**20 / size:,.0f} B | {seconds:.1f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget", type=float, default=20, help="seconds to search for a plan; 0: none")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=f"write {TABLE.name}")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.peak:
        peak(options.peak)
        return
    images = torch.rand(options.samples, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(options.samples) % 10
    found, missing = contestants(images, labels, options.budget)
    seconds = raced(found, options.rounds)
    threads = torch.get_num_threads()
    versions = (f"evalmode {evalmode.__version__}", f"torch {torch.__version__}", f"Python {platform.python_version()}")
    lines = [
        "# benchmarks/evaluate.py",
        "",
        ", ".join((*versions, platform.machine(), f"{os.cpu_count()} cores", f"{threads} thread{(threads > 1) * 's'}")),
        "",
        f"A small convolutional network, {options.samples:,} images of 8 x 8 in memory, accuracy; batches of {BATCH}.",
        "",
        "| loop | images/s | over the bare loop |",
        "|---|---:|---:|",
    ]
    for name, times in seconds.items():
        ratios = [bare / own for bare, own in zip(seconds[BARE], times, strict=True)]
        rate = options.samples / statistics.median(times)
        lines.append(f"| {name} | {rate:,.0f} | {statistics.median(ratios):.2f} |")
    lines += [f"| {name} | not installed | |" for name in missing]
    lines += memory_rows(options.sizes)
    print("\n".join(lines))
    if options.keep:
        TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
