"""Memory as the kernel counts it."""

from pathlib import Path

import pytest
import torch

from evalmode.optimization import footprint
from evalmode.optimization.footprint import peak_bytes_of, resident_bytes

MEGABYTE = 2**20


def test_the_peak_counts_what_is_given_back_before_the_end() -> None:
    def work() -> None:
        torch.zeros(8 * MEGABYTE).add_(1)  # 32 MB, freed at once

    peak = peak_bytes_of(work)
    assert peak is not None
    assert 31 * MEGABYTE <= peak <= 48 * MEGABYTE


def test_memory_that_was_held_before_is_not_counted() -> None:
    held = torch.ones(16 * MEGABYTE)
    peak = peak_bytes_of(lambda: torch.ones(10))
    assert peak is not None
    assert peak < 4 * MEGABYTE
    assert held.sum() == 16 * MEGABYTE


def test_a_kernel_that_does_not_say_gives_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(footprint, "_STATUS", tmp_path / "missing")
    assert resident_bytes() is None
    assert peak_bytes_of(lambda: None) is None
