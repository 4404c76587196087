"""From a model and a batch to a Program: flat, copied, in evaluation, exported where that gives the same results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from evalmode.backends.program import Program
from evalmode.errors import BatchError
from evalmode.mode.discover import require_modules
from evalmode.mode.switch import evaluating
from evalmode.observe.batching import BatchAxis, difference, find_batch_axis
from evalmode.observe.state import left_as_found
from evalmode.observe.tree import describe, tensor_leaves
from evalmode.optimization.agreement import redrawn, same_results
from evalmode.optimization.encoder_padding import each_sample_alone, write_padding_out
from evalmode.optimization.flat import Copied, FlatModule, copied_for_evaluation, sibling
from evalmode.optimization.functional import functional_module
from evalmode.optimization.graph import drawing_nodes, place_in_code, where
from evalmode.optimization.sample_axes import input_axes, of_the_whole_batch, output_axes, outputs_by_size
from evalmode.optimization.tracing import exported_graph
from evalmode.predictor.arguments import call_kind, parameters_of
from evalmode.predictor.calling import call, require_batch
from evalmode.predictor.structure import Structure, input_structure, output_structure

__all__ = ["Exported", "program_of"]


@dataclass(frozen=True, slots=True)
class Exported:
    """A Program, with the forms of its inputs and outputs.

    `input_structure.flatten(batch)` gives the program's inputs; `output_structure.rebuild(outputs)` gives what the
    model would have answered. `uncut` says of each output that cannot be cut into samples why: with one of them, a plan
    may run only whole batches as the caller gives them. `notes` are for the reader. `copied` is False where the program
    runs the user's own model, because it cannot be copied. `smallest` is the smallest batch that the exported graph
    answers as the model does.
    """

    program: Program
    input_structure: Structure
    output_structure: Structure
    notes: tuple[str, ...] = ()
    uncut: tuple[str, ...] = ()
    copied: bool = True
    smallest: int = 1
    flat: FlatModule | None = None

    def at_batch(self, batch: int) -> Program:
        """The program for executions of `batch` samples: this one if its graph takes them, else exported for them.

        A program that cannot be exported for this batch comes without a graph, and says why.
        """
        program = self.program
        enough = batch >= self.smallest if program.dynamic else batch == program.batch
        if self.flat is None or program.exported is None or enough:
            return program
        inputs = program.inputs_at(batch)
        graph = _checked_graph(self.flat, inputs, program.input_axes, [inputs], dynamic=False)
        if isinstance(graph, str):
            return replace(program, inputs=inputs, exported=None, dynamic=False, export_error=graph)
        return replace(program, inputs=inputs, exported=graph, dynamic=False)


def program_of(
    model: nn.Module,
    batch: Any,
    forward: Callable[[Any, Any], Any] | None = None,
    batch_axis: int | str = "auto",
) -> Exported:
    """`model` as a Program, with `batch` as its example inputs. The model itself is not changed.

    The axes of the outputs that count samples are found by running two batch sizes; they are never guessed. The graph
    is kept only if it gives the results of the model at both sizes and on changed values; otherwise the program comes
    without one, and `export_error` says why, with the line of the user's code where it is known.

    Raises:
        NotAModuleError: `model` is no module.
        BatchError: the batch does not fit the model, or holds what a plan cannot depend on.
        ModelRunError: the model fails on the batch.
        FrozenModeError: the model carries a graph that was written in training mode.

    Example:
        >>> exported = program_of(nn.Sequential(nn.Linear(3, 2), nn.Dropout()), torch.zeros(4, 3))
        >>> exported.program.output_axes, exported.program.dynamic
        ((0,), True)
    """
    (model,) = require_modules((model,), "optimize")
    require_batch(model, batch, forward)
    inputs = input_structure(batch)
    _require_dense(inputs, batch)
    tensors = tuple(tensor.detach().clone() for tensor in inputs.flatten(batch))  # a model may write into them
    if not tensors:
        raise BatchError("the batch holds no tensor", expected="at least one tensor")
    if all(tensor.dim() and not tensor.shape[0] for tensor in tensors):
        raise BatchError(
            "the batch holds no sample", expected="inputs like those that will come, of one sample or more"
        )
    found = find_batch_axis(batch, batch_axis)
    copied = copied_for_evaluation(model)
    if not copied.problem:
        write_padding_out(copied.model)
    untouched = left_as_found(model, parameters=False, streams=False)
    # What the model draws must not come out of the caller's random streams.
    with evaluating(copied.model), untouched if copied.problem else contextlib.nullcontext():
        example = call(copied.model, inputs.rebuild(_cloned(tensors)), forward)
        notes = [f"runs the model itself: {copied.problem}"] if copied.problem else []
        if not copied.problem and not _agrees_with_original(model, inputs.rebuild(_cloned(tensors)), forward, example):
            notes.append("a copy of the model gives other results: it draws random numbers or keeps state elsewhere")
        names = _names(inputs.paths, parameters_of(copied.model) if call_kind(batch, forward) == "tuple" else ())
        bare = FlatModule(copied.model, inputs, output_structure(example), forward)
        program = Program(bare, tensors, names, input_axes(inputs, tensors, found), ())
        return _exported(program, bare, found, example, copied, notes)


def _require_dense(inputs: Structure, batch: Any) -> None:
    for path, tensor in zip(inputs.paths, inputs.flatten(batch), strict=True):
        if tensor.layout is not torch.strided or tensor.is_nested:
            way = "torch.nested.to_padded_tensor(x, 0)" if tensor.is_nested else "x.to_dense()"
            kind = "" if tensor.is_nested else f", {tensor.layout}"
            raise BatchError(
                f"the batch holds {describe(tensor)}{kind}{f' at {path}' if path else ''}",
                expected="dense tensors: a plan has one shape for all samples",
                fix=f"{way}; what the model needs otherwise is made inside forward=lambda model, batch: ...",
            )


def _exported(
    program: Program, bare: FlatModule, found: BatchAxis | str, example: Any, copied: Copied, notes: list[str]
) -> Exported:
    """The program with the axes of its outputs and its graph; `bare` knows the outputs of one batch only."""
    inputs = bare.inputs
    sized = outputs_by_size(bare, program, found)
    if isinstance(sized, str):
        notes.append(sized)
        sized = {program.batch: example}
    outputs = output_structure(example, *sized.values())
    flat = FlatModule(copied.model, inputs, outputs, bare.call)
    notes += [f"left out of the outputs: {name}" for name in outputs.omitted]
    counted, uncut = output_axes(outputs, sized, found)
    if len(sized) > 1:
        uncut += of_the_whole_batch(flat, program, counted, uncut)
    program = replace(program, module=flat, output_axes=counted, dynamic=len(sized) > 1)
    result = Exported(program, inputs, outputs, tuple(notes), uncut, not copied.problem, flat=flat)
    if copied.problem:
        return replace(result, program=replace(program, export_error=copied.problem, dynamic=len(sized) > 1))
    if len(sized) < 2:
        return _with_graph(result, [program.inputs], [None])
    expected = [tuple(outputs.flatten(tree)) for tree in sized.values()]
    return _with_graph(result, [program.inputs_at(size) for size in sized], expected)


def _with_graph(
    result: Exported, batches: list[tuple[Tensor, ...]], known: Sequence[tuple[Tensor, ...] | None]
) -> Exported:
    """The program with its graph: with a free batch axis if the model has one and torch finds it, else fixed.

    `known` are the model's results on `batches`, where it ran on them already.
    """
    program, flat = result.program, result.flat
    if flat is None:
        return result
    problem = ""
    if program.dynamic:
        graph = _checked_graph(flat, batches[0], program.input_axes, batches, known, dynamic=True)
        if not isinstance(graph, str):
            smallest, note = _smallest(flat, graph, program)
            notes = (*result.notes, note) if note else result.notes
            return replace(result, program=replace(program, exported=graph), smallest=smallest, notes=notes)
        problem = graph
    graph = _checked_graph(flat, program.inputs, program.input_axes, [program.inputs], dynamic=False)
    if isinstance(graph, str):
        return replace(result, program=replace(program, export_error=graph))
    fixed = f"the graph is exported anew for each batch size: {problem}" if problem else ""
    return replace(
        result,
        program=replace(program, exported=graph, dynamic=False),
        notes=(*result.notes, fixed) if fixed else result.notes,
    )


def _checked_graph(
    flat: FlatModule,
    example: Sequence[Tensor],
    axes: Sequence[int | None],
    batches: Sequence[Sequence[Tensor]],
    known: Sequence[tuple[Tensor, ...] | None] = (None,),
    *,
    dynamic: bool,
) -> ExportedProgram | str:
    """The graph, or one line that says why there is none; it must give the model's results on all of `batches`.

    `known` are those results, where the model ran on them already.
    """
    graph = exported_graph(sibling(flat), example, axes, dynamic=dynamic, variadic=True)
    if not isinstance(graph, ExportedProgram):
        return str(graph)
    module, writes = functional_module(graph)
    if writes:
        return writes
    drawing = drawing_nodes(module)
    if drawing:
        place = place_in_code(drawing[0])
        return f"`{where(drawing[0])}` draws random numbers" + (f" ({place})" if place else "")
    with torch.no_grad():
        for batch, answer in [*zip(batches, known, strict=True), (redrawn(batches[-1]), None)]:
            given = any(batch is each for each in batches)
            try:
                with contextlib.nullcontext() if given else each_sample_alone():
                    expected = answer or flat(*batch)
            except Exception as error:  # noqa: BLE001 - redrawn values may be no input of the model
                if given:
                    return f"the model fails on a repeated batch: {type(error).__name__}"
                continue
            try:
                got = module(*batch)
            except Exception as error:  # noqa: BLE001 - any failure of the graph makes it useless
                return f"the exported graph fails where the model does not: {type(error).__name__}: {str(error)[:120]}"
            if not same_results(got, expected):
                return f"the exported graph gives other results than the model{_by_how_much(got, expected)}"
    return graph


def _by_how_much(got: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    if [one.shape for one in got] != [other.shape for other in expected]:
        return ", of other shapes"
    return f", by up to {max(difference(one, other)[0] for one, other in zip(got, expected, strict=True)):.2g}"


def _smallest(flat: FlatModule, graph: ExportedProgram, program: Program) -> tuple[int, str]:
    """The smallest batch that the graph answers as the model does: code may treat a batch of one in its own way."""
    module, _ = functional_module(graph)
    with torch.no_grad():
        for size in (1, 2):
            batch = program.inputs_at(size)
            with contextlib.suppress(Exception):  # the model, or the graph, takes no such batch
                if same_results(module(*batch), flat(*batch)):
                    return size, "" if size == 1 else "a batch of one is answered by other code of the model"
    return 3, "batches of one and two are answered by other code of the model, or not at all"


def _agrees_with_original(
    model: nn.Module, batch: Any, forward: Callable[[Any, Any], Any] | None, example: Any
) -> bool:
    with left_as_found(model), evaluating(model):
        own = call(model, batch, forward)
    first = [leaf for _, leaf in tensor_leaves(own)]
    return same_results(first, [leaf for _, leaf in tensor_leaves(example)])


def _cloned(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.clone() for tensor in tensors)


def _names(paths: Sequence[str], parameters: Sequence[str]) -> tuple[str, ...]:
    """A name for each input: its key or attribute in the batch; in a tuple, the parameter of `forward` that it is for.

    A mask is told from other inputs by its name.
    """
    named = []
    for path in paths:
        place, _, rest = path.partition("]")
        number = place.removeprefix("[")
        known = bool(parameters) and number.isdigit() and int(number) < len(parameters)
        named.append(_name(f"{parameters[int(number)]}{rest}" if known else path))
    return tuple(named) if len(set(named)) == len(named) else tuple(map(_name, paths))


def _name(path: str) -> str:
    name = "".join(character if character.isalnum() else "_" for character in path).strip("_")
    if not name:
        return "input"
    return name if not name[0].isdigit() else f"input_{name}"
