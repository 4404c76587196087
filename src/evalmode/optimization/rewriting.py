"""Run passes over a Program: on its graph, or, without one, on the modules that it is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from evalmode.backends.program import Program
from evalmode.mode.discover import discover
from evalmode.optimization.agreement import same_results
from evalmode.optimization.catalog import passes_named
from evalmode.optimization.exporting import Exported
from evalmode.optimization.flat import InEvaluation, sibling
from evalmode.optimization.functional import functional_module
from evalmode.optimization.graph import lean_module
from evalmode.optimization.graph_pass import Pass, Refusal
from evalmode.optimization.sample_axes import probe_sizes
from evalmode.optimization.tracing import exported_graph

__all__ = ["PassReport", "apply_passes", "rewritten"]

_ROUNDS = 4  # a pass may bring others' operands together: adapters must be merged before batch norm is folded


@dataclass(frozen=True, slots=True)
class PassReport:
    """What passes did: places changed and refused by pass, and the number of operators before and after.

    `problem` says why nothing was changed although passes apply.
    """

    changed: dict[str, int]
    refused: dict[str, tuple[Refusal, ...]]
    operators_before: int
    operators_after: int
    problem: str = ""

    def __str__(self) -> str:
        parts = [f"{name} {count}" for name, count in self.changed.items() if count]
        text = ", ".join(parts) or "nothing changed"
        if self.operators_before:
            text += f"; {self.operators_before} operators became {self.operators_after}"
        return text + (f"; {self.problem}" if self.problem else "")


def apply_passes(program: Program, names: Iterable[str] | None = None) -> tuple[Program, PassReport]:
    """`program` rewritten by the passes of these names; by default by all that serve every back end.

    The given program stays as it is: constants are replaced, never written. The answer has a graph of its own, with
    the batch axis as free as before, and that graph as its module. A rewrite that moves the results on the first
    examples by more than rounding, or that cannot be exported again, is dropped whole, and `PassReport.problem` says
    so.

    Raises:
        UsageError: there is no pass of that name.

    Example:
        >>> from evalmode.optimization.exporting import program_of
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
        >>> program, report = apply_passes(program_of(model, torch.zeros(2, 3, 8, 8)).program)
        >>> print(report)
        remove-dropout 1, fold-batch-norm 1; 3 operators became 1
    """
    passes = passes_named(names)
    if program.exported is None:
        return _on_modules(program, passes)
    module, problem = functional_module(program.exported)
    before = _operators(module)
    if problem:
        return program, _unchanged(passes, before, problem)
    changed, refused = _rounds(passes, module, program)
    if not any(changed.values()):
        return program, PassReport(changed, refused, before, before)
    inputs = (
        program.inputs_at(probe_sizes(program)[0]) if program.dynamic else program.inputs
    )  # torch fixes a length of 1
    graph = exported_graph(module, inputs, program.input_axes, dynamic=program.dynamic, variadic=False)
    if not isinstance(graph, ExportedProgram):
        return program, _unchanged(passes, before, f"the rewritten graph is not exported again: {graph}")
    rewritten = lean_module(graph)
    if not _same(program.module, rewritten, program):
        return program, _unchanged(passes, before, "the rewritten graph gives other results")
    report = PassReport(changed, refused, before, _operators(rewritten))
    return replace(program, module=rewritten, exported=graph), report


def rewritten(
    exported: Exported, names: Iterable[str] | None = None
) -> tuple[Program | None, tuple[str, ...], tuple[str, ...]]:
    """The program after the passes, the names of those that changed it, and notes for the reader.

    None in place of the program where nothing was changed.
    """
    program, report = apply_passes(exported.program, names)
    used = tuple(name for name, count in report.changed.items() if count)
    notes = [f"passes: {report.problem}"] if report.problem else []
    for name, refusals in report.refused.items():
        if refusals:
            more = f", and {len(refusals) - 1} more" if len(refusals) > 1 else ""
            notes.append(f"{name} refused at {refusals[0]}{more}")
    return (program if used and not report.problem else None), used, tuple(notes)


def _rounds(
    passes: tuple[Pass, ...], module: fx.GraphModule, program: Program
) -> tuple[dict[str, int], dict[str, tuple[Refusal, ...]]]:
    changed = dict.fromkeys([one.name for one in passes], 0)
    refused: dict[str, tuple[Refusal, ...]] = {}
    for _ in range(_ROUNDS):
        moved = 0
        for one in passes:
            result = one.apply(module, program.inputs)
            changed[one.name] += result.changed
            refused[one.name] = result.refused
            moved += result.changed
        if not moved:
            break
    return changed, refused


def _on_modules(program: Program, passes: tuple[Pass, ...]) -> tuple[Program, PassReport]:
    """The same, as far as it goes, for a model without a graph: on a copy that shares its tensors."""
    if isinstance(getattr(program.module, "model", None), InEvaluation):
        return program, _unchanged(passes, 0, program.export_error)
    module = sibling(program.module)
    own = {id(part): path for path, part in _parts(program.module)}
    shared = [own[id(part)] for _, part in _parts(module) if id(part) in own]
    if shared:  # as a module that `forward=` closes over: what is done to it would be done to the user's
        return program, _unchanged(passes, 0, f"`{shared[0]}` cannot be copied: it is held by a function or a class")
    changed: dict[str, int] = {}
    refused: dict[str, tuple[Refusal, ...]] = {}
    for one in passes:
        if one.apply_to_modules is None:
            continue
        result = one.apply_to_modules(module, program.inputs)
        changed[one.name], refused[one.name] = result.changed, result.refused
    if not any(changed.values()):
        return program, PassReport(changed, refused, 0, 0)
    if not _same(program.module, module, program):
        return program, _unchanged(passes, 0, "the rewritten model gives other results")
    return replace(program, module=module), PassReport(changed, refused, 0, 0)


def _parts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    found = discover(module)
    paths = found.paths()
    return [(paths.get(id(part), "") or type(part).__name__, part) for part in found.modules]


def _unchanged(passes: tuple[Pass, ...], operators: int, problem: str) -> PassReport:
    return PassReport(dict.fromkeys([one.name for one in passes], 0), {}, operators, operators, problem)


def _operators(module: fx.GraphModule) -> int:
    return sum(node.op == "call_function" for node in module.graph.nodes)


def _same(before: nn.Module, after: nn.Module, program: Program) -> bool:
    """A net below the passes, not the gate: a wrong rewrite must not get further than here."""
    with torch.no_grad():
        try:
            inputs = program.inputs_at(probe_sizes(program)[0]) if program.dynamic else program.inputs
            found, wanted = (form(*(tensor.clone() for tensor in inputs)) for form in (after, before))
            return same_results(found, wanted)
        except Exception:  # noqa: BLE001 - whatever fails in the rewritten form makes it useless
            return False
