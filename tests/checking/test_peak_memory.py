"""Peak memory of a check: one copy of the model's tensors, and at most twice a forward pass's activations.

The oracle is torch's own profiler, which sees every allocation of tensor memory; no clock is involved.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from evalmode.checking.catalog import CLAUSE_FILES
from evalmode.checking.runner import check

BATCH = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
SIDE_BY_SIDE = ("batch-independent",)  # holds the outputs of several passes, and follows differences through layers


def peak(run: Callable[[], object], folder: Path) -> int:
    """How far `run` raises the memory of tensors, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    profiled.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    level = highest = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        level += event["args"]["Bytes"]
        highest = max(highest, level)
    return highest


def model(*, training: bool) -> nn.Module:
    layers = [layer for _ in range(4) for layer in (nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.1))]
    return nn.Sequential(*layers).train(training)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("clause", [clause for clause in CLAUSE_FILES if clause not in SIDE_BY_SIDE])
def test_a_clause_needs_one_copy_of_the_model_and_two_forward_passes(
    clause: str, training: bool, tmp_path: Path
) -> None:
    tested = model(training=training)
    weights = sum(parameter.nbytes for parameter in tested.parameters())
    with torch.no_grad():
        forward = weights + peak(lambda: tested(BATCH), tmp_path)
    largest_wide = 2 * (256 * 256 + 2 * BATCH.numel()) * 4
    needed = weights + peak(lambda: check(tested, BATCH, clauses=[clause]), tmp_path)
    assert needed <= 2 * forward + largest_wide
    assert needed >= 2 * weights  # the profiler has seen the copy
