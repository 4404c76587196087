"""A program as back ends of graphs can take it: distinct outputs that are computed, at a batch size of choice.

Converters stumble over outputs that are an input, a constant or the same tensor twice, and over graphs that write into
their inputs. Such outputs never reach them: a `Wiring` says where each comes from and puts them together afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from evalmode.backends.chunk import Chunk
from evalmode.backends.interface import Wiring
from evalmode.backends.program import Program
from evalmode.errors import BackendError

__all__ = ["Portable", "at_precision", "module_of", "portable", "reference_outputs"]


@dataclass(frozen=True, slots=True)
class Portable:
    """A graph, the wiring of its outputs, and the constants among them."""

    exported: ExportedProgram
    wiring: Wiring
    constants: tuple[Tensor, ...]


def portable(program: Program, batch: int, *, fixed: bool = False, wrap: type[nn.Module] | None = None) -> Portable:
    """The program's graph for executions of `batch` samples.

    Its batch axis may still be free, unless `fixed`. `wrap` is a module class around the program's module, applied
    before it is exported again.

    Raises:
        BackendError: the model cannot be exported, keeps state of its own, or computes nothing.
    """
    if program.exported is None:
        raise BackendError(
            f"the model cannot be exported: {program.export_error or 'it has no graph'}",
            expected="a model that torch.export takes",
            fix="use a back end that needs no graph: eager, inductor",
        )
    exported = program.exported if _admits(program, batch) else _export(program.module, program.inputs_at(batch))
    _refuse_state(exported)
    sources, constants = _sources(exported)
    wiring = Wiring(tuple(sources))
    if not wiring.computed:
        raise BackendError("the model computes nothing: its outputs are its inputs or constants")
    mutates = _mutates(exported)
    if mutates or fixed or wrap is not None or not wiring.straight:
        kept = wiring.first_positions()
        inner = wrap(module_of(exported)) if wrap is not None else module_of(exported)
        exported = _export(_Selected(inner, kept, copies=mutates), program.inputs_at(batch))
    return Portable(exported, wiring, constants)


def at_precision(precision: str, device: str) -> type[nn.Module] | None:
    """The class of a wrapper that computes at a reduced precision and answers in fp32; None where none is needed."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in dtypes:
        return None

    class Autocast(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module
            self.training = False  # of this module alone: an exported one refuses eval()

        def forward(self, *inputs: Tensor) -> Chunk:
            with torch.autocast(torch.device(device).type, dtypes[precision]):
                return tuple(self.module(*inputs))

    return Autocast


def reference_outputs(program: Program, batch: int) -> Chunk:
    """What the program's own module answers for its example inputs at `batch` samples.

    Raises:
        BackendError: the module fails, or answers with something else than a tuple of tensors.
    """
    inputs = tuple(tensor.clone() for tensor in program.inputs_at(batch))
    try:
        with torch.inference_mode():
            outputs = program.module(*inputs)
    except Exception as error:
        raise BackendError(f"the model fails on {batch} samples: {_line(error)}") from error
    if not isinstance(outputs, tuple | list) or not all(isinstance(output, Tensor) for output in outputs):
        raise BackendError("the program's module answers with something else than a tuple of tensors")
    return tuple(outputs)


class _Selected(nn.Module):
    """Some of a module's outputs; with `copies`, what it writes into is not the caller's."""

    def __init__(self, module: nn.Module, kept: tuple[int, ...], *, copies: bool) -> None:
        super().__init__()
        self.training = False
        self.module = module
        self.kept = kept
        self.copies = copies

    def forward(self, *inputs: Tensor) -> Chunk:
        outputs = self.module(*(tensor.clone() for tensor in inputs)) if self.copies else self.module(*inputs)
        return tuple(outputs[index] for index in self.kept)


def _export(module: nn.Module, inputs: Chunk) -> ExportedProgram:
    own = tuple(tensor.clone() for tensor in inputs)  # a module that writes into its inputs writes into these
    with _usual_autograd():
        return torch.export.export(module, own, strict=False)


@contextlib.contextmanager
def _usual_autograd() -> Iterator[None]:
    # Tensors made while exporting must not be inference tensors, whatever the caller is in.
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


def module_of(exported: ExportedProgram) -> nn.Module:
    """The exported program as a module that shares its weights, without checks of its inputs."""
    try:
        return exported.module(check_guards=False)
    except TypeError:  # torch before 2.9
        return exported.module()


def _admits(program: Program, batch: int) -> bool:
    """Whether the exported graph runs at `batch` samples."""
    exported = program.exported
    if exported is None:
        return False
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    for name, wanted in zip(exported.graph_signature.user_inputs, program.inputs_at(batch), strict=True):
        example = placeholders[str(name)].meta.get("val")
        if not isinstance(example, Tensor):
            return False
        for length, needed in zip(example.shape, wanted.shape, strict=True):
            if isinstance(length, int):
                if length != needed:
                    return False
                continue
            limits = exported.range_constraints.get(length.node.expr)
            if limits is not None and not int(limits.lower) <= needed <= limits.upper:
                return False
    return True


def _sources(exported: ExportedProgram) -> tuple[list[tuple[str, int]], tuple[Tensor, ...]]:
    signature = exported.graph_signature
    inputs = {str(name): index for index, name in enumerate(signature.user_inputs)}
    owned = {
        spec.arg.name: spec.target
        for spec in signature.input_specs
        if spec.kind in {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR} and hasattr(spec.arg, "name")
    }
    sources: list[tuple[str, int]] = []
    constants: list[Tensor] = []
    computed: dict[str, int] = {}
    for spec in signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            continue
        name = getattr(spec.arg, "name", None)
        if name is None:
            raise BackendError("an output of the model is no tensor")
        if name in inputs:
            sources.append(("input", inputs[name]))
        elif name in owned:
            target = str(owned[name])
            held = exported.state_dict.get(target, exported.constants.get(target))
            if not isinstance(held, Tensor):
                raise BackendError(f"the output `{target}` is no tensor")
            sources.append(("constant", len(constants)))
            constants.append(held.detach().clone())
        else:
            sources.append(("computed", computed.setdefault(name, len(computed))))
    return sources, tuple(constants)


def _mutates(exported: ExportedProgram) -> bool:
    return any(
        node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        for module in exported.graph_module.modules()
        if isinstance(module, fx.GraphModule)
        for node in module.graph.nodes
    )


def _refuse_state(exported: ExportedProgram) -> None:
    if not _mutates(exported) and not exported.graph_signature.buffers_to_mutate:
        return
    with torch.no_grad():
        written = exported.run_decompositions({}).graph_signature.buffers_to_mutate
    if written:
        raise BackendError(
            f"the model writes its buffer `{next(iter(written.values()))}`, which a graph of constants cannot keep",
            expected="a forward pass that changes no state",
            fix="evalmode check MODEL --clause no-state-change",
        )


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
