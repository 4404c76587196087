"""Whether a sample's answer is its own: groups run again beside other samples, the first of each shape and later ones.

What was found goes with the journal, so that an evaluation that was stopped ends as it would have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from evalmode.errors import EvalmodeError
from evalmode.evaluation.devices import out_of_memory
from evalmode.evaluation.moving import Change, moved_by, said_of
from evalmode.evaluation.rows import answers_of
from evalmode.evaluation.stability import (
    beside_others,
    beyond,
    has_companions,
    keeps_bits,
    mixed,
    rows_alike,
    silent,
)
from evalmode.evaluation.untouched import Untouched
from evalmode.observe.batching import BatchAxis, select_samples
from evalmode.observe.tree import same_bits
from evalmode.predictor.calling import reason_of

__all__ = ["Companions", "is_late"]

_AGAIN = 8  # executions that are run again as they were, where no group shows what companions do


def is_late(positions: Sequence[int]) -> bool:
    """Whether samples at these places of the data are tried beside others again: there is a power of two among them.

    So each shape has a few such groups, and an evaluation that goes on has those that it would have had.

    Example:
        >>> [start for start in range(0, 4096, 256) if is_late(range(start, start + 256))]
        [0, 256, 512, 1024, 2048]
    """
    if not positions:
        return False
    least, most = min(positions), max(positions)
    return most > 0 and 1 << (most.bit_length() - 1) >= least


class _Record(msgspec.Struct, frozen=True):
    exact: bool
    notes: tuple[str, ...]
    tested: tuple[str, ...]
    alone: tuple[str, ...]


class Companions:
    """Tries groups of samples beside other ones, and says which shapes have to run one sample at a time.

    `exact` is False where answers depend on what ran together, or are never the same twice.
    """

    def __init__(self, predict: Untouched, module: nn.Module | None, tell: Callable[[str], object]) -> None:
        self.predict, self.module, self.tell = predict, module, tell
        self.exact = True
        self.notes: list[str] = []
        self.tested: set[str] = set()
        self.alone: set[str] = set()
        self.again = _AGAIN

    def record(self) -> bytes:
        """What was found so far, for a journal."""
        found = _Record(self.exact, tuple(self.notes), tuple(sorted(self.tested)), tuple(sorted(self.alone)))
        return msgspec.msgpack.encode(found)

    def recall(self, record: bytes) -> None:
        """Go on with what was found before."""
        found = msgspec.msgpack.decode(record, type=_Record)
        self.exact = found.exact
        self.tested |= {*found.tested}
        self.alone |= {*found.alone}
        for note in found.notes:
            self._say(note)

    def are_harmless(
        self, inputs: Any, axis: BatchAxis, shape: tuple[Any, ...], size: int, found: Any, *, late: bool
    ) -> bool:
        """Whether this shape goes on in executions of `size`, of which `found` came; False: one sample at a time."""
        name = repr(shape)
        if not self.exact or (name in self.tested and not late):
            return True
        if name in self.tested:
            self._look_again(inputs, axis, size, found)
            return True
        change = None
        if size > 1 and has_companions(inputs, axis, size):
            if not answers_of(found, axis.size):
                self.not_tried("no tensor of the outputs has a row for each sample")
                return True
            change = self._change(inputs, axis, size, found, beside_others(inputs, axis, size), farther=True)
            self.tested.add(name)
            if change is None:
                return True
        elif size == 1 or (rows_alike(found, axis) and not self.alone):
            self._repeat_some(inputs, axis, size, found)  # what other shapes showed of companions goes for it
            return True
        if not keeps_bits(self.predict, inputs, axis, found, range(size)):
            self._never_the_same()
            return True
        self.tested.add(name)
        if not self.alone:
            by = moved_by(self.predict.function, self.module, inputs, axis, size, change, found)
            self._say(f"{said_of(by)}: its samples were run one at a time")
        self.alone.add(name)
        return False

    def _look_again(self, inputs: Any, axis: BatchAxis, size: int, found: Any) -> None:
        """Try one of many groups: what has run so far cannot be told to be exact any more where it moves."""
        if size == 1 or not has_companions(inputs, axis, size):
            return
        one = axis.size >= 2 * size
        orders = [mixed(size, axis.size)] if one else beside_others(inputs, axis, size)
        change = self._change(inputs, axis, size, found, orders)
        if change is None:
            return
        if not keeps_bits(self.predict, inputs, axis, found, range(size)):
            self._never_the_same()
            return
        self.exact = False
        by = moved_by(self.predict.function, self.module, inputs, axis, size, change, found)
        self._say(
            f"{said_of(by)}, which showed when others had run beside each other: figures may depend on the order of "
            "the data"
        )

    def _change(
        self,
        inputs: Any,
        axis: BatchAxis,
        size: int,
        found: Any,
        orders: Sequence[tuple[list[int], range]],
        *,
        farther: bool = False,
    ) -> Change | None:
        """The first of these orders in which the samples at the places kept have other bits than in `found`."""
        before = answers_of(found, axis.size)
        on_host = all(answer.device.type == "cpu" for answer in before)
        for number, (rows, kept) in enumerate(orders):
            chosen = select_samples(inputs, axis, rows)
            others = [place for place in range(size) if place not in kept]
            given = beyond(chosen, axis, others) if farther and not number and on_host else None
            now = () if given is None else self._tried(given, size, told=False)
            if not now:
                given, now = chosen, self._tried(chosen, size, told=True)
            for answer, (one, other) in enumerate(zip(before, now, strict=False)):
                wanted = one[torch.tensor([rows[place] for place in kept], device=one.device)]
                got = other[torch.tensor([*kept], device=other.device)]
                if not same_bits(got, wanted):
                    return Change(given, rows, kept, wanted, got, answer)
        return None

    def _tried(self, given: Any, size: int, *, told: bool) -> tuple[Tensor, ...]:
        """The answers to what is tried; none where the model fails on it, or none has a row for each sample."""
        try:
            with silent(on=not told):
                return answers_of(self.predict(given), size)
        except Exception as error:
            if told and out_of_memory(error):
                raise
            if told:
                why = error.got if isinstance(error, EvalmodeError) else f"{type(error).__name__}: {reason_of(error)}"
                self.not_tried(why)
            return ()

    def not_tried(self, why: str) -> None:
        """Nothing is known of what the samples beside one do to its answer."""
        self.exact = False
        self._say(f"whether the samples beside it change a sample's answer could not be tried: {why}")

    def _repeat_some(self, inputs: Any, axis: BatchAxis, size: int, found: Any) -> None:
        """Run the first few executions again as they were."""
        for start in range(0, axis.size, size):
            if not self.again:
                return
            self.again -= 1
            if not keeps_bits(self.predict, inputs, axis, found, range(start, start + size)):
                self._never_the_same()
                return

    def _never_the_same(self) -> None:
        self.exact = False
        self._say(
            "the model's answers are not the same twice, even to the same samples at the same shape: there is a random "
            "draw or a state in it, and evalmode.check names the line"
        )

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
            self.tell(note)
