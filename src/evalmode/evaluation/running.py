"""What is evaluated, run group by group at fixed execution shapes: a module, or a predictor."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import torch
from torch import nn

from evalmode.errors import EvalmodeError, ModelRunError
from evalmode.evaluation.companions import Companions
from evalmode.evaluation.devices import give_memory_back, moved, out_of_memory
from evalmode.evaluation.groups import LARGEST, shape_of
from evalmode.evaluation.known import Known
from evalmode.evaluation.outputs import joined
from evalmode.evaluation.rows import rows_axis
from evalmode.evaluation.untouched import Untouched
from evalmode.mode.derived import staleness_unchecked
from evalmode.mode.streams import StreamHold, hold_streams, release_streams
from evalmode.mode.switch import evaluating
from evalmode.observe.batching import BatchAxis, select_samples
from evalmode.observe.state import left_as_found
from evalmode.observe.tree import same_bits, tensor_leaves
from evalmode.predictor.calling import reason_of

__all__ = ["SAME_BITS", "ModuleRunner", "Runner", "own_streams"]

_ACTIVATION_BYTES = {"cpu": 1 << 30, "cuda": 16 << 30}  # of all modules of an execution: memory bounds it
_CACHED_BYTES = {"cpu": 8 << 20, "cuda": 4 << 30}  # so much fits near the processor; below `_FEW` rows it matters less
_FEW = 4
SAME_BITS = "and no smaller execution gives the same bits"


class Runner(ABC):
    """Runs groups of rows. `size` is how many rows a group should have, None where the samples' shape decides.

    `exact` says that a sample's bits do not depend on its companions; `notes` what else is to be known.
    """

    size: int | None = None
    plan = ""
    stuck = SAME_BITS
    """Why `shrink` found nothing smaller."""
    named = False
    """Whether it is called in a way of the user's own, which inputs are handed to as they are."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.exact = True
        self.notes: list[str] = []
        self.sizes: set[int] = set()
        self.largest = 0  # rows of a group

    @abstractmethod
    def running(self) -> contextlib.AbstractContextManager[object]:
        """The block in which it is called."""

    @abstractmethod
    def outputs(self, inputs: Any, *, late: bool = False) -> Any:
        """The outputs of one group, where the model runs; `late`: its samples are tried beside others once more."""

    def shrink(self, inputs: Any) -> bool:
        """Go on with smaller executions of the same class; False where there are none."""
        return False

    def too_large(self, name: Any) -> ModelRunError:
        """The error where memory does not hold an execution with the sample of this name, and `shrink` found none."""
        fix = "a device with more memory, a smaller model or smaller samples"
        if self.stuck == SAME_BITS:
            fix = (
                "evalmode.optimize(model, batch, batch_sizes=(1,)) makes smaller executions of one class; exact=False, "
                "batch_size=1 runs as it fits"
            )
        got = f"out of memory at sample {name}, {self.stuck}"
        return ModelRunError(got, expected="memory for one execution of the model", fix=fix)

    def record(self) -> bytes:
        """What is known of the model by now, for a journal."""
        return self.known_now().packed()

    def recall(self, record: bytes) -> None:
        """Go on with what a journal knows."""
        self.go_on(Known.of(record))

    def known_now(self) -> Known:
        """What a run that goes on has to know."""
        return Known(largest=self.largest, sizes=tuple(sorted(self.sizes)), notes=tuple(self.notes))

    def go_on(self, known: Known) -> None:
        """As if what is known had been found by this runner."""
        self.largest, self.sizes = known.largest, {*known.sizes}
        self.notes += known.notes

    def close(self) -> None:  # noqa: B027 - most runners hold nothing to give back
        """Nothing more is run."""


