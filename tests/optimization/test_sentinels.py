"""A constant that a mask fills in hides no error beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from evalmode.optimization.probes import probe_samples
from evalmode.optimization.reference import reference_of
from evalmode.optimization.tolerance import Tolerance
from evalmode.optimization.verification import verify


def masked(value: float) -> Callable[[Tensor, Tensor], tuple[Tensor]]:
    def plain(x: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        return (((x + 0.1) * 1.7).masked_fill(attention_mask == 0, value),)

    return plain


def samples() -> tuple:
    torch.manual_seed(0)
    mask = torch.ones(6, 9, dtype=torch.long)
    for row in range(6):
        mask[row, 9 - row :] = 0
    return probe_samples((torch.randn(6, 9), mask), (0, 0), ("x", "attention_mask"))


@pytest.mark.parametrize("value", [-1e9, -1e4, -1e30, -65504.0, torch.finfo(torch.float32).min])
def test_what_is_right_passes_beside_it(value: float) -> None:
    plain = masked(value)
    found = verify(
        {4: lambda chunks: [plain(*chunk) for chunk in chunks]}, reference_of(plain, samples(), (0,)), Tolerance("fp32")
    )
    assert found.accepted, found.reason


@pytest.mark.parametrize("value", [-1e9, -1e4, -65504.0])
@pytest.mark.parametrize("error", [50.0, 1e-2])
def test_an_error_in_padded_samples_alone_is_found(value: float, error: float) -> None:
    plain = masked(value)

    def wrong(x: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        (y,) = plain(x, attention_mask)
        bad = (attention_mask == 0).any(1, keepdim=True) & (attention_mask == 1)
        bad[:, 0] = False
        return (torch.where(bad, y + error, y),)

    found = verify(
        {4: lambda chunks: [wrong(*chunk) for chunk in chunks]}, reference_of(plain, samples(), (0,)), Tolerance("fp32")
    )
    assert not found.accepted
    assert "error" in found.reason
