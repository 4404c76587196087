"""The model under search: as the user runs it, as programs for back ends, and as a plan that a predictor can run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evalmode.backends.configuration import Configuration
from evalmode.backends.program import Program
from evalmode.certificate import PlanRecord
from evalmode.optimization.exporting import Exported
from evalmode.optimization.integer_ranges import accepted_ranges
from evalmode.optimization.rewriting import apply_passes
from evalmode.predictor.arguments import call_kind, parameters_of
from evalmode.predictor.calling import arguments_of
from evalmode.predictor.plan import IntegerRange, NonFinite, PaddedAxis, Plan, TensorPlan, spec_of

__all__ = ["Subject"]


@dataclass
class Subject:
    """A model, the inputs it is tried on, and its forms.

    `forms` are the programs that passes made of it, by name: `"passes"`, and `"channels-last"` for convolutions;
    `passes` names what changed something in each. `sizes` are the batch sizes of the callers, `weights` is the
    fingerprint of the model.
    """

    exported: Exported
    sizes: tuple[int, ...]
    weights: str
    forward: Callable[[Any, Any], Any] | None = None
    forms: dict[str, Program] = field(default_factory=dict)
    passes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    padded: PaddedAxis | None = None
    _programs: dict[tuple[int, str], Program] = field(default_factory=dict)
    _orders: bool = False

    @property
    def program(self) -> Program:
        """The model as it is, flat."""
        return self.exported.program

    @property
    def flat(self) -> nn.Module:
        """The user's model in evaluation, called with flat tensors."""
        if self.exported.flat is None:
            raise RuntimeError("an exported program always holds its flat module")
        return self.exported.flat

    def batch(self, size: int) -> Any:
        """A batch of `size` samples in the form that the user's model takes."""
        return self.exported.input_structure.rebuild(self.program.inputs_at(size))

    def plain(self, size: int) -> Callable[[], Any]:
        """One call of the model as people deploy it: `eval()` and `torch.inference_mode()`, nothing around it."""
        model: Any = self.flat.model
        batch = self.batch(size)
        if self.forward is not None:
            forward = self.forward

            def run_forward() -> Any:
                with torch.inference_mode():
                    return forward(model, batch)

            return run_forward
        positional, named = arguments_of(batch)

        def run() -> Any:
            with torch.inference_mode():
                return model(*positional, **named)

        return run

    def plain_flat(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The user's model on the flat inputs of one execution: what candidates are measured against."""
        with torch.no_grad():
            outputs: tuple[Tensor, ...] = self.flat(*inputs)
        return outputs

    def rewrite(self, names: Sequence[str] | None) -> list[str]:
        """Apply the passes of these names, or the usual ones, and say what they did.

        Raises:
            UsageError: there is no pass of that name.
        """
        if names is not None and not names:
            return []
        notes = []
        ordinary, report = apply_passes(self.program, None if names is None else names)
        if any(report.changed.values()):
            self.forms["passes"] = ordinary
            self.passes["passes"] = tuple(name for name, count in report.changed.items() if count)
            notes.append(f"passes: {report}")
        elif report.problem:
            notes.append(f"passes: {report.problem}")
        notes += [
            f"{name} left {refusal.where} as it is: {refusal.why}"
            for name, refusals in report.refused.items()
            for refusal in refusals[:1]
        ]
        self._orders = names is None
        return notes

    @property
    def may_be_channels_last(self) -> bool:
        """Whether another memory order may be tried: it is not excluded, and there are convolutions over images."""
        image = any(tensor.dim() == 4 and tensor.is_floating_point() for tensor in self.flat.parameters())
        return self._orders and image and self.program.exported is not None

    def has_form(self, form: str) -> bool:
        """Whether there is such a form. Channels-last is made when it is first asked for: that takes seconds."""
        if form == "channels-last" and self._orders:
            self._orders = False
            self._reorder()
        return form in self.forms

    def _reorder(self) -> None:
        ordered, report = apply_passes(self.forms.get("passes", self.program), ["channels-last"])
        if any(report.changed.values()):
            self.forms["channels-last"] = ordered
            self.passes["channels-last"] = (*self.passes.get("passes", ()), "channels-last")

    def program_for(self, batch: int, form: str) -> Program:
        """The program for executions of `batch` samples, in one of its forms.

        A graph that holds for one batch size alone is exported anew for another, and the passes of the form are applied
        to it; where they cannot be, it is the graph without them.
        """
        self.has_form(form)
        program = self.forms.get(form)
        if program is not None:
            if program.exported is None or (program.dynamic and batch >= self.exported.smallest):
                return program
            if not program.dynamic and program.batch == batch:
                return program
        if (batch, "") not in self._programs:
            self._programs[batch, ""] = self.exported.at_batch(batch)
        known = self._programs[batch, ""]
        if program is None or known is self.program or known.exported is None:
            return known
        if (batch, form) not in self._programs:
            for names in _in_turn(self.passes[form]):
                known, _ = apply_passes(known, names)
            self._programs[batch, form] = known
        return self._programs[batch, form]

    def weight_bytes(self) -> int:
        """Bytes of the parameters and buffers.

        Units: bytes.
        """
        tensors = {id(tensor): tensor for tensor in (*self.flat.parameters(), *self.flat.buffers())}.values()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @functools.cached_property
    def integer_ranges(self) -> tuple[IntegerRange | None, ...]:
        """Which whole numbers the model takes at each input; None where any may be asked for, and nothing is known."""
        tables = {len(tensor) for tensor in (*self.flat.parameters(), *self.flat.buffers()) if tensor.dim()}
        return accepted_ranges(self.plain_flat, self.program, max(self.exported.smallest, 1), sorted(tables))

    def output_tensors(self) -> tuple[TensorPlan, ...]:
        """Names, dtypes and shapes of the outputs of the example batch."""
        if self._outputs is None:
            outputs = self.plain_flat(*self.program.inputs)
            paths = self.exported.output_structure.paths
            triples = zip(paths, outputs, self.program.output_axes, strict=True)
            self._outputs = tuple(
                spec_of(_name(path, position), tensor, axis) for position, (path, tensor, axis) in enumerate(triples)
            )
        return self._outputs

    def plan(
        self,
        configurations: Sequence[Configuration],
        costs: Sequence[float],
        *,
        stable: bool,
        non_finite: NonFinite | None = None,
        record: PlanRecord | None = None,
    ) -> Plan:
        """The plan that runs these configurations, the smallest execution first."""
        ordered = sorted(zip(configurations, costs, strict=True), key=lambda pair: pair[0].batch)
        program = self.program
        eager = any(configuration.backend == "eager" for configuration in configurations)  # it refuses what it refuses
        ranges = (None,) * len(program.inputs) if eager else self.integer_ranges
        return Plan(
            configurations=tuple(configuration for configuration, _ in ordered),
            costs=tuple(cost for _, cost in ordered),
            inputs=tuple(
                spec_of(name, tensor, axis, values)
                for name, tensor, axis, values in zip(
                    program.input_names, program.inputs, program.input_axes, ranges, strict=True
                )
            ),
            outputs=self.output_tensors(),
            input_form=self.exported.input_structure.root,
            output_form=self.exported.output_structure.root,
            call=call_kind(self.batch(1), self.forward),
            parameters=parameters_of(self.flat.model),  # type: ignore[arg-type]
            weights=self.weights,
            record=record,
            padded=self.padded,
            stable=stable,
            non_finite=non_finite,
        )

    _outputs: tuple[TensorPlan, ...] | None = None


def _in_turn(names: Sequence[str]) -> list[tuple[str, ...]]:
    """As `rewrite` applies them: the memory order is a step of its own, which leaves the others' work if it fails."""
    ordinary = tuple(name for name in names if name != "channels-last")
    return [step for step in (ordinary, ("channels-last",)[: len(names) - len(ordinary)]) if step]


def _name(path: str, position: int) -> str:
    """`['logits']` is `logits`; a lone tensor is `output`; a place in a tuple is numbered."""
    inner = path.strip(".[]'\"")
    if not path:
        return "output"
    return inner if inner.isidentifier() else f"output {position}"