class ModuleRunner(Runner):
    """A module in evaluation, always at one execution size for samples of one shape.

    The size is a power of two: the group's own, or less where the activations of a sample are large. At one fixed shape
    a sample's bits do not depend on the samples beside it for nearly all models; the first group of a shape that
    holds several shows whether that holds for this one. If not, samples of that shape run one at a time: each shape for
    itself, so that nothing depends on which shape came first. With `whole`, batches run as they come.
    """

    def __init__(
        self, predict: Callable[[Any], Any], device: torch.device, module: nn.Module | None, *, whole: bool, named: bool
    ) -> None:
        super().__init__(device)
        self.predict = Untouched(predict, "the model", self.notes.append)
        self.module, self.whole, self.named = module, whole, named
        self.known: dict[tuple[Any, ...], int] = {}
        self.most = LARGEST
        self.first: tuple[Any, Any, int] | None = None
        self.companions = Companions(self.predict, module, self.notes.append)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        if self.module is None:
            with own_streams(), torch.no_grad():
                yield
            return
        with (
            staleness_unchecked(),
            evaluating(self.module),
            left_as_found(self.module, parameters=False, streams=False),  # inside, where every flag is evaluation's
        ):
            yield

    def outputs(self, inputs: Any, *, late: bool = False) -> Any:
        inputs = moved(inputs, self.device)
        axis = rows_axis(inputs)
        if isinstance(axis, str) and not self.whole:
            self.companions.not_tried(axis)
            self.exact = False
        if isinstance(axis, str) or self.whole:
            return self.predict(inputs)
        shape = shape_of(inputs)
        size = self._size_for(inputs, axis, shape)
        lone = size == 1 and repr(shape) in self.companions.alone
        found = self._alone(inputs, axis) if lone else self._executed(inputs, axis, size)
        if self.first is None or (self.first[2] == 1 and size > 1):
            self.first = (inputs, found, size)  # before samples are tried, for which memory may not do
        if not self.companions.are_harmless(inputs, axis, shape, size, found, late=late):
            shown = self.first[0] is inputs
            found, size = self._alone(inputs, axis), 1
            self.first = (inputs, found, size) if shown else self.first
        self.exact = self.companions.exact
        self.sizes.add(size)
        return found

    def _size_for(self, inputs: Any, axis: BatchAxis, shape: tuple[Any, ...]) -> int:
        if repr(shape) in self.companions.alone:
            return 1
        if shape not in self.known:
            self.known[shape] = self._measured(inputs, axis)
        size = min(self.known[shape], self.most)
        return size if axis.size % size == 0 else axis.size

    def _measured(self, inputs: Any, axis: BatchAxis) -> int:
        """The rows of a group that keep activations small: from what the modules give for two samples of this shape."""
        if self.most < _FEW:  # memory did not hold even two of them
            return self.most
        if self.module is None or axis.size < 16 or axis.size & (axis.size - 1):
            return axis.size
        given = 0

        def add(module: nn.Module, arguments: Any, output: Any) -> None:
            nonlocal given
            given += sum(leaf.numel() * leaf.element_size() for _, leaf in tensor_leaves(output))

        hooks = [part.register_forward_hook(add) for part in self.module.modules() if not any(part.children())]
        try:
            self.predict(select_samples(inputs, axis, [0, axis.size // 2]))
        finally:
            for hook in hooks:
                hook.remove()
        kind = self.device.type if self.device.type in _ACTIVATION_BYTES else "cuda"
        near, most = (limits[kind] // max(given // 2, 1) for limits in (_CACHED_BYTES, _ACTIVATION_BYTES))
        return min(axis.size, 1 << max(min(max(near, _FEW), most).bit_length() - 1, 0))

    def _executed(self, inputs: Any, axis: BatchAxis, size: int) -> Any:
        if size >= axis.size:
            return self.predict(inputs)
        parts = [
            self.predict(select_samples(inputs, axis, range(start, start + size)))
            for start in range(0, axis.size, size)
        ]
        return joined(parts, size)

    def known_now(self) -> Known:
        return msgspec.structs.replace(super().known_now(), most=self.most, companions=self.companions.record())

    def go_on(self, known: Known) -> None:
        super().go_on(known)
        self.most = known.most
        self.companions.recall(known.companions)
        self.exact = self.companions.exact

    def _alone(self, inputs: Any, axis: BatchAxis) -> Any:
        try:
            return self._executed(inputs, axis, 1)
        except Exception as error:
            if out_of_memory(error):
                raise
            why = error.got if isinstance(error, EvalmodeError) else f"{type(error).__name__}: {reason_of(error)}"
            raise ModelRunError(
                "samples were run one at a time, since the model's answer to one changes with the samples beside it, "
                f"and the model fails on one alone: {why}",
                expected="a model whose answer to a sample is that sample's own",
                fix="evalmode.check(model, batch) names the line; exact=False runs batches as they come",
                explain="batch-independent",
            ) from error

    def shrink(self, inputs: Any) -> bool:
        """Halve the executions; once some have run, only to a size at which the first group has the same bits."""
        give_memory_back(self.device)
        axis = rows_axis(inputs)
        rows = LARGEST if isinstance(axis, str) else axis.size
        current = max(self.sizes, default=min(self.most, max(self.known.values(), default=rows)))
        size, others = current // 2, False
        while size >= 1:
            try:
                if self.exact and self.first is not None and not self._same_class(size):
                    size, others = size // 2, True
                    continue
                if not isinstance(axis, str):
                    self._executed(moved(inputs, self.device), axis, size)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                give_memory_back(self.device)
                size //= 2
                continue
            self.most = size
            self.notes.append(f"out of memory at {current} samples: run at {size}")
            if self.first is None:
                self.notes[-1] += (
                    ", before any execution had run: whether larger ones give the same bits, as on a machine with more "
                    "memory, could not be tried"
                )
            self.sizes.clear()
            return True
        self.stuck = SAME_BITS if others else "even with one sample at a time"
        return False

    def _same_class(self, size: int) -> bool:
        if self.first is None:
            return True
        inputs, before, _ = self.first
        axis = rows_axis(inputs)
        if isinstance(axis, str):
            return False
        pairs = zip(tensor_leaves(before), tensor_leaves(self._executed(inputs, axis, size)), strict=True)
        return all(same_bits(one, other) for (_, one), (_, other) in pairs)


@contextlib.contextmanager
def own_streams() -> Iterator[None]:
    """A block that leaves the process's random streams as they were."""
    hold = StreamHold()
    try:
        hold_streams(hold)
        yield
    finally:
        release_streams(hold)
