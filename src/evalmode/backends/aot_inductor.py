"""aot_inductor: TorchInductor's code compiled ahead of time into a shared library.

What it does
------------
Compiles the exported graph, with frozen weights and every shape fixed, into a library that runs without Python and
without compiling anything again. bf16 is autocast that is compiled in; outputs keep their dtypes.

Why it matters
--------------
The fusion of `inductor` with less overhead for each call, several executions at once (streams), and a plan that can be
saved and loaded.

Example
-------
    import evalmode

    fast = evalmode.optimize(model, batch, backends=["aot_inductor"])

Use instead
-----------
`openvino` or `onnxruntime` for an artifact that others will load: theirs holds data alone.

Fix and its safety
------------------
Where it fails for want of a C++ compiler: `apt install g++`. The compiler is needed to build, not to load.

Limits
------
What it saves is machine code, which can do whatever a program can: an artifact of it is loaded only with
`allow_native=True`. It runs with the same version of torch and on a processor with the same instructions. A build takes
from ten seconds to minutes.

Source
------
https://docs.pytorch.org/docs/stable/user_guide/torch_compiler/torch.compiler_aot_inductor.html
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evalmode.backends.backend import Backend, Chunk, Executor
from evalmode.backends.configuration import Configuration
from evalmode.backends.folder import Folder
from evalmode.backends.inductor import compiler_missing, inductor_options, inductor_precisions
from evalmode.backends.interface import Interface, interface_of
from evalmode.backends.memory import forget_last_export, release_file_pages
from evalmode.backends.packing import pack, unpack
from evalmode.backends.portable import at_precision, portable, reference_outputs
from evalmode.backends.program import Program
from evalmode.backends.quiet import quiet
from evalmode.backends.refusal import refusal, require
from evalmode.backends.torch_executor import TorchExecutor

__all__ = ["AOT_INDUCTOR"]

_PARTS = ("interface", "constants", "package")
_PACKAGE = "model.pt2"
_UNPACKED = "/data/aotinductor/"  # where in its own folder the loader puts a package


def _build(program: Program, configuration: Configuration) -> Executor:
    require("aot_inductor", compiler_missing())
    inputs = program.inputs_at(configuration.batch)
    reference = reference_outputs(program, configuration.batch)
    wrap = at_precision(configuration.precision, configuration.device)
    folder = Folder()
    options = {**inductor_options(configuration), "aot_inductor.metadata": {}}
    try:
        with quiet(), torch.inference_mode(mode=False), torch.no_grad():
            graph = portable(program, configuration.batch, fixed=True, wrap=wrap)
            torch._inductor.aoti_compile_and_package(  # noqa: SLF001 - its documented home
                graph.exported, package_path=os.fspath(folder.path / _PACKAGE), inductor_configs=options
            )
    except Exception as error:
        raise refusal("aot_inductor", error) from error
    finally:
        forget_last_export()
    interface = Interface.of(inputs, reference, graph.constants, graph.wiring, tuple(range(len(inputs))))
    return _executor(folder, configuration, interface, graph.constants)


def _load(payload: bytes, configuration: Configuration, outputs: int) -> Executor:
    parts = unpack(payload, _PARTS)
    interface, read = Interface.from_parts(parts, outputs)
    constants = tuple(constant.to(configuration.device) for constant in read)
    folder = Folder()
    (folder.path / _PACKAGE).write_bytes(parts["package"])
    return _executor(folder, configuration, interface, constants)


def _executor(folder: Folder, configuration: Configuration, interface: Interface, constants: Chunk) -> Executor:
    package = folder.path / _PACKAGE
    try:
        with quiet():
            runner = _runner(package, configuration)
    except Exception as error:
        raise refusal("aot_inductor", error, "load") from error
    release_file_pages(_UNPACKED)  # the loader has copied the weights out of them
    dtypes = [record.element_type for record in interface.computed]

    def run(inputs: Chunk) -> Sequence[Tensor]:
        computed = runner(list(inputs))
        cast = tuple(output.to(dtype) for output, dtype in zip(computed, dtypes, strict=True))
        return interface.assembled(inputs, cast, constants)

    def payload() -> bytes:
        return pack({**interface.parts(constants), "package": (folder.path / _PACKAGE).read_bytes()})

    return TorchExecutor(configuration, run, payload)


def _runner(package: Path, configuration: Configuration) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    index = torch.device(configuration.device).index
    # The loader itself, not torch's Python around it, which would also read whatever else an archive holds.
    loader: Any = torch._C._aoti.AOTIModelPackageLoader(  # noqa: SLF001 - what load_package calls
        os.fspath(package), "model", False, configuration.streams, -1 if index is None else index
    )
    runner: Callable[[list[Tensor]], Sequence[Tensor]] = loader.run
    return runner


AOT_INDUCTOR = Backend(
    name="aot_inductor",
    missing=lambda: None,  # a payload is run without the compiler
    version=lambda: f"torch {torch.__version__}",
    precisions=inductor_precisions,
    build=_build,
    load=_load,
    interface=interface_of,
    native_code=True,
    streams=True,
)
