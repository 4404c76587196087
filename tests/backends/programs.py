"""Small programs of many kinds, and what they answer in float64: the oracle of every back end."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evalmode.backends.program import Program
from evalmode.backends.quiet import quiet

Outputs = tuple[Tensor, ...]


class ConvolutionAndNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        nn.init.uniform_(self.norm.running_mean, -1, 1)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Outputs:
        return (self.head(self.norm(self.convolution(image)).relu().mean((2, 3))),)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Outputs:
        hidden = self.layer(self.embedding(ids), src_key_padding_mask=mask)
        return hidden, self.head(hidden[:, 0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)

    def forward(self, steps: Tensor) -> Outputs:
        output, (hidden, cell) = self.lstm(steps)
        return output, hidden, cell


class OddOutputs(nn.Module):
    """Inputs, constants, repeated, integer, boolean, scalar and half-precision outputs, and an input without use."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, x: Tensor, unused: Tensor, ids: Tensor) -> Outputs:
        y = self.linear(x)
        same = x.detach(), y, y.view(-1, 3), y[:, 1:]
        others = ids.half(), torch.arange(3) + 1, x, y * 0 + 2
        return (y, x, y.argmax(1), y, self.table, ids + 1, y.sum(), y > 0, *same, *others)


class WritesIntoItsInput(nn.Module):
    def forward(self, x: Tensor) -> Outputs:
        x += 1
        return x * 2, x


class NoBatchAxis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Outputs:
        return (self.weight @ x, torch.linalg.vector_norm(x))


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Outputs]
    names: tuple[str, ...]
    input_axes: tuple[int | None, ...]
    output_axes: tuple[int | None, ...]

    def program(self, *, dynamic: bool = True, export: bool = True) -> Program:
        torch.manual_seed(0)
        module = self.make().eval()
        inputs = self.inputs(3)
        dynamic = dynamic and any(axis is not None for axis in self.input_axes)
        free = tuple(
            {axis: torch.export.Dim.DYNAMIC} if dynamic and axis is not None else None for axis in self.input_axes
        )
        exported = None
        if export:
            with torch.no_grad(), quiet():  # an LSTM warns of its flat weights
                own = tuple(tensor.clone() for tensor in inputs)
                exported = torch.export.export(module, own, dynamic_shapes=free, strict=False)
        return Program(
            module, inputs, self.names, self.input_axes, self.output_axes, exported, dynamic, "" if export else "asked"
        )

    def expected(self, program: Program, inputs: Outputs) -> Outputs:
        """What the module answers in float64, with the element types that it has in float32."""
        wide = copy.deepcopy(program.module).double()
        with torch.no_grad():
            usual = program.module(*(tensor.clone() for tensor in inputs))
            exact = wide(*(tensor.double() if tensor.dtype is torch.float32 else tensor.clone() for tensor in inputs))
        return tuple(found.to(as_usual.dtype) for found, as_usual in zip(exact, usual, strict=True))


def _images(batch: int) -> Outputs:
    return (torch.randn(batch, 3, 8, 8),)


def _tokens(batch: int) -> Outputs:
    mask = torch.zeros(batch, 7, dtype=torch.bool)
    mask[:, 5:] = True
    return torch.randint(0, 50, (batch, 7)), mask


def _steps(batch: int) -> Outputs:
    return (torch.randn(batch, 5, 6),)


def _odd(batch: int) -> Outputs:
    return torch.randn(batch, 4), torch.randn(batch, 2), torch.randint(0, 9, (batch, 4))


CASES = (
    Case("convolution", ConvolutionAndNorm, _images, ("image",), (0,), (0,)),
    Case("attention", Attention, _tokens, ("ids", "mask"), (0, 0), (0, 0)),
    Case("recurrent", Recurrent, _steps, ("steps",), (0,), (0, 1, 1)),
    Case(
        "odd outputs", OddOutputs, _odd, ("x", "unused", "ids"), (0, 0, 0),
        (0, 0, 0, 0, None, 0, None, 0, 0, 0, 0, 0, 0, None, 0, 0),
    ),
    Case("writes into its input", WritesIntoItsInput, lambda batch: (torch.randn(batch, 4),), ("x",), (0,), (0, 0)),
    Case("no batch axis", NoBatchAxis, lambda batch: (torch.randn(4, 4),), ("x",), (None,), (None, None)),
)  # fmt: skip
BY_NAME = {case.name: case for case in CASES}


class Simple(nn.Module):
    """A function of one tensor as a program's module."""

    def __init__(self, function: Callable[[Tensor], Outputs]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Outputs:
        return self.function(x)


def simple(function: Callable[[Tensor], Outputs], x: Tensor, *, export: bool = True) -> Program:
    """The program of a function of one tensor, whose first axis counts samples."""
    module = Simple(function).eval()
    exported = None
    if export:
        with torch.no_grad():
            exported = torch.export.export(module, (x.clone(),), strict=False)
            outputs = len(exported.graph_signature.user_outputs)
    else:
        outputs = len(module(x.clone()))
    return Program(module, (x,), ("x",), (0,), (0,) * outputs, exported, False, "" if export else "asked")
