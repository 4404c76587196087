from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from evalmode.observe.changed_lines import changed_lines
from evalmode.observe.state import read_state

X = torch.ones(2, 3)


class Inner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class Writer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.register_buffer("total", torch.zeros(()))
        self.totals = SimpleNamespace(calls=0, seen={"rows": 0})
        self.history: list[float] = []
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.inner(x)  # last
        self.total = self.total + 1  # total
        self.totals.calls += 1  # totals.calls
        self.totals.seen["rows"] += len(x)  # totals.seen
        for _ in range(2):
            self.history.append(1.0)  # history
        return x


def marked(word: str) -> int:
    lines, first = inspect.getsourcelines(Writer)
    return next(first + place for place, text in enumerate(lines) if text.rstrip().endswith(f"# {word}"))


def test_each_change_is_traced_to_its_line_and_module() -> None:
    model: Any = nn.Sequential(nn.ReLU(), Writer())
    state = read_state(model)
    model(X)
    differences = state.differences()
    state.put_back()
    assert state.differences() == []
    places = changed_lines(lambda: model(X), model, differences)
    assert {change.path for change in places} == {difference.change.path for difference in differences}
    assert {change.name for change in places} == {"last", "total", "totals.calls", "totals.seen", "history"}
    for change, place in places.items():
        assert (place.module, place.file, place.line) == ("1", __file__, marked(change.name))


def test_put_back_reaches_plain_objects_and_rebound_buffers() -> None:
    model: Any = Writer()
    total, state = model.total, read_state(model)
    model(X)
    model(X)
    state.put_back()
    assert model.totals == SimpleNamespace(calls=0, seen={"rows": 0})
    assert model.total is total
    assert model.history == []
    assert model.last is None


def test_a_write_behind_the_version_counter_is_put_back_between_passes_once_it_is_known() -> None:
    model = nn.Linear(3, 2)
    before, state = model.weight.detach().clone(), read_state(model)
    model.weight.data.mul_(2)
    state.put_back()
    model.weight.data.mul_(3)
    state.put_back(quick=True)
    assert torch.equal(model.weight, before)


def test_a_hook_that_is_set_again_is_counted() -> None:
    model = nn.Linear(3, 2)
    model.register_forward_hook(lambda *_: None).remove()
    state = read_state(model)
    model.register_forward_hook(lambda *_: None)
    (difference,) = state.differences()
    assert (difference.change.name, difference.before, difference.read()) == ("_forward_hooks", 0, 1)
