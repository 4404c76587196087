"""A model as a back end sees it: tensors in, tensors out, and which of their axes hold the samples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.export import ExportedProgram

__all__ = ["Program"]


@dataclass(frozen=True, slots=True)
class Program:
    """A model made flat: called with tensors alone, it answers with a tuple of tensors alone.

    `module` is called as `module(*inputs)` and is in evaluation mode; it is never the user's own model. `inputs` are
    example inputs of any batch size. `input_axes` and `output_axes` hold, for each input and output, the axis that
    counts samples, None where the tensor belongs to no sample (a table of positions, say). `exported` is the same
    function as a graph of ATen operators; it is None where the model cannot be exported, and `export_error` then says
    why. With `dynamic` the exported batch axis is free; otherwise it has the length it has in `inputs`.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    input_axes: tuple[int | None, ...]
    output_axes: tuple[int | None, ...]
    exported: ExportedProgram | None = None
    dynamic: bool = True
    export_error: str = ""

    @property
    def batch(self) -> int:
        """The number of samples in the example inputs."""
        return next(
            (len(x.movedim(a, 0)) for x, a in zip(self.inputs, self.input_axes, strict=True) if a is not None), 1
        )

    def inputs_at(self, batch: int) -> tuple[Tensor, ...]:
        """The example inputs repeated or cut to `batch` samples, contiguous."""
        return tuple(
            x.contiguous() if axis is None else _resized(x, axis, batch)
            for x, axis in zip(self.inputs, self.input_axes, strict=True)
        )


def _resized(tensor: Tensor, axis: int, batch: int) -> Tensor:
    length = tensor.shape[axis]
    repeats = [1] * tensor.dim()
    repeats[axis] = -(-batch // length)
    return tensor.repeat(repeats).narrow(axis, 0, batch).contiguous()
