"""Inputs as an execution wants them: the plan's dtype, device and shape, contiguous, with standard strides, aligned.

Kernels are chosen by strides and alignment, and other kernels round otherwise: a channels-last image, or a slice that
begins in the middle of a cache line, may give a sample other bits.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Never

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from evalmode.errors import BatchError
from evalmode.observe.tree import describe
from evalmode.predictor.plan import IntegerRange, TensorPlan

__all__ = ["InputCheck", "canonical"]

_ALIGNMENT = 64  # bytes: what torch's own allocator gives on CPU
_KEPT_SHAPES = 1024

_strides: dict[torch.Size, tuple[int, ...]] = {}  # worked out once: this runs for every input of every call


class InputCheck:
    """Tells the number of samples in an input, or refuses it. `free` are the axes that may be of any length.

    Called with an input, it gives its number of samples; None for one that belongs to no sample.

    Raises, when called:
        BatchError: the input has another dtype, device or shape, or holds whole numbers that were not tested: where a
            model refuses a token beyond its table, a back end may read other memory. Nothing is cast or moved: the plan
            was verified on its own dtype, and a cast would hide a mistake.
    """

    def __init__(self, plan: TensorPlan, device: torch.device, free: Collection[int] = ()) -> None:
        self._plan = plan
        self._dtype = plan.torch_dtype
        self._device = device
        self._axis = plan.axis
        fixed = range(len(plan.shape))
        self._fixed = tuple((axis, plan.shape[axis]) for axis in fixed if axis != plan.axis and axis not in free)
        self._free = frozenset(free)
        self._cpu = device.type == "cpu"
        self._values = plan.values
        self._known: dict[torch.Size, tuple[int | None]] = {}

    def __call__(self, tensor: Tensor) -> int | None:
        if (
            tensor.dtype is not self._dtype
            or not ((self._cpu and tensor.is_cpu) or self._same_place(tensor.device))
            or tensor.layout is not torch.strided
            or tensor.is_nested
        ):
            self._refuse(tensor)
        if self._values is not None and tensor.numel():
            least, most = torch.aminmax(tensor)
            if int(least) < self._values.least or int(most) > self._values.most:
                self._refuse_values(tensor, self._values)
        shape = tensor.shape
        known = self._known.get(shape)
        if known is not None:
            return known[0]
        if len(shape) != len(self._plan.shape) or any(shape[axis] != length for axis, length in self._fixed):
            self._refuse(tensor)
        if any(shape[axis] == 0 for axis in self._free):
            self._refuse(tensor)
        samples = None if self._axis is None else shape[self._axis]
        if len(self._known) < _KEPT_SHAPES:
            self._known[shape] = (samples,)
        return samples

    def _same_place(self, device: torch.device) -> bool:
        """A device without an index is the current one of its kind."""
        if device == self._device:
            return True
        if device.type != self._device.type or self._device.index is not None or self._cpu:
            return False
        return device.index == torch.accelerator.current_device_index()

    def _refuse_values(self, tensor: Tensor, values: IntegerRange) -> Never:
        """Shapes are looked at first: they say more where an input was taken for another."""
        plan = self._plan
        if len(tensor.shape) != len(plan.shape) or any(tensor.shape[axis] != length for axis, length in self._fixed):
            self._refuse(tensor)
        where = ((tensor < values.least) | (tensor > values.most)).nonzero()[0].tolist()
        sample = f"sample {where[plan.axis]} of {plan.name}" if plan.axis is not None else plan.name
        raise BatchError(
            f"{sample} holds {int(tensor[tuple(where)]):,}",
            expected=f"whole numbers from {values}, which the model takes and this plan was tested on",
            fix="look at where the value comes from (a token beyond the vocabulary?); if the model takes it, optimise "
            "with a batch that holds such values",
        )

    def _refuse(self, tensor: Tensor) -> Never:
        plan = self._plan
        sizes = ("any" if axis in self._free or size is None else str(size) for axis, size in enumerate(plan.shape))
        expected = f"{plan.dtype}[{', '.join(sizes)}] on {self._device}"
        if tensor.dtype is not self._dtype:
            fix = f"convert it first, as {plan.name}.to(torch.{plan.dtype}): nothing is cast silently"
        elif tensor.is_nested:
            fix = f"torch.nested.to_padded_tensor({plan.name}, 0), or call it with each sample alone"
        elif tensor.layout is not torch.strided:
            fix = f"{plan.name}.to_dense()"
        elif tensor.device.type != self._device.type:
            fix = f"{plan.name}.to({str(self._device)!r})"
        elif any(tensor.shape[axis : axis + 1] == (0,) for axis in self._free):
            fix = "give at least one position: nothing real would be left among the padding"
        else:
            fix = "optimise with a batch of this shape: only the number of samples is free in a plan"
        raise BatchError(
            f"{plan.name} is {describe(tensor)}"
            + (f" on {tensor.device}" if tensor.device != self._device else "")
            + (f", {tensor.layout}" if tensor.layout is not torch.strided else ""),
            expected=expected,
            fix=fix,
        )


def canonical(tensor: Tensor) -> Tensor:
    """The same values in a plain tensor with standard strides and alignment; copied only where they differ.

    Raises:
        BatchError: a tensor of a class that holds its values elsewhere.

    Example:
        >>> canonical(torch.zeros(2, 3).t()).stride()
        (2, 1)
    """
    if type(tensor) is not Tensor:
        tensor = _plain(tensor)
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.data_ptr() % _ALIGNMENT == 0 and not tensor.is_conj() and not tensor.is_neg():
        strides = _standard_strides(tensor.shape)
        if tensor.stride() == strides:
            return tensor
        if tensor.is_contiguous():  # an axis of length 1 may have any stride
            return tensor.as_strided(tensor.shape, strides)
    return tensor.clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg()


def _plain(tensor: Tensor) -> Tensor:
    if is_traceable_wrapper_subclass(tensor):
        raise BatchError(
            f"got a {type(tensor).__name__}, which is no plain tensor", expected="torch.Tensor", fix="pass its values"
        )
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - what torch's own subclasses use
        return tensor.as_subclass(Tensor)


def _standard_strides(shape: torch.Size) -> tuple[int, ...]:
    known = _strides.get(shape)
    if known is not None:
        return known
    strides = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    found = tuple(reversed(strides))
    if len(_strides) < _KEPT_SHAPES:
        _strides[shape] = found
    return found
