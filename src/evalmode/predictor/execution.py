"""Shape-stable execution: any number of samples through executions of a few fixed shapes, all of one class.

At one fixed shape a sample's bits do not depend on its companions or its position; between shapes they may. So inputs
are made canonical (contiguous, standard strides, aligned), cut into executions of the plan's sizes, and the last
execution is filled up with samples of the same call, whose outputs are dropped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn, final

import torch
from torch import Tensor
from torch.nn import functional

from evalmode.backends.backend import Chunk, Executor
from evalmode.errors import BatchError, OptimizationError
from evalmode.observe.tree import describe, same_bits
from evalmode.predictor.canonical import InputCheck, canonical
from evalmode.predictor.decomposition import Decomposition
from evalmode.predictor.non_finite import answered, broken_samples
from evalmode.predictor.ordinary import nothing_on, ordinary_tensors
from evalmode.predictor.plan import NonFinite, PaddedAxis, Plan

__all__ = ["Execution"]

_LARGE = 1 << 20  # bytes of the outputs of an execution that are worth being written into their place


@final
class Execution:
    """Runs flat inputs by a plan. Safe to call from several threads at once; nothing of one call outlives it.

    `example` are flat inputs of at least one sample. They serve a call without samples where an output belongs to no
    sample, and so cannot be made up from its shape. `plain` is the model itself, for the samples that a plan leaves to
    it.

    Raises, when called:
        BatchError: an input has another dtype, device or shape than the plan, or inputs differ in their samples, or
            hold NaN or infinity where the plan refuses them.
        OptimizationError: an execution gives other outputs than the plan says, as where the number of rows depends on
            values.
    """

    def __init__(
        self,
        plan: Plan,
        executors: Mapping[int, Executor],
        example: Sequence[Tensor] | None = None,
        plain: Executor | None = None,
    ) -> None:
        self._plan = plan
        self._executors = dict(executors)
        self._example = tuple(example) if example is not None else None
        self._cutting = Decomposition(plan.sizes, plan.costs)
        self._device = plan.device
        self._padded = plan.padded
        self._non_finite = plan.non_finite
        self._plain = plain
        padded = {(padding.tensor, padding.axis) for padding in plan.padded.inputs} if plan.padded else set()
        self._checks = tuple(
            InputCheck(tensor, plan.device, {axis for number, axis in padded if number == position})
            for position, tensor in enumerate(plan.inputs)
        )
        self._input_axes = tuple(tensor.axis for tensor in plan.inputs)
        self._output_axes = tuple(tensor.axis for tensor in plan.outputs)
        self._batched = any(axis is not None for axis in self._input_axes)
        self._fitting = {
            size: tuple((torch.Size(tensor.at(size)), tensor.torch_dtype) for tensor in plan.outputs)
            for size in plan.sizes
        }
        self._shared_outputs = tuple(number for number, axis in enumerate(self._output_axes) if axis is None)
        large = sum(math.prod(tensor.at(plan.sizes[-1])) * tensor.torch_dtype.itemsize for tensor in plan.outputs)
        whole = any(self._output_axes) or bool(self._shared_outputs) or plan.padded is not None
        self._large = large >= _LARGE and not whole and self._device.type == "cpu"

    def __call__(self, inputs: Sequence[Tensor], sizes: Sequence[int] | None = None) -> list[Tensor]:
        """The outputs of all samples; `sizes` are the executions to use instead of the cheapest ones."""
        samples = self._checked(inputs)
        if nothing_on(self._device.type, inputs):  # executors see to themselves; a block would cost microseconds
            return self._answers(inputs, samples, sizes)
        with ordinary_tensors(self._device.type):
            return self._answers(inputs, samples, sizes)

    def _answers(self, inputs: Sequence[Tensor], samples: int | None, sizes: Sequence[int] | None) -> list[Tensor]:
        if self._non_finite is not None and samples != 0:
            return self._around_non_finite(inputs, samples, sizes, self._non_finite)
        return self._run_all(inputs, samples, sizes)

    def _run_all(self, inputs: Sequence[Tensor], samples: int | None, sizes: Sequence[int] | None) -> list[Tensor]:
        if self._padded is not None:
            return self._run_padded(inputs, samples, self._padded, sizes)
        return self._run([canonical(tensor) for tensor in inputs], samples, sizes)

    def _around_non_finite(
        self, inputs: Sequence[Tensor], samples: int | None, sizes: Sequence[int] | None, wanted: NonFinite
    ) -> list[Tensor]:
        """The back end answers what it answers as the model does; broken samples are seen to beside it."""
        broken = broken_samples(inputs, self._input_axes, wanted.minus)
        if broken is not None and wanted.answer == "refuse":
            self._refuse_broken(broken)
        outputs = self._run_all(inputs, samples, sizes)
        return answered(self._plain, inputs, self._input_axes, outputs, self._output_axes, broken)

    def _refuse_broken(self, broken: Tensor) -> None:
        places = broken.nonzero()[:, 0].tolist()
        named = f"sample {places[0]} holds" if len(places) < len(broken) else "the inputs hold"
        more = f" ({len(places)} of {len(broken)} samples)" if 1 < len(places) < len(broken) else ""
        raise BatchError(
            f"{named} NaN or infinity{more}, which {self._plan.configurations[0].backend} does not answer as the model "
            "does",
            expected="finite inputs: the file of this plan does not hold the model, which answers others",
            fix="leave such samples out, or use the predictor that evalmode.optimize(model, batch) gives",
        )

    def _checked(self, inputs: Sequence[Tensor]) -> int | None:
        """How many samples the inputs hold; None where no input has samples."""
        samples: int | None = None
        for check, tensor in zip(self._checks, inputs, strict=True):
            length = check(tensor)
            if length is None or length == samples:
                continue
            if samples is not None:
                raise BatchError(
                    f"the inputs differ in their number of samples: {self._lengths(inputs)}",
                    expected="as many samples in each of them",
                )
            samples = length
        return samples

    def _lengths(self, inputs: Sequence[Tensor]) -> str:
        named = zip(self._plan.inputs, inputs, strict=True)
        return ", ".join(f"{plan.name} {tensor.shape[plan.axis]}" for plan, tensor in named if plan.axis is not None)

    def _run_padded(
        self, inputs: Sequence[Tensor], samples: int | None, padded: PaddedAxis, sizes: Sequence[int] | None
    ) -> list[Tensor]:
        lengths = {inputs[padding.tensor].shape[padding.axis] for padding in padded.inputs}
        if len(lengths) > 1:
            names = ", ".join(
                f"{self._plan.inputs[padding.tensor].name} {inputs[padding.tensor].shape[padding.axis]}"
                for padding in padded.inputs
            )
            raise BatchError(f"the inputs differ in their length: {names}", expected="one length")
        (length,) = lengths
        if length > padded.length:
            raise BatchError(
                f"got inputs of length {length}",
                expected=f"at most {padded.length}, the length that the plan was built for",
                fix="truncate them, or optimise with a batch of that length",
            )
        if length == padded.length:
            return self._run([canonical(tensor) for tensor in inputs], samples, sizes)
        missing = padded.length - length
        filled = list(inputs)
        for padding in padded.inputs:
            tensor = filled[padding.tensor]
            places = [0, 0] * (tensor.dim() - padding.axis - 1) + [
                missing * padded.before,
                missing * (not padded.before),
            ]
            filled[padding.tensor] = functional.pad(tensor, places, value=padding.value)
        outputs = self._run([canonical(tensor) for tensor in filled], samples, sizes)
        for padding in padded.outputs:
            whole = outputs[padding.tensor]
            kept = whole.narrow(padding.axis, missing * padded.before, length)
            outputs[padding.tensor] = kept.clone(memory_format=torch.contiguous_format)
        return outputs

    def _run(self, inputs: list[Tensor], samples: int | None, sizes: Sequence[int] | None) -> list[Tensor]:
        if samples is None:
            (outputs,) = self._executors[self._plan.sizes[0]].run([tuple(inputs)])
            return _contiguous(self._fit(outputs, self._plan.sizes[0]))
        if samples == 0:
            return self._empty(inputs)
        cut = self._cutting.sizes_for(samples) if sizes is None else sizes
        if len(cut) == 1 and cut[0] == samples:
            (outputs,) = self._executors[samples].run([tuple(inputs)])
            return _contiguous(self._fit(outputs, samples))
        return self._joined(inputs, samples, cut)

    def _executed(
        self, inputs: list[Tensor], samples: int, cut: Sequence[int], room: list[Tensor]
    ) -> Iterator[tuple[int, Chunk | None]]:
        """The size and the outputs of each execution, one after the other; None where they are in `room` already."""
        start = 0
        for size, group in itertools.groupby(cut):
            executor = self._executors[size]
            starts = [start + size * number for number, _ in enumerate(group)]
            start = starts[-1] + size
            if executor.configuration.streams > 1:  # streams are handed what they may do at once
                for outputs in executor.run([self._chunk(inputs, each, size, samples) for each in starts]):
                    yield size, outputs
                continue
            for each in starts:  # what is made of one execution is let go of before the next
                chunk = self._chunk(inputs, each, size, samples)
                places = tuple(tensor.narrow(0, each, size) for tensor in room) if each + size <= samples else ()
                written = bool(places) and executor.run_into(chunk, places)
                yield size, None if written else executor.run([chunk])[0]
                del chunk, places

    def _chunk(self, inputs: list[Tensor], start: int, size: int, samples: int) -> Chunk:
        if start + size <= samples:
            return tuple(
                tensor if axis is None else canonical(tensor.narrow(axis, start, size))
                for tensor, axis in zip(inputs, self._input_axes, strict=True)
            )
        # never zeros: a sample of the same call cannot give what no sample of the caller's would
        rows = torch.arange(start, start + size, device=self._device) % samples
        return tuple(
            tensor if axis is None else canonical(tensor.index_select(axis, rows))
            for tensor, axis in zip(inputs, self._input_axes, strict=True)
        )

    def _joined(self, inputs: list[Tensor], samples: int, cut: Sequence[int]) -> list[Tensor]:
        """The outputs of all samples, each execution's written into its place as it comes."""
        joined: list[Tensor] = []
        if self._large:
            joined = [
                torch.empty(plan.at(samples), dtype=plan.torch_dtype, device=self._device)
                for plan in self._plan.outputs
            ]
        done = 0
        for size, outputs in self._executed(inputs, samples, cut, joined):
            if outputs is not None:
                self._fit(outputs, size)
                joined = joined or [_room(*pair, samples) for pair in zip(outputs, self._output_axes, strict=True)]
                self._write(outputs, joined, done, samples)
            done += size
            del outputs  # the next execution may use its memory
        return joined

    def _write(self, outputs: Chunk, joined: list[Tensor], done: int, samples: int) -> None:
        """Put an execution's outputs behind those of `done` samples."""
        for number, (output, axis) in enumerate(zip(outputs, self._output_axes, strict=True)):
            if axis is None:
                self._require_agreement(number, [joined[number], output])
                continue
            kept = min(output.shape[axis], samples - done)
            whole = kept == output.shape[axis]
            joined[number].narrow(axis, done, kept).copy_(output if whole else output.narrow(axis, 0, kept))

    def _fit(self, outputs: Sequence[Tensor], size: int) -> Sequence[Tensor]:
        """The outputs of an execution of `size` samples, if they are what the plan says."""
        fitting = self._fitting[size]
        for number, output in enumerate(outputs):
            shape, dtype = fitting[number] if number < len(fitting) else (None, None)
            if output.shape != shape or output.dtype is not dtype:
                self._refuse_output(number, output, size)
        if len(outputs) != len(fitting):
            self._refuse_output(len(outputs), None, size)
        return outputs

    def _refuse_output(self, number: int, output: Tensor | None, size: int) -> NoReturn:
        known = number < len(self._plan.outputs) and output is not None
        name = self._plan.outputs[number].name if known else str(number)
        samples = "1 sample" if size == 1 else f"{size} samples"
        raise OptimizationError(
            f"output {name} is {describe(output) if output is not None else 'missing'} in an execution of {samples}",
            expected=f"{self._plan.outputs[number].dtype}{list(self._fitting[size][number][0])}, as the plan says"
            if known
            else f"{len(self._plan.outputs)} outputs",
            fix="return outputs whose shape and dtype do not depend on values: one row for each sample",
        )

    def _require_agreement(self, number: int, pieces: list[Tensor]) -> None:
        if all(same_bits(piece, pieces[0]) for piece in pieces[1:]):
            return
        raise OptimizationError(
            f"output {self._plan.outputs[number].name} has no batch axis, and differs between parts of a batch",
            expected="an output of each sample, or one that does not depend on the samples",
            fix="leave it out with forward=lambda model, batch: ..., as a loss made from labels, "
            "or return a value for each sample",
        )

    def require_shared_outputs(self) -> None:
        """Refuse a plan with an output that has no batch axis and yet depends on the samples.

        Raises:
            OptimizationError: such an output differs between executions of the example.
        """
        samples = self._checked(self._example) if self._example is not None else None
        if self._example is None or not self._shared_outputs or not samples:
            return
        with ordinary_tensors(self._device.type):
            inputs = [canonical(tensor) for tensor in self._example]
            for size in self._plan.sizes:
                starts = range(0, samples, size)
                chunks = [self._chunk(inputs, start, size, samples) for start in starts]
                executed = self._executors[size].run([*chunks, self._reversed(chunks[0])])
                for number in self._shared_outputs:
                    self._require_agreement(number, [outputs[number] for outputs in executed])

    def _reversed(self, chunk: Chunk) -> Chunk:
        pairs = zip(chunk, self._input_axes, strict=True)
        return tuple(tensor if axis is None else canonical(tensor.flip(axis)) for tensor, axis in pairs)

    def _empty(self, inputs: list[Tensor]) -> list[Tensor]:
        shared: list[Tensor] = []
        if self._shared_outputs:
            if self._example is None:
                names = ", ".join(self._plan.outputs[number].name for number in self._shared_outputs)
                raise BatchError(f"got 0 samples, from which {names} cannot be told", expected="at least one sample")
            pairs = zip(inputs, self._example, self._input_axes, strict=True)
            one = [given if axis is None else kept.narrow(axis, 0, 1) for given, kept, axis in pairs]
            shared = self._run([canonical(tensor) for tensor in one], 1, None)
        return [
            shared[number]
            if plan.axis is None
            else torch.empty(plan.at(0), dtype=plan.torch_dtype, device=self._device)
            for number, plan in enumerate(self._plan.outputs)
        ]

    @property
    def batched(self) -> bool:
        """Whether any input counts samples."""
        return self._batched


def _contiguous(outputs: Sequence[Tensor]) -> list[Tensor]:
    """As those of several executions are: whether `view` works must not depend on the number of samples."""
    return [output.contiguous() for output in outputs]


def _room(output: Tensor, axis: int | None, samples: int) -> Tensor:
    """Memory for all samples of an output; one that belongs to no sample is taken as it is."""
    if axis is None:
        return output
    shape = (*output.shape[:axis], samples, *output.shape[axis + 1 :])
    return torch.empty(shape, dtype=output.dtype, device=output.device)
