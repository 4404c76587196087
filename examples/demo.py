"""What `make demo` runs: the same weights the wrong way and the right way, then the certificate.

python examples/demo.py
"""

import contextlib
import copy
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

import evalmode

ROOT = Path(__file__).resolve().parent.parent
TASK = "examples/digits/task.py"
WRONG_SIZES = (1, 2, 8, 64)
RIGHT_SIZES = (64, 64, 8, 2, 1)


def header() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch_version = torch.__version__.partition("+")[0]
    return f"evalmode {evalmode.__version__}   torch {torch_version}   cpu, {cores} cores   {TASK}"


def answers(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """The digit that the model reads in each image, `batch_size` images at a time."""
    return torch.cat([model(batch).argmax(1) for batch in images.split(batch_size)])


def wrong_way(model: nn.Module, images: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Two runs in training mode, on a copy: training mode updates batch norm's statistics even under no_grad."""
    model = copy.deepcopy(model).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(batch_size)
        return answers(model, images, batch_size), answers(model, images, batch_size)


def right_way(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Runs in evaluation mode: again at one batch size, and at others."""
    with evalmode.evaluating(model):
        return [answers(model, images, batch_size) for batch_size in RIGHT_SIZES]


def line(name: str, accuracy: str, changed: str) -> str:
    return f"{name:<43}{accuracy:>10}{changed:>21}"


def row(name: str, runs: list[Tensor], labels: Tensor) -> str:
    accuracy = (runs[0] == labels).double().mean().item()
    changed = int(torch.stack([run != runs[0] for run in runs]).any(0).sum())
    return line(name, f"{accuracy:.1%}".replace("%", " %"), f"{changed} of {len(labels)}")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Batches of a few small images: on a busy machine threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def table(model: nn.Module, images: Tensor, labels: Tensor) -> list[str]:
    """The lines of the table; every figure is measured here."""
    lines = [
        f"{f'The same weights, the same {len(labels)} test images':<43}{'answers that change':>31}",
        line("", "accuracy", "on a second run"),
    ]
    for batch_size in WRONG_SIZES:
        name = f"  model.train(), batches of {batch_size}"
        try:
            runs = wrong_way(model, images, batch_size)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            lines.append(f"{name:<43}{'fails: batch norm needs two':>31}")
        else:
            lines.append(row(name, list(runs), labels))
    return [*lines, row("  evaluation mode, any batch size", right_way(model, images), labels)]


def load_task() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits_task", ROOT / TASK)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {ROOT / TASK}")
    task = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(task)
    return task


def main() -> int:
    from evalmode.cli.main import main as evalmode_command

    task = load_task()
    print(header())  # at most 45 lines in all
    print("\n".join(table(task.model(), *task.test_data())), end="\n\n")
    print(f"$ evalmode certify {TASK} --out build/demo", flush=True)
    with contextlib.chdir(ROOT):
        return evalmode_command(["certify", TASK, "--out", "build/demo"])


if __name__ == "__main__":
    sys.exit(main())
