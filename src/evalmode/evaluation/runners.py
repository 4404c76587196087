"""What runs a model: the runner for a module, a predictor of any kind, or an optimised plan."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import torch
from torch import nn

from evalmode.errors import NotAModuleError, UsageError
from evalmode.evaluation.calling import Calling
from evalmode.evaluation.devices import give_memory_back, moved, on_device
from evalmode.evaluation.groups import LARGEST
from evalmode.evaluation.known import Known
from evalmode.evaluation.outputs import joined
from evalmode.evaluation.running import SAME_BITS, ModuleRunner, Runner, own_streams
from evalmode.evaluation.untouched import Untouched
from evalmode.observe.batching import find_batch_axis, select_samples
from evalmode.predictor.module_backed import ModulePredictor
from evalmode.predictor.optimized import OptimizedPredictor
from evalmode.predictor.protocol import Predictor

__all__ = ["PlanRunner", "runner_for"]


class PlanRunner(Runner):
    """An optimised predictor, in groups that fill its largest executions; any group gives a sample the same bits."""

    def __init__(self, predictor: OptimizedPredictor, forward: Any) -> None:
        if forward is not None:
            raise UsageError(
                "forward= was given beside an optimised predictor",
                expected="the way of calling that it was built with",
                fix="evalmode.optimize(model, batch, forward=...)",
            )
        super().__init__(predictor.plan.device)
        self.predictor, self.plan = predictor, str(predictor.plan)
        self.predict = Untouched(predictor.predict, "the model", self.notes.append)
        self.sizes = set(predictor.execution_sizes)
        largest = max(self.sizes) * max(predictor.plan.configurations[-1].streams, 1)
        self.size = largest * max(1, 64 // largest)
        self.step: int | None = None
        if not predictor.plan.stable:
            self.exact = False
            self.notes.append("the plan was made with stable=False: bits may depend on what runs together")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self.predictor.require_fresh()
        with own_streams():
            yield

    def outputs(self, inputs: Any, *, late: bool = False) -> Any:
        inputs = moved(inputs, self.device)
        axis = find_batch_axis(inputs) if self.step is not None else ""
        if self.step is None or isinstance(axis, str):
            return self.predict(inputs)
        step = self.step
        starts = range(0, axis.size, step)
        parts = [
            self.predict(select_samples(inputs, axis, range(start, min(start + step, axis.size)))) for start in starts
        ]
        return joined(parts, step)

    def known_now(self) -> Known:
        return msgspec.structs.replace(super().known_now(), most=self.step or 0)

    def go_on(self, known: Known) -> None:
        super().go_on(known)
        self.step = known.most or None

    def shrink(self, inputs: Any) -> bool:
        """Hand over fewer samples at once, down to the plan's smallest execution: all of them are of one class."""
        give_memory_back(self.device)
        smaller = [size for size in self.predictor.execution_sizes if size < (self.step or self.size or LARGEST)]
        if not smaller or not self.exact:
            self.stuck = "and no smaller execution is in the plan" if self.exact else SAME_BITS
            return False
        self.step = smaller[-1]
        self.notes.append(f"out of memory: {self.step} samples at a time were handed to the plan")
        return True


def runner_for(
    model: Any, forward: Callable[[Any, Any], Any] | None, device: str | torch.device | None, *, whole: bool = False
) -> tuple[Runner, nn.Module | None]:
    """What runs `model`, and the module behind it, if there is one.

    Raises:
        NotAModuleError: it is neither a module nor a predictor.
        UsageError: a weight has no numbers, it cannot run on `device`, or `forward` does not go with it.
        StalePredictorError: the model that a predictor was built from has other weights now.
    """
    if isinstance(model, OptimizedPredictor):
        model.require_fresh()
        if device is not None and torch.device(device).type != model.plan.device.type:
            raise UsageError(
                f"a predictor built for {model.plan.device} was to run on {device}", fix="leave device= out"
            )
        return PlanRunner(model, forward), None
    if isinstance(model, ModulePredictor):
        module = model.model
        forward = forward if forward is not None else model._forward  # noqa: SLF001 - the rule that it was made with
    elif isinstance(model, Predictor):
        if forward is not None:
            raise UsageError("forward= was given beside a predictor", expected="a module", fix="leave forward= out")
        return ModuleRunner(model.predict, torch.device(device or "cpu"), None, whole=whole, named=True), None
    elif isinstance(model, nn.Module):
        module = model
    else:
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise NotAModuleError(
            f"evaluate got {got}",
            expected="a torch.nn.Module, a predictor, or an evalmode.Task",
            fix="evalmode.evaluate(model, data)",
        )
    placed, where = on_device(module, device)
    return ModuleRunner(Calling(placed, forward), where, placed, whole=whole, named=forward is not None), placed
