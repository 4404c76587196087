"""What does the switch cost? Enter plus exit of `evaluating` beside `eval()` and `train()` by hand.

Both are timed in turn in one run, so that drift of a noisy machine cancels; the ratio of medians is reported. Hidden
modules are searched and random streams swapped, as always. The second table compares forward passes inside
`evaluating` with the same passes under a bare `torch.no_grad()`.

    python benchmarks/switch.py
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import evalmode
from evalmode import evaluating

SIZES = (100, 1_000, 10_000)
RESULTS = Path(__file__).parent / "results" / "switch.md"


def network(modules: int) -> nn.Module:
    """A network of `modules` modules in all: blocks of the usual layers, as in a residual network."""
    layers: list[nn.Module] = []
    count = 1
    while count + 5 <= modules:
        layers.append(nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.1)))
        count += 5
    layers.extend(nn.Identity() for _ in range(modules - count))
    model = nn.Sequential(*layers)
    if len(list(model.modules())) != modules:
        raise RuntimeError(f"built {len(list(model.modules()))} modules, wanted {modules}")
    return model.train()


def linears(modules: int) -> nn.Module:
    """As many modules of one kind: the cheapest to switch by hand."""
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(modules - 1)))


def interleaved(
    first: Callable[[], object], second: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of each call, the two in turn and in alternating order."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            begin = time.perf_counter()
            (first, second)[which]()
            times[which].append(time.perf_counter() - begin)
    return times


def by_hand(model: nn.Module) -> Callable[[], object]:
    def run() -> None:
        model.eval()
        model.train()

    return run


def by_evaluating(model: nn.Module) -> Callable[[], object]:
    def run() -> None:
        with evaluating(model):
            pass

    return run


def switch_rows(rounds: int) -> list[tuple[str, int, float, float]]:
    """Kind of network, modules, median seconds by hand, median seconds of evaluating."""
    rows = []
    for kind, build in (("residual blocks", network), ("linear layers", linears)):
        for size in SIZES:
            model = build(size)
            hand, ours = by_hand(model), by_evaluating(model)
            interleaved(hand, ours, 3)
            times = interleaved(hand, ours, max(9, rounds * 1_000 // size))
            rows.append((kind, size, statistics.median(times[0]), statistics.median(times[1])))
    return rows


def forward_row(rounds: int) -> tuple[float, float]:
    """Median seconds of 50 forward passes of a small MLP under no_grad, and inside evaluating."""
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10)).eval()
    batch = torch.randn(8, 64)

    def passes() -> float:
        begin = time.perf_counter()
        for _ in range(50):
            model(batch)
        return time.perf_counter() - begin

    bare, inside = [], []
    for _ in range(rounds):
        with torch.no_grad():
            bare.append(passes())
        with evaluating(model):
            inside.append(passes())
    return statistics.median(bare), statistics.median(inside)


def table(rounds: int) -> str:
    lines = [
        (
            f"evalmode {evalmode.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
            f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        ),
        "",
        "| network | modules | eval() + train() | evaluating | ratio | per module |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind, size, hand, ours in switch_rows(rounds):
        lines.append(
            f"| {kind} | {size:,} | {hand * 1e3:.2f} ms | {ours * 1e3:.2f} ms | {ours / hand:.2f} "
            f"| {ours / size * 1e6:.2f} us |"
        )
    bare, inside = forward_row(rounds * 5)
    lines += [
        "",
        "| forward passes of a small MLP, 50 in a row | median | ratio |",
        "|---|---:|---:|",
        f"| under torch.no_grad() | {bare * 1e3:.2f} ms | 1.00 |",
        f"| inside evaluating | {inside * 1e3:.2f} ms | {inside / bare:.2f} |",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--keep", action="store_true", help=f"write the table to {RESULTS.name} as well")
    arguments = parser.parse_args()
    text = table(arguments.rounds)
    print(text)
    if arguments.keep:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(f"# benchmarks/switch.py\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
