"""eager: PyTorch as it is, one operator after another.

What it does
------------
Runs the model's own `forward` under `no_grad`, or under inference mode where its outputs are small, with a pinned
number of threads. It is given copies of the inputs: a model may write into them. In bf16, and on a GPU in fp16, a copy
of the model with parameters of that precision runs.

Why it matters
--------------
It is what everything else is compared with, it takes any model, it builds in no time, and it is what is left when no
faster plan gives the same answers.

Example
-------
    import evalmode

    fast = evalmode.optimize(model, batch, backends=["eager"])

Use instead
-----------
`openvino` or `onnxruntime` where the model exports, `inductor` where it does not: each is tried by `evalmode optimize`.

Fix and its safety
------------------
Nothing needs fixing: its results are the model's own.

Limits
------
It does not serialise: an artifact needs the model's source. A model that keeps state of its own may answer two calls
from two threads differently, as it does without evalmode.

Source
------
https://docs.pytorch.org/docs/stable/notes/autograd.html#inference-mode
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from evalmode.backends.backend import Backend, Chunk, Executor
from evalmode.backends.configuration import Configuration
from evalmode.backends.instructions import reduced_precisions
from evalmode.backends.portable import reference_outputs
from evalmode.backends.program import Program
from evalmode.backends.refusal import refusal
from evalmode.backends.torch_executor import TorchExecutor, place_of
from evalmode.mode.discover import discover

__all__ = ["EAGER", "on_copies", "torch_precisions"]

_SMALL = 1 << 18  # bytes: outputs that are copied in less time than inference mode saves
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def torch_precisions(device: str) -> tuple[str, ...]:
    """The precisions that torch has instructions for on `device`; none where the device is missing."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return ()
    return ("fp32", *reduced_precisions(device))


def _build(program: Program, configuration: Configuration) -> Executor:
    reference = reference_outputs(program, configuration.batch)
    function: Callable[[Chunk], Sequence[Tensor]]
    if configuration.precision in _DTYPES:
        try:
            function = _reduced(program.module, _DTYPES[configuration.precision], reference)
            with torch.no_grad():
                function(tuple(tensor.clone() for tensor in program.inputs_at(configuration.batch)))
        except Exception as error:
            raise refusal("eager", error, f"run in {configuration.precision}") from error
    elif configuration.device == "cpu" and sum(output.nbytes for output in reference) <= _SMALL:
        function = _in_inference_mode(program.module)
    else:
        function = _as_it_is(program.module)
    held = (tensor for part in discover(program.module).modules for tensor in (*part.parameters(), *part.buffers()))
    return TorchExecutor(configuration, on_copies(function), keeps=frozenset(map(place_of, held)))


def on_copies(function: Callable[[Chunk], Sequence[Tensor]]) -> Callable[[Chunk], Sequence[Tensor]]:
    """`function`, called with copies: whether a model writes into its inputs may depend on what they hold."""
    return lambda inputs: function(tuple(tensor.clone() for tensor in inputs))


def _as_it_is(module: nn.Module) -> Callable[[Chunk], Sequence[Tensor]]:
    return lambda inputs: module(*inputs)


def _in_inference_mode(module: nn.Module) -> Callable[[Chunk], Sequence[Tensor]]:
    def run(inputs: Chunk) -> Sequence[Tensor]:
        with torch.inference_mode():
            outputs = module(*inputs)
        return [output.clone() for output in outputs]  # ordinary tensors, which the caller may write into

    return run


def _reduced(module: nn.Module, dtype: torch.dtype, reference: Chunk) -> Callable[[Chunk], Sequence[Tensor]]:
    own = _copied_as(module, dtype)
    dtypes = [output.dtype for output in reference]

    def run(inputs: Chunk) -> Sequence[Tensor]:
        outputs = own(*(tensor.to(dtype) if _is_fp32(tensor) else tensor for tensor in inputs))
        return [output.to(wanted) for output, wanted in zip(outputs, dtypes, strict=True)]

    return run


def _copied_as(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose fp32 parameters and buffers are of `dtype`; they are never copied as fp32 first."""
    memo: dict[int, object] = {}
    held = {id(tensor): tensor for part in discover(module).modules for tensor in (*part.parameters(), *part.buffers())}
    for tensor in held.values():  # of modules in plain lists too
        cast = tensor.detach().to(dtype) if _is_fp32(tensor) else tensor.detach()
        memo[id(tensor)] = nn.Parameter(cast, requires_grad=False) if isinstance(tensor, nn.Parameter) else cast
    return copy.deepcopy(module, memo)


def _is_fp32(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32


EAGER = Backend(
    name="eager",
    missing=lambda: None,
    version=lambda: f"torch {torch.__version__}",
    precisions=torch_precisions,
    build=_build,
    needs_export=False,
    streams=True,
)
