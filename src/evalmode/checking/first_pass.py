"""One plain pass on the given batch, looked at from outside: its outputs, and everything that it moved.

Several clauses ask about the same pass; what it did is read once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from evalmode.observe.own_generators import OwnGenerator
from evalmode.observe.state import ModelState, StateChange
from evalmode.observe.streams import read_streams, seed_streams, stream_differences

__all__ = ["FirstPass", "look_at"]


@dataclass(frozen=True, slots=True)
class FirstPass:
    """What one pass gave and moved: the random streams by name, the model's own generators, and what differs from the
    state that it started from, streams apart. `gradients_on` says that it left gradients on where they were off."""

    outputs: dict[str, torch.Tensor]
    streams: tuple[str, ...]
    generators: tuple[OwnGenerator, ...]
    changes: tuple[StateChange, ...]
    gradients_on: bool

    def of_kind(self, *kinds: str) -> list[StateChange]:
        """The changes of these kinds."""
        return [change for change in self.changes if change.kind in kinds]


def look_at(
    run: Callable[[], Any], picked: Callable[[Any], dict[str, torch.Tensor]], state: ModelState, seed: int
) -> FirstPass:
    """What `run()`, one forward pass from `state` that seeds the streams with `seed`, gives and moves.

    `picked` takes the tensors that count out of what `run` gives.
    """
    seed_streams(seed)
    before = read_streams()
    with torch.no_grad():
        raw = run()
        gradients_on = torch.is_grad_enabled()
    outputs = {path: leaf.clone() for path, leaf in picked(raw).items()}
    del raw
    return FirstPass(
        outputs=outputs,
        streams=stream_differences(before, read_streams()),
        generators=tuple(own for own in state.generators if own.moved()),
        changes=tuple(change for change in state.changes() if change.kind != "stream"),
        gradients_on=gradients_on,
    )
