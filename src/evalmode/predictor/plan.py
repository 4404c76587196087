"""What an optimised predictor runs, as plain data: its tensors, their axes, and its execution shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import torch

from evalmode.backends.configuration import Configuration
from evalmode.certificate import PlanRecord
from evalmode.predictor.form import MappingNode, Node, SequenceNode, is_deeper
from evalmode.predictor.signature import Signature, TensorSpec
from evalmode.predictor.structure import Structure

__all__ = ["AxisPadding", "IntegerRange", "NonFinite", "PaddedAxis", "Plan", "TensorPlan", "spec_of"]

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_LARGEST_EXECUTION = 2**20  # samples
_DEEPEST = 100  # containers within containers
_LONGEST = 2**40  # of any axis: what a file may claim


class IntegerRange(msgspec.Struct, frozen=True):
    """The whole numbers from `least` to `most`, both of them included."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise ValueError(f"no whole number lies between {self.least} and {self.most}")

    def __str__(self) -> str:
        return f"{self.least:,} to {self.most:,}"


class TensorPlan(msgspec.Struct, frozen=True):
    """One tensor of a plan: its name, dtype and shape; `axis` is the one that counts samples, None where none does.

    The length of that axis in `shape` is None: any number of samples. `values` are the whole numbers that an input may
    hold, where not all of its dtype were tested.

    Example:
        >>> TensorPlan("logits", "float32", (None, 10), 0).at(2)
        (2, 10)
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    axis: int | None
    values: IntegerRange | None = None

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"{self.dtype!r} is no dtype of torch")
        if self.axis is not None and not 0 <= self.axis < len(self.shape):
            raise ValueError(f"{self.name} has no axis {self.axis}")
        if any((size is None) != (axis == self.axis) for axis, size in enumerate(self.shape)):
            raise ValueError(f"the free axis of {self.name} is not the one that counts samples")
        if any(size is not None and not 0 <= size <= _LONGEST for size in self.shape):
            raise ValueError(f"{self.name} has an axis of impossible length")
        if self.values is not None and not _holds_whole(self.torch_dtype, self.values):
            raise ValueError(f"{self.name} of {self.dtype} holds no whole numbers from {self.values}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype."""
        return _DTYPES[self.dtype]

    def at(self, samples: int) -> tuple[int, ...]:
        """The shape for so many samples."""
        return tuple(samples if size is None else size for size in self.shape)


def _holds_whole(dtype: torch.dtype, values: IntegerRange) -> bool:
    if dtype.is_floating_point or dtype.is_complex or dtype is torch.bool:
        return False
    kind = torch.iinfo(dtype)
    return kind.min <= values.least and values.most <= kind.max


def spec_of(name: str, tensor: torch.Tensor, axis: int | None, values: IntegerRange | None = None) -> TensorPlan:
    """The plan of a tensor like `tensor`; `values` are the whole numbers that it may hold, None for any.

    Example:
        >>> spec_of("ids", torch.zeros(4, 7, dtype=torch.long), 0, IntegerRange(0, 99))
        TensorPlan(name='ids', dtype='int64', shape=(None, 7), axis=0, values=IntegerRange(least=0, most=99))
    """
    shape = tuple(None if position == axis else size for position, size in enumerate(tensor.shape))
    if values is not None and values == IntegerRange(torch.iinfo(tensor.dtype).min, torch.iinfo(tensor.dtype).max):
        values = None
    return TensorPlan(name, str(tensor.dtype).removeprefix("torch."), shape, axis, values)


def _holds(dtype: torch.dtype, value: float) -> bool:
    """Whether a tensor of `dtype` can be padded with `value`."""
    if dtype.is_complex or dtype.is_floating_point:
        return abs(value) <= torch.finfo(dtype).max
    if dtype is torch.bool:
        return value in {0, 1}
    return value == int(value) and torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max


class AxisPadding(msgspec.Struct, frozen=True):
    """One tensor, by its position, with the axis that is padded or cut, and for an input the value to pad with."""

    tensor: int
    axis: int
    value: int | float | bool = 0


class PaddedAxis(msgspec.Struct, frozen=True):
    """An axis, as of tokens, that inputs may fill only in part: they are padded at its end, and outputs are cut there.

    Built only where a wide evaluation has shown that what is masked takes no part. `mask` is the position of the mask
    among the inputs; it is padded too, with its value for padding: 0, or 1 as `key_padding_mask` has it. `length` is
    the length that the plan runs. With `before` padding lies before what is real, as the tokenisers of models that
    generate have it.
    """

    mask: int
    length: int
    inputs: tuple[AxisPadding, ...]
    outputs: tuple[AxisPadding, ...] = ()
    before: bool = False

    def __post_init__(self) -> None:
        masks = [padding for padding in self.inputs if padding.tensor == self.mask]
        if not masks or masks[0].value not in {0, 1}:
            raise ValueError("the mask of a padded axis is padded too, with 0 or 1")
        if self.length < 1 or not all(math.isfinite(padding.value) for padding in (*self.inputs, *self.outputs)):
            raise ValueError("a padded axis has at least one place, and finite padding")


