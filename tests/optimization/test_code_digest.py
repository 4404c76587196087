from __future__ import annotations

import functools
import os
import subprocess
import sys
import types

import torch
from torch import nn

import evalmode
from evalmode.optimization.code_digest import code_digest
from evalmode.optimization.exporting import program_of


def digest(model: nn.Module, batch: torch.Tensor, **parts: object) -> str | None:
    return code_digest(model, graph=program_of(model.eval(), batch).program.exported, **parts)  # type: ignore[arg-type]


def scaled(model: nn.Module, batch: torch.Tensor, by: float = 1.0) -> torch.Tensor:
    return model(batch) * by


def test_settings_of_modules_are_told_by_the_graph() -> None:
    image = torch.randn(2, 3, 16, 16)
    strides = {digest(nn.Conv2d(3, 8, 3, stride=stride), image) for stride in (1, 2, 2)}
    assert len(strides) == 2
    slopes = {digest(nn.LeakyReLU(slope), image) for slope in (0.1, 0.9, 0.9)}
    assert len(slopes) == 2


def test_without_a_graph_they_are_told_by_what_is_printed() -> None:
    assert len({code_digest(nn.Conv2d(3, 8, 3, stride=stride)) for stride in (1, 2, 2)}) == 2
    assert len({code_digest(nn.LeakyReLU(slope)) for slope in (0.1, 0.9)}) == 2


def test_a_forward_of_the_instance_and_defaults_count() -> None:
    plain, changed = nn.Linear(2, 2), nn.Linear(2, 2)
    changed.forward = types.MethodType(lambda self, x: x, changed)  # type: ignore[method-assign]
    assert code_digest(plain) != code_digest(changed)

    def other(by: float) -> object:
        return types.FunctionType(scaled.__code__, {}, "scaled", (by,))

    assert code_digest(plain, other(1.0)) == code_digest(plain, other(1.0)) != code_digest(plain, other(2.0))  # type: ignore[arg-type]


def test_a_function_that_cannot_be_seen_is_told_by_the_graph_or_not_at_all() -> None:
    model, batch = nn.Linear(2, 2), torch.randn(4, 2)
    assert code_digest(model, functools.partial(scaled, by=2.0)) is None
    found = set()
    for by in (2.0, 3.0, 3.0):
        forward = functools.partial(scaled, by=by)
        found.add(code_digest(model, forward, program_of(model, batch, forward).program.exported))
    assert None not in found and len(found) == 2


def test_a_plan_is_not_taken_for_a_model_of_other_settings(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EVALMODE_CACHE", str(tmp_path))
    for stride in (1, 8):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 8, 3, stride=stride)
        fast = evalmode.optimize(model, torch.randn(2, 3, 16, 16), backends=["eager"], budget_s=5)
        assert "earlier search" not in " ".join(fast.certificate.optimization.notes)


def test_another_process_tells_the_same() -> None:
    script = (
        "import torch; from torch import nn; from evalmode.optimization.exporting import program_of\n"
        "from evalmode.optimization.code_digest import code_digest\n"
        "model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 14 * 14, 4)).eval()\n"
        "print(code_digest(model, graph=program_of(model, torch.randn(4, 3, 16, 16)).program.exported))\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1 and len(found.pop().strip()) == 64
