"""Say where a dependence on the batch comes in: the operator, its line, and what to write instead."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from torch import nn

from evalmode.checking.batch_probes import Comparison, Probes
from evalmode.checking.subject import Subject, copied
from evalmode.errors import ModelRunError
from evalmode.finding import Place
from evalmode.observe.attribution import is_user_file, line_place, module_paths
from evalmode.observe.trace import Parting, Run, first_dependence
from evalmode.observe.wide import widened

__all__ = ["Dependence", "explain_dependence", "failure_place"]

_AXIS = "if the samples lie along another axis, declare batch_axis="
_ELEMENTWISE = ("div", "sub", "mul", "add", "pow", "where", "rsub")
_SEQUENCE_FIX = f"batch_first=True; {_AXIS}"
_FIXES = (
    (
        ("quantized.", "choose_qparams", "quantize_per_tensor_dynamic"),
        "quantise with scales that are fixed beforehand (static quantisation): a dynamic one is taken over the batch",
    ),
    (("batch_norm", "instance_norm"), "use running statistics: track_running_stats=True, training=self.training"),
    (("softmax",), "softmax over an axis of the sample (dim=-1), not over axis 0"),
    (
        ("cumsum", "cumprod", "cummax", "sort", "topk"),
        "count and rank within each sample, not along axis 0 (expert capacity: no limit in evaluation)",
    ),
    (("flip", "roll"), "work along an axis of the sample, not along axis 0"),
    (("scaled_dot_product", "attention"), f"keep the batch out of attention (batch_first=True); {_AXIS}"),
    (("lstm", "gru", "rnn"), _SEQUENCE_FIX),
    (("mm", "matmul"), f"multiply within each sample (bmm, batch_first=True); {_AXIS}"),
)
_REDUCTIONS = frozenset(
    (
        "mean",
        "sum",
        "nansum",
        "amax",
        "amin",
        "max",
        "min",
        "aminmax",
        "std",
        "std_mean",
        "var",
        "var_mean",
        "norm",
        "linalg_vector_norm",
        "linalg_matrix_norm",
        "median",
        "nanmedian",
        "mode",
        "logsumexp",
        "prod",
        "sort",
        "topk",
        "kthvalue",
        "histc",
        "mm",
        "bmm",
        "dot",
    )
)
_REDUCE_FIX = "reduce over each sample's own axes, as in x.amax((1, 2, 3), keepdim=True)"
_BRANCH_FIX = "do the same for every batch: decide for each sample (torch.where), not by the batch's size or values"
_PLACE_FIX = f"let nothing go by a sample's place in the batch: no p[:len(x)], no first come, first served; {_AXIS}"
_DEFAULT_FIX = f"compute it from the sample alone; {_AXIS}"


@dataclass(frozen=True, slots=True)
class Dependence:
    """Where samples are mixed, what to write instead, and the line from which or into which it spreads, if another."""

    place: Place
    fix: str
    spread: str = ""
    operator: str = ""


def explain_dependence(subject: Subject, probes: Probes, comparison: Comparison) -> Dependence:
    """The place and the fix of a dependence that `comparison` has shown."""
    probe = comparison.probe
    run = _narrow_run if comparison.narrow else _run
    first = run(subject, probes.batch, probes.size, probe.reference_positions)
    second = run(subject, probe.batch, probe.size, probe.positions)
    sizing = None
    if probes.other_size is not None:
        sizing = run(subject, probes.of_size(probes.other_size).batch, probes.other_size, ())
    try:
        parting = first_dependence(first, second, sizing, subject.model)
    except ModelRunError:  # it runs in fp64 only with its parameters widened, which cannot be followed
        parting = None
    if parting is None:
        return Dependence(Place(), _DEFAULT_FIX)
    module = next((one for path, one, _ in subject.state.attributes if path == parting.place.module), None)
    place, spread = _mixed(parting)
    return Dependence(place, _fix(parting, probe.code, module), spread, parting.operator)


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


def _narrow_run(subject: Subject, batch: object, size: int, positions: tuple[int, ...]) -> Run:
    own_batch = copied(batch)
    return Run(subject.bare_pass(own_batch), own_batch, size, positions)


def _fix(parting: Parting, code: str, module: nn.Module | None) -> str:
    """What to write instead: as precise as what was seen allows, and general where it does not say."""
    name = parting.operator.removeprefix("aten.")
    if parting.branch:
        return _BRANCH_FIX
    if getattr(module, "batch_first", None) is False:
        return _SEQUENCE_FIX
    found = next((fix for words, fix in _FIXES if any(word in name for word in words)), None)
    if found is None and _mixed(parting)[0] is not parting.place:
        by = parting.mixed_by.removeprefix("aten.").split(".")[0]
        return next((fix for words, fix in _FIXES if any(word in by for word in words)), _REDUCE_FIX)
    if found is None and name.startswith(_ELEMENTWISE) and parting.mixed_at is not None:
        return _REDUCE_FIX
    return found or (_PLACE_FIX if code == "EM172" else _DEFAULT_FIX)


def _mixed(parting: Parting) -> tuple[Place, str]:
    """The line to blame, and the other one of the two: a reduction over the batch and what brings it into each sample.

    The reduction is to blame where it can be told: it is of the same module, and no mere choice of rows.
    """
    here, mixed = parting.place, parting.mixed_at
    if mixed is None or not mixed.file or (mixed.file, mixed.line) == (here.file, here.line):
        return here, ""
    reduces = parting.mixed_by.removeprefix("aten.").split(".")[0] in _REDUCTIONS
    if reduces and here.file and mixed.module == here.module and not parting.branch:
        return mixed, f"enters each sample at line {here.line}: {here.source}"
    return here, f"mixed at line {mixed.line}: {mixed.source}"
