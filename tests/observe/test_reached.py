"""What the code of a model keeps outside of `nn.Module`'s own tables: seen with its line, and put back."""

from __future__ import annotations

import functools
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from evalmode.checking.runner import check
from evalmode.observe.state import read_state

BATCH = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
CALLS = 0
LOG: list[float] = []
STATE = {"calls": 0}
TABLE: dict[int, int] = {}
AVERAGE = torch.zeros(4)


class Slotted:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


@dataclass(slots=True)
class Totals:
    calls: int = 0


class Tracker:
    made = 0

    def __init__(self) -> None:
        self.calls = 0

    def note(self) -> None:
        self.calls += 1

    def note_all(self) -> None:
        Tracker.made += 1


def step(acc: list[int] = []) -> None:  # noqa: B006 - the trap that is tested
    acc.append(1)


def note_call() -> None:
    note_call.calls += 1  # type: ignore[attr-defined]


note_call.calls = 0  # type: ignore[attr-defined]


def counter() -> Callable[[], None]:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    return count


def count_globally() -> None:
    global CALLS  # noqa: PLW0603 - the trap that is tested
    CALLS += 1


class Net(nn.Module):
    total = 0
    seen: ClassVar[list[float]] = []

    def __init__(self) -> None:
        super().__init__()
        self.slotted, self.totals, self.tracker = Slotted(), Totals(), Tracker()
        self.array, self.arrays, self.bytes = np.zeros(4), [np.zeros(4)], bytearray(2)
        self.machine = array("d", [0.0])
        self.count, self.note = counter(), Tracker().note
        self.part = functools.partial(list.append, [])
        self.counted: Counter[str] = Counter()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def change_class(self: Any, x: torch.Tensor) -> None:
    type(self).total += 1


def rebind_array(self: Any, x: torch.Tensor) -> None:
    self.array = self.array + x[0].numpy()


def add_to_bytes(self: Any, x: torch.Tensor) -> None:
    self.bytes[0] += 1


def add_to_array(self: Any, x: torch.Tensor) -> None:
    self.array += 1


def made_of(act: Callable[[Any, torch.Tensor], object]) -> nn.Module:
    class Acting(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            act(self, x)
            return x * 2

    return nn.Sequential(Acting()).eval()


@pytest.mark.parametrize(
    ("path", "act"),
    [
        ("0.slotted.calls", lambda self, x: setattr(self.slotted, "calls", self.slotted.calls + 1)),
        ("0.totals.calls", lambda self, x: setattr(self.totals, "calls", self.totals.calls + 1)),
        ("0.tracker.calls", lambda self, x: self.tracker.note()),
        ("0.Tracker.made", lambda self, x: self.tracker.note_all()),
        ("0.note.__self__.calls", lambda self, x: self.note()),
        ("0.part.args[0]", lambda self, x: self.part(1)),
        ("0.count.calls", lambda self, x: self.count()),
        ("0.counted", lambda self, x: self.counted.update(["call"])),
        ("0.array", add_to_array),
        ("0.array", rebind_array),
        ("0.arrays[0]", lambda self, x: self.arrays[0].__setitem__(slice(None), x[0].numpy())),
        ("0.bytes", add_to_bytes),
        ("0.machine", lambda self, x: self.machine.__setitem__(0, self.machine[0] + 1)),
        ("0.Acting.total", change_class),
        ("0.Net.seen", lambda self, x: self.seen.append(float(x.sum()))),
        ("0.CALLS (global)", lambda self, x: count_globally()),
        ("0.LOG (global)", lambda self, x: LOG.append(float(x.sum()))),
        ("0.STATE (global)", lambda self, x: STATE.update(calls=STATE["calls"] + 1)),
        ("0.acc (step)", lambda self, x: step()),
        ("0.calls (note_call)", lambda self, x: note_call()),
        ("0.AVERAGE (global)", lambda self, x: AVERAGE.lerp_(x.mean(0), 0.1)),
    ],
)
def test_a_change_is_told_with_its_line_and_put_back(path: str, act: Callable[[Any, torch.Tensor], object]) -> None:
    model = made_of(act)
    state = read_state(model)
    (finding,) = check(model, BATCH).findings
    assert finding.code == ("EM152" if "AVERAGE" in path else "EM154")
    assert finding.seen.startswith(f"{path} ")
    assert (finding.place.module, finding.place.file) == ("0", __file__)
    assert state.changes() == []
    assert (CALLS, LOG, STATE, Net.seen, Tracker.made) == (0, [], {"calls": 0}, [], 0)
    assert not AVERAGE.any()


@pytest.mark.parametrize(
    "act",
    [
        lambda self, x: TABLE.setdefault(x.shape[1], 1),
        lambda self, x: setattr(type(self), "width", x.shape[1]),
        lambda self, x: setattr(self.tracker, "width", x.shape[1]),
        lambda self, x: self.array.fill(0.0),
    ],
)
def test_what_depends_on_the_shape_alone_is_passed_over(act: Callable[[Any, torch.Tensor], object]) -> None:
    assert check(made_of(act), BATCH).findings == ()
    assert TABLE == {}


def test_what_a_hook_of_others_counts_is_theirs() -> None:
    calls: list[int] = []
    model = made_of(lambda self, x: None)
    model.register_forward_hook(lambda *_: calls.append(1))
    assert check(model, BATCH).ok
    assert len(calls) > 5


def test_a_tensor_kept_outside_is_seen_as_such_and_let_go_at_the_end() -> None:
    kept: list[torch.Tensor] = []
    (finding,) = check(made_of(lambda self, x: kept.append(x.mean(0))), BATCH).findings
    assert finding.code == "EM164"
    assert kept == []


def test_code_of_installed_packages_is_not_followed() -> None:
    names = [held.name for held in read_state(nn.TransformerEncoderLayer(4, 2)).containers if held.outside]
    assert names == []
