"""What holds for every test: fixed random streams, no mode left behind, and hypothesis without deadlines."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch

# A deadline would let timing decide a test. In CI the same examples run every time, so that a red run can be repeated.
hypothesis.settings.register_profile("local", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew from today's output")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def process_state() -> dict[str, object]:
    """The process-wide modes of torch that a test must leave as it found them."""
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(autouse=True)
def same_start_for_every_test() -> Iterator[None]:
    """Seeds every random stream, and fails a test that leaves a process-wide mode changed."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    before = process_state()
    yield
    after = process_state()
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    changed = [f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after[name]]
    assert not changed, f"the test changed the process it ran in: {', '.join(changed)}"
