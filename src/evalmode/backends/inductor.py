"""inductor: torch.compile with frozen weights, for one fixed shape.

What it does
------------
Compiles the model's graph with TorchInductor, weights baked in as constants (`freezing`), every shape fixed. A model
that exports is compiled as one graph without guards: nothing but the checks of the inputs' shapes is left to do at each
call. Another model is compiled as `torch.compile` compiles it, with guards and graph breaks. bf16 (and fp16 on a GPU)
is autocast that is compiled in; outputs keep their dtypes. On CUDA the kernels of an execution are replayed as one CUDA
graph where they can be recorded.

Why it matters
--------------
Fused element-wise operators and no Python between them. It takes almost any model, and on a GPU it is often the
fastest.

Example
-------
    import evalmode

    fast = evalmode.optimize(model, batch, backends=["inductor"])

Use instead
-----------
`aot_inductor` for the same code without Python around it, and in an artifact.

Fix and its safety
------------------
Where it fails for want of a C++ compiler: `apt install g++`. Its results differ from eager's by rounding; the gate
measures by how much.

Limits
------
It does not serialise. A build takes from ten seconds to minutes. On CPU one execution runs at a time: its kernels hold
Python's global lock. Where another thread compiles at the same time, torch builds one after the other.

Source
------
https://docs.pytorch.org/docs/stable/generated/torch.compile.html
https://docs.pytorch.org/docs/stable/user_guide/torch_compiler/torch.compiler_cudagraph_trees.html
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from evalmode.backends.backend import Backend, Chunk, Executor
from evalmode.backends.configuration import Configuration
from evalmode.backends.cuda_graph import recorded
from evalmode.backends.eager import on_copies, torch_precisions
from evalmode.backends.interface import Interface
from evalmode.backends.memory import forget_last_export
from evalmode.backends.portable import Portable, at_precision, module_of, portable, reference_outputs
from evalmode.backends.program import Program
from evalmode.backends.quiet import quiet
from evalmode.backends.refusal import refusal, require
from evalmode.backends.surroundings import undisturbed, with_standing
from evalmode.backends.threads import pinned
from evalmode.backends.torch_executor import TorchExecutor, place_of, standing_for

__all__ = ["INDUCTOR", "compiler_missing", "inductor_options", "inductor_precisions"]


def compiler_missing() -> str | None:
    """None where the C++ compiler is installed that Inductor calls, else what to install."""
    named = os.environ.get("CXX")
    if shutil.which(named.split()[0] if named and named.split() else "g++"):
        return None
    return "without a C++ compiler here: apt install g++"


def inductor_precisions(device: str) -> tuple[str, ...]:
    """The precisions of torch on `device`; on CUDA none without Triton."""
    if device.startswith("cuda") and find_spec("triton") is None:
        return ()
    return torch_precisions(device)


def inductor_options(configuration: Configuration) -> dict[str, Any]:
    """What Inductor is told: weights baked in, and the number of threads that its loops are written for."""
    return {"freezing": True, "cpp.threads": configuration.threads}


def _build(program: Program, configuration: Configuration) -> Executor:
    require("inductor", compiler_missing())
    reference = reference_outputs(program, configuration.batch)
    inputs = tuple(tensor.clone() for tensor in program.inputs_at(configuration.batch))
    standing = standing_for(configuration)
    device = torch.device(configuration.device).type
    try:
        with quiet():
            graph = _graph(program, configuration)
            compiled = _compiled(program, configuration, graph)
            # The first call compiles: with as many threads, and in the same modes, as every later one.
            calls = [
                pinned(
                    configuration.threads,
                    lambda given: with_standing(standing, lambda inputs: undisturbed(device, compiled, inputs), given),
                    inputs,
                )
                for _ in range(2)
            ]
            keeps = _same_places(calls)
            del calls
            if device == "cuda":
                compiled = with_standing(standing, lambda given: recorded(compiled, given), inputs)
    except Exception as error:
        raise refusal("inductor", error) from error
    finally:
        forget_last_export()
    function = _with_outputs(compiled, reference, inputs, graph)
    return TorchExecutor(configuration, function, keeps=keeps)


def _same_places(calls: Sequence[Sequence[Tensor]]) -> frozenset[int]:
    """Where outputs lie that two calls give in the same memory: a constant that was folded is handed out as it is."""
    first, again = ({place_of(output) for output in outputs if isinstance(output, Tensor)} for outputs in calls)
    return frozenset(first & again)


def _graph(program: Program, configuration: Configuration) -> Portable | None:
    """The graph that is compiled; None where torch.compile has to find it out by itself."""
    if program.exported is None:
        return None
    wrap = at_precision(configuration.precision, configuration.device)
    return portable(program, configuration.batch, fixed=True, wrap=wrap)


def _compiled(
    program: Program, configuration: Configuration, graph: Portable | None
) -> Callable[[Chunk], Sequence[Tensor]]:
    options = inductor_options(configuration)
    if graph is not None:
        if hasattr(torch.compiler, "skip_all_guards_unsafe"):
            # Nothing of an exported graph can change: its shapes are fixed, and Inductor's own code checks them.
            options["guard_filter_fn"] = torch.compiler.skip_all_guards_unsafe
        module = module_of(graph.exported)
    else:
        wrap = at_precision(configuration.precision, configuration.device)
        module = program.module if wrap is None else wrap(program.module)
    compiled = torch.compile(_entry(module), dynamic=False, fullgraph=graph is not None, options=options)

    def function(inputs: Chunk) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = compiled(*inputs)
        return outputs

    return function if graph is not None else on_copies(function)


def _entry(module: nn.Module) -> Callable[..., Sequence[Tensor]]:
    """A function with a code object of its own: torch limits how often one code object may be compiled."""

    def entry(*inputs: Tensor) -> Sequence[Tensor]:
        return tuple(module(*inputs))

    return FunctionType(entry.__code__.replace(), entry.__globals__, "entry", None, entry.__closure__)


def _with_outputs(
    compiled: Callable[[Chunk], Sequence[Tensor]], reference: Chunk, inputs: Chunk, graph: Portable | None
) -> Callable[[Chunk], Sequence[Tensor]]:
    """`compiled` with the program's outputs, in the dtypes of the program."""
    dtypes = [output.dtype for output in reference]
    if graph is None:
        return lambda given: [output.to(dtype) for output, dtype in zip(compiled(given), dtypes, strict=True)]
    interface = Interface.of(inputs, reference, graph.constants, graph.wiring, tuple(range(len(inputs))))
    own = [record.element_type for record in interface.computed]

    def run(given: Chunk) -> Sequence[Tensor]:
        computed = tuple(output.to(dtype) for output, dtype in zip(compiled(given), own, strict=True))
        return interface.assembled(given, computed, graph.constants)

    return run


INDUCTOR = Backend(
    name="inductor",
    missing=compiler_missing,
    version=lambda: f"torch {torch.__version__}",
    precisions=inductor_precisions,
    build=_build,
    needs_export=False,
)
