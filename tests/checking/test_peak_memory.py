"""Peak memory of a check: one copy of the model's tensors, and at most twice a forward pass's activations.

The oracle is torch's own profiler, which sees every allocation of tensor memory; no clock is involved.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from evalmode.checking.catalog import CLAUSE_FILES
from evalmode.checking.runner import check

ROWS = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(8, 3, 40, 40, generator=torch.Generator().manual_seed(0))
BESIDE = 16  # copies of the batch and of the outputs, in fp64 and fp32, which lie outside the forward pass


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


class Scaled(nn.Module):
    """Divides by the largest value of the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.abs().amax() + 1e-6)


def heavy_in_weights(middle: nn.Module) -> nn.Module:
    layers = [layer for _ in range(4) for layer in (nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.1))]
    return nn.Sequential(*layers[:6], middle, *layers[6:])


def heavy_in_activations(middle: nn.Module) -> nn.Module:
    layers = [nn.Conv2d(width, 32, 3, padding=1) for width in (3, 32, 32)]
    return nn.Sequential(*layers[:2], nn.ReLU(), middle, layers[2], nn.AdaptiveAvgPool2d(1), nn.Flatten())


def needed(tested: nn.Module, batch: torch.Tensor, folder: Path, **how: Any) -> tuple[int, int, int]:
    """Bytes of the weights, of one forward pass with them, and of a check."""
    weights = sum(parameter.nbytes for parameter in tested.parameters())
    with torch.no_grad():
        forward = weights + peak(lambda: tested(batch), folder)
    return weights, forward, weights + peak(lambda: check(tested, batch, **how), folder)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("clause", CLAUSE_FILES)
def test_a_clause_needs_one_copy_of_the_model_and_two_forward_passes(
    clause: str, training: bool, tmp_path: Path
) -> None:
    tested = heavy_in_weights(nn.Identity()).train(training)
    largest_wide = 2 * (256 * 256 + 2 * ROWS.numel()) * 4
    weights, forward, found = needed(tested, ROWS, tmp_path, clauses=[clause])
    assert found <= 2 * forward + largest_wide + BESIDE * ROWS.nbytes
    assert found >= 2 * weights  # the profiler has seen the copy


@pytest.mark.parametrize("probes", ["fast", "default"])
@pytest.mark.parametrize("middle", [nn.Identity(), Scaled()], ids=["independent", "dependent"])
def test_companions_sizes_and_fp64_need_no_more_than_two_forward_passes(
    middle: nn.Module, probes: str, tmp_path: Path
) -> None:
    tested = heavy_in_activations(middle).eval()
    largest_wide = 2 * (2 * 8 * 32 * 40 * 40) * 4
    _, forward, found = needed(tested, IMAGES, tmp_path, clauses=["batch-independent"], probes=probes)
    assert found <= 2 * forward + largest_wide


def test_fp64_needs_twice_the_memory_of_a_forward_pass_whose_convolution_it_takes_by_sample(tmp_path: Path) -> None:
    from evalmode.observe.wide import wide, widened

    tested = heavy_in_activations(nn.Identity()).eval()

    def in_fp64() -> None:
        with torch.no_grad(), wide():
            tested(widened(IMAGES))

    with torch.no_grad():
        forward = peak(lambda: tested(IMAGES), tmp_path)
    unfolded_sample = 9 * 32 * 40 * 40 * 8
    assert 1.9 * forward <= peak(in_fp64, tmp_path) <= 2 * forward + 1.5 * unfolded_sample