class NonFinite(msgspec.Struct, frozen=True):
    """What answers samples whose inputs hold NaN or infinity, where the back end does not answer them as the model.

    `"nan"`: NaN, which the model would give; `"plain"`: the model itself, each sample alone; `"refuse"`: nothing, where
    the model is not at hand. Minus infinity counts in the inputs at the positions `minus`: masks are made of it, so
    elsewhere it is a value like others.
    """

    answer: Literal["nan", "plain", "refuse"]
    minus: tuple[int, ...] = ()

    def __str__(self) -> str:
        how = {"nan": "answered with NaN", "plain": "answered by the model itself", "refuse": "refused"}[self.answer]
        return f"samples with NaN or infinity are {how}"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a predictor runs.

    `configurations` are its execution shapes, the smallest first, all of one class: whichever of them runs a sample,
    its bits are the same; `costs` are the seconds of one execution of each. `input_form` and `output_form` are the
    trees around the tensors; `call` and `parameters` tell how it is called. `weights` is the fingerprint of the model,
    `record` the line of the plan in the certificate. With `stable=False` bits may depend on the companions.
    `non_finite` is None where the back end answers NaN and infinity as the model does.

    Raises:
        ValueError: the parts do not fit together.
    """

    configurations: tuple[Configuration, ...]
    costs: tuple[float, ...]
    inputs: tuple[TensorPlan, ...]
    outputs: tuple[TensorPlan, ...]
    input_form: Node
    output_form: Node
    call: Literal["mapping", "tuple", "single", "forward"]
    parameters: tuple[str, ...] = ()
    weights: str = ""
    record: PlanRecord | None = None
    padded: PaddedAxis | None = None
    stable: bool = True
    non_finite: NonFinite | None = None

    def __post_init__(self) -> None:
        sizes = self.sizes
        if not sizes or sizes != tuple(sorted(set(sizes))) or not 1 <= sizes[0] <= sizes[-1] <= _LARGEST_EXECUTION:
            raise ValueError(f"execution sizes {sizes} are not ascending and positive, or too large")
        if len({configuration.device for configuration in self.configurations}) != 1:
            raise ValueError("the executions of a plan run on one device")
        try:
            torch.device(self.configurations[0].device)
        except RuntimeError as error:
            raise ValueError(f"{self.configurations[0].device!r} is no device of torch") from error
        if len(self.costs) != len(sizes) or not all(math.isfinite(cost) and cost > 0 for cost in self.costs):
            raise ValueError("every execution size has a positive cost")
        for kind, form, tensors in (
            ("input", self.input_form, self.inputs),
            ("output", self.output_form, self.outputs),
        ):
            if is_deeper(form, _DEEPEST):
                raise ValueError(f"the {kind} form is more than {_DEEPEST} containers deep")
            if len(Structure(form).paths) != len(tensors):
                raise ValueError(f"the {kind} form has {len(Structure(form).paths)} tensors, not {len(tensors)}")
        if Structure(self.input_form).omitted:
            raise ValueError("an input form leaves nothing out")
        self._check_call()
        if self.padded is not None:
            self._check_padding(self.padded)
        if self.non_finite is not None and not all(0 <= place < len(self.inputs) for place in self.non_finite.minus):
            raise ValueError(f"minus infinity of inputs {self.non_finite.minus} of {len(self.inputs)}")

    def _check_call(self) -> None:
        form = self.input_form
        if self.call == "mapping" and not (isinstance(form, MappingNode) and not form.attributes):
            raise ValueError("a batch that is called as a mapping is none")
        if self.call == "tuple" and not (isinstance(form, SequenceNode) and form.kind == "tuple"):
            raise ValueError("a batch that is called as a tuple is none")

    def _check_padding(self, padded: PaddedAxis) -> None:
        for kind, paddings, tensors in (
            ("input", padded.inputs, self.inputs),
            ("output", padded.outputs, self.outputs),
        ):
            if len({(padding.tensor, padding.axis) for padding in paddings}) != len(paddings):
                raise ValueError(f"an axis of an {kind} is padded twice")
            for padding in paddings:
                if not 0 <= padding.tensor < len(tensors):
                    raise ValueError(f"a padded axis names {kind} {padding.tensor} of {len(tensors)}")
                tensor = tensors[padding.tensor]
                fits = 0 <= padding.axis < len(tensor.shape) and tensor.shape[padding.axis] == padded.length
                if not fits or padding.axis == tensor.axis:
                    raise ValueError(f"axis {padding.axis} of {kind} {tensor.name} has not the padded length")
                if not _holds(tensor.torch_dtype, padding.value):
                    raise ValueError(f"{kind} {tensor.name} is padded with {padding.value}, no {tensor.dtype}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The execution sizes in samples, ascending."""
        return tuple(configuration.batch for configuration in self.configurations)

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""
        return torch.device(self.configurations[0].device)

    @property
    def signature(self) -> Signature:
        """The inputs as a predictor shows them."""
        return Signature(self._specs(self.inputs, self.padded.inputs if self.padded else ()), self.call)

    def gives(self) -> tuple[TensorSpec, ...]:
        """The outputs, as `signature` shows the inputs."""
        return self._specs(self.outputs, self.padded.outputs if self.padded else ())

    def _specs(self, tensors: Sequence[TensorPlan], paddings: Sequence[AxisPadding]) -> tuple[TensorSpec, ...]:
        longest = {(padding.tensor, padding.axis): self.padded.length for padding in paddings if self.padded}
        return tuple(
            TensorSpec(
                tensor.name,
                tensor.torch_dtype,
                tuple(None if (position, axis) in longest else size for axis, size in enumerate(tensor.shape)),
                {axis: length for (place, axis), length in longest.items() if place == position},
            )
            for position, tensor in enumerate(tensors)
        )

    def __str__(self) -> str:
        first = self.configurations[0]
        sizes = ", ".join(map(str, self.sizes))
        threads = "1 thread" if first.threads == 1 else f"{first.threads} threads"
        text = (
            f"{first.backend} {first.precision}, executions of {sizes} sample{'s' if sizes != '1' else ''}, {threads}"
        )
        return text + (f", {first.streams} streams" if first.streams > 1 else "")
