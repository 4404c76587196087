"""Say where a dependence on the batch comes in: the operator, its line, and what to write instead."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from torch import nn

from evalmode.checking.batch_probes import Comparison, Probes
from evalmode.checking.subject import Subject
from evalmode.errors import ModelRunError
from evalmode.finding import Place
from evalmode.observe.attribution import is_user_file, line_place, module_paths
from evalmode.observe.trace import Parting, Run, first_dependence
from evalmode.observe.wide import widened

__all__ = ["Dependence", "explain_dependence", "failure_place"]

_AXIS = "if the samples lie along another axis, declare batch_axis="
_FIXES = (
    (("batch_norm", "instance_norm"), "use running statistics: track_running_stats=True, training=self.training"),
    (("softmax",), "softmax over an axis of the sample (dim=-1), not over axis 0"),
    (("cumsum", "cumprod", "cummax", "sort", "flip", "roll"), "work along an axis of the sample, not along axis 0"),
    (("scaled_dot_product", "attention"), f"keep the batch out of attention (batch_first=True); {_AXIS}"),
    (("lstm", "gru", "rnn"), f"batch_first=True; {_AXIS}"),
    (("mm", "matmul"), f"multiply within each sample (bmm, batch_first=True); {_AXIS}"),
    (("div", "sub", "mul", "add"), "reduce over each sample's own axes, as in x.amax((1, 2, 3), keepdim=True)"),
)
_DEFAULT_FIX = f"compute it from the sample alone; {_AXIS}"


@dataclass(frozen=True, slots=True)
class Dependence:
    """Where samples are mixed, what to write instead, and the line of a reduction that came before, if any."""

    place: Place
    fix: str
    mixed: str = ""
    operator: str = ""


def explain_dependence(subject: Subject, probes: Probes, comparison: Comparison) -> Dependence:
    """The place and the fix of a dependence that `comparison` has shown."""
    probe = comparison.probe
    first = _run(subject, probes.batch, probes.size, probe.reference_positions)
    second = _run(subject, probe.batch, probe.size, probe.positions)
    sizing = None
    if probes.other_size is not None:
        sizing = _run(subject, probes.of_size(probes.other_size).batch, probes.other_size, ())
    try:
        parting = first_dependence(first, second, sizing, subject.model)
    except ModelRunError:  # it runs in fp64 only with its parameters widened, which cannot be followed
        parting = None
    if parting is None:
        return Dependence(Place(), _DEFAULT_FIX)
    return Dependence(parting.place, _fix(parting), _mixed(parting), parting.operator)


def failure_place(model: nn.Module, error: ModelRunError) -> Place:
    """The module and the line at which the model's own error was raised."""
    cause = error.__cause__
    if cause is None:
        return Place()
    paths = module_paths(model)
    module, file, line = "", "", 0
    for frame, number in traceback.walk_tb(cause.__traceback__):
        if frame.f_code is nn.Module._call_impl.__code__:  # noqa: SLF001 - the frame that enters a module
            module = paths.get(id(frame.f_locals.get("self")), module)
        elif is_user_file(frame.f_code.co_filename):
            file, line = frame.f_code.co_filename, number
    return line_place(module, file, line) if file else Place(module)


def _run(subject: Subject, batch: object, size: int, positions: tuple[int, ...]) -> Run:
    wide_batch = widened(batch)
    return Run(subject.wide_pass(wide_batch), wide_batch, size, positions)


def _fix(parting: Parting) -> str:
    name = parting.operator.removeprefix("aten.")
    return next((fix for words, fix in _FIXES if any(word in name for word in words)), _DEFAULT_FIX)


def _mixed(parting: Parting) -> str:
    mixed = parting.mixed_at
    if mixed is None or not mixed.file or (mixed.file, mixed.line) == (parting.place.file, parting.place.line):
        return ""
    return f"mixed at line {mixed.line}: {mixed.source}"
