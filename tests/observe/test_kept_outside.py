from __future__ import annotations

import torch
from torch import nn

from evalmode.observe.kept_outside import made_tensors

X = torch.ones(4, 3)


def test_outputs_and_activations_are_gone_after_a_pass() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    assert made_tensors(lambda: model(X), model).alive() == []


def test_what_is_held_is_named_with_its_place_size_and_graph() -> None:
    memory: list[torch.Tensor] = []

    class Keeping(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            memory.append(x.exp())
            return x * 2

    model = nn.Sequential(nn.Linear(3, 3), Keeping())
    with torch.no_grad():
        made = made_tensors(lambda: model(X), model)
    (kept,) = made.alive()
    assert (kept.operator, kept.place.module, kept.place.file, kept.size) == ("aten.exp.default", "1", __file__, 48)
    assert not kept.with_graph
    assert "memory.append" in kept.place.source
    memory.clear()
    assert made.alive() == []
    assert any(kept.with_graph for kept in made_tensors(lambda: model(X), model).alive())


def test_a_cycle_that_nobody_reaches_is_not_kept() -> None:
    class Cyclic(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            cycle: list[object] = [x.exp()]
            cycle.append(cycle)
            return x * 2

    assert made_tensors(lambda: Cyclic()(X), None).alive() == []
