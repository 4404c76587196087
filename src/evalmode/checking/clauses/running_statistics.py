"""running-statistics: every normalisation layer with learned statistics uses them, and they are sound.

What it does
------------
Reads the running mean and variance of every layer that has them, and compares them with what comes into the layer.
Watches the operators for a batch norm that computes its statistics from the batch at hand. Statistics of one sample
(instance norm, weight standardisation) are not counted: only those over more values when the batch is larger.

Codes
-----
    EM141 running statistics are unsound
    EM142 batch statistics are used in evaluation mode

Why it matters
--------------
With batch statistics a sample's answer depends on its companions, and a batch of one fails. One NaN or Inf in a running
variance stays there for ever. Statistics that were never updated normalise with mean 0 and variance 1, whatever the
data are.

Example
-------
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False)).eval()
    batch = torch.randn(8, 4)

Use instead
-----------
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).eval()
    batch = torch.randn(8, 4)

Fix and its safety
------------------
Keep `track_running_stats=True` and pass `training=self.training` to functional batch norm. Unsound statistics have to
be computed anew: reset the layer (`layer.reset_running_stats()`), put it into training, and run training data through
the model under `no_grad`. Answers change: evaluate the model again.

Limits
------
A variance of exactly 0 is reported only where what comes into the channel varies: a dead channel has it rightly.
Statistics still at their first values (0 and 1) are reported only where the layer's own weights look trained and the
batch contradicts them; `num_batches_tracked == 0` alone may come from converted weights. Statistics by hand
(`(x - x.mean(0)) / x.std(0)`) show as EM171.

Source
------
https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from evalmode.checking.examination import Examination
from evalmode.checking.subject import Subject
from evalmode.errors import ModelRunError
from evalmode.finding import Finding, Place
from evalmode.mode.discover import discover
from evalmode.observe.watch import BatchStatistics, watch

CLAUSE = "running-statistics"
_FAR = 0.5  # of a standard deviation, between the batch's mean and the running mean
_APART = 4.0  # between the batch's variance and the running variance
_ZERO_SPREAD = 30.0  # how far from 0 a channel's values come out if its variance is said to be 0
_FIX_UNSOUND = "reset_running_stats(), then run training data through the model with this layer in training"
_FIX_BATCH = "use running statistics: track_running_stats=True, training=self.training"


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer with running statistics; `weight` and `bias` may be missing."""

    path: str
    module: nn.Module
    mean: torch.Tensor
    variance: torch.Tensor
    epsilon: float


@dataclass(frozen=True, slots=True)
class _Entering:
    """Mean and variance of each channel of what came into a layer."""

    mean: torch.Tensor
    variance: torch.Tensor


def examine(subject: Subject) -> Examination:
    """Test the clause on `subject`."""
    layers = _layers(subject.model)
    entering = _entering(subject, layers)
    findings = [*_unsound(layers, entering), *_of_batch(subject)]
    distances = [_distance(layer, entering[layer.path]) for layer in layers if layer.path in entering]
    evidence = f"{len(layers)} layer{'s' if len(layers) != 1 else ''} with running statistics"
    if distances and not findings:
        evidence = f"{len(layers)} layer{'s' if len(layers) != 1 else ''}, within {max(distances):.2f} sd of the batch"
    measured: dict[str, Any] = {"layers": len(layers)}
    if distances:
        measured["largest distance in sd"] = max(distances)
    return Examination(probes=len(layers) + 1, evidence=evidence, findings=tuple(findings), measured=measured)


def _layers(model: nn.Module) -> list[_Layer]:
    """Every module with buffers `running_mean` and `running_var`, whatever its class."""
    found = discover(model)
    paths = found.paths()
    layers = []
    for module in found.modules:
        own = dict(module.named_buffers(recurse=False))
        mean, variance = own.get("running_mean"), own.get("running_var")
        if mean is None or variance is None or mean.is_meta or not mean.is_floating_point() or not mean.numel():
            continue
        epsilon = getattr(module, "eps", 1e-5)
        layers.append(_Layer(paths.get(id(module), ""), module, mean, variance, float(epsilon)))
    return layers


def _entering(subject: Subject, layers: Sequence[_Layer]) -> dict[str, _Entering]:
    """What came into the layers in one pass, by path; the last call counts."""
    wanted = {id(layer.module): layer for layer in layers}
    seen: dict[str, _Entering] = {}
    if not wanted:
        return seen

    def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        layer = wanted.get(id(module))
        x = arguments[0] if arguments else None
        if layer is None or not isinstance(x, torch.Tensor) or x.dim() < 2 or not x.is_floating_point():
            return
        if x.shape[1] == layer.mean.numel() and x.numel() > x.shape[1]:
            rows = x.detach().transpose(0, 1).reshape(x.shape[1], -1).to(torch.float64)
            seen[layer.path] = _Entering(rows.mean(1), rows.var(1, correction=0))

    run = subject.bare_pass()
    handle = register_module_forward_pre_hook(before)
    try:
        run()
    finally:
        handle.remove()
    return seen


def _distance(layer: _Layer, entering: _Entering) -> float:
    """The mean distance of a channel's mean from its running mean, in running standard deviations."""
    spread = (layer.variance.double() + layer.epsilon).sqrt().clamp(min=1e-12)
    return float(((entering.mean - layer.mean.double()).abs() / spread).mean())


def _unsound(layers: Sequence[_Layer], entering: dict[str, _Entering]) -> list[Finding]:
    """One finding for each way to be unsound; layers that are unsound in the same way share it."""
    kinds: dict[str, list[tuple[_Layer, str]]] = {}
    for layer in layers:
        problem = _problem(layer, entering.get(layer.path))
        if problem is not None:
            kinds.setdefault(problem[0], []).append((layer, problem[1]))
    findings = []
    for members in kinds.values():
        seen = members[0][1]
        others = [layer.path for layer, _ in members[1:]]
        if others:
            more = " ..." if len(others) > 3 else ""
            seen += f"; so in {len(others)} more layer{'s' if len(others) > 1 else ''}: {', '.join(others[:3])}{more}"
        place = Place(members[0][0].path)
        findings.append(Finding("EM141", CLAUSE, "running statistics are unsound", place, seen=seen, fix=_FIX_UNSOUND))
    return findings


def _problem(layer: _Layer, entering: _Entering | None) -> tuple[str, str] | None:
    """The kind of unsoundness and what was seen in numbers; None for sound statistics."""
    channels = layer.variance.numel()
    for name, values in (("running_var", layer.variance), ("running_mean", layer.mean)):
        for kind, wrong in (("NaN", values.isnan()), ("Inf", values.isinf())):
            if bool(wrong.any()):
                return kind, f"{name} is {kind} in {int(wrong.sum())} of {channels} channels"
    negative = layer.variance < 0
    if bool(negative.any()):
        lowest = float(layer.variance.min())
        return "negative", f"running_var is negative in {int(negative.sum())} of {channels} channels, min {lowest:.2g}"
    if entering is None:
        return None
    spread = entering.variance.sqrt() / layer.epsilon**0.5
    wrong = (layer.variance.double() == 0) & (spread > _ZERO_SPREAD)
    if bool(wrong.any()):
        widest = float(entering.variance[wrong].max())
        seen = f"running_var is 0 in {int(wrong.sum())} of {channels} channels whose variance in this batch is up to"
        return "zero", f"{seen} {widest:.2g}"
    return _never_updated(layer, entering)


def _never_updated(layer: _Layer, entering: _Entering) -> tuple[str, str] | None:
    if bool((layer.mean != 0).any()) or bool((layer.variance != 1).any()):
        return None
    own = dict(layer.module.named_parameters(recurse=False)) | dict(layer.module.named_buffers(recurse=False))
    weight, bias = own.get("weight"), own.get("bias")
    counted = own.get("num_batches_tracked")
    trained = weight is not None and bias is not None and _varies(weight) and _varies(bias)
    if not trained and not (counted is not None and int(counted) > 0):
        return None
    far = entering.mean.abs() > _FAR
    apart = (entering.variance > _APART) | (entering.variance < 1 / _APART)
    if float((far | apart).double().mean()) < 0.5:
        return None
    mean, variance = float(entering.mean.abs().max()), float(entering.variance.max())
    return "never updated", (
        f"mean 0 and variance 1 in all {layer.mean.numel()} channels, as the layer was made, beside trained weights; "
        f"in this batch means reach {mean:.2g}, variances {variance:.2g}"
    )


def _varies(values: torch.Tensor) -> bool:
    return values.numel() > 1 and bool((values != values.reshape(-1)[0]).any())


def _of_batch(subject: Subject) -> list[Finding]:
    seen = [
        event
        for event in subject.observation().batch_statistics
        if event.used and not event.reads_weights and event.values > 1
    ]
    if not seen:
        return []
    mixing = _mixing(subject, seen)
    groups: dict[tuple[object, ...], list[BatchStatistics]] = {}
    for event in seen:
        if mixing(event):
            place = event.place
            key = (place.file, place.line) if place.file else ("", place.module)
            groups.setdefault(key, []).append(event)
    return [_batch_finding(members) for members in groups.values()]


def _mixing(subject: Subject, seen: Sequence[BatchStatistics]) -> Callable[[BatchStatistics], bool]:
    """Which events pool values of several samples: those with more values a channel in a larger batch."""
    if isinstance(subject.axis, str):
        return lambda event: True
    size = subject.axis.size
    positions = list(range(size - 1)) if size > 2 else [*range(size), 0]
    try:
        other = watch(subject.bare_pass(subject.samples(positions)), subject.model).batch_statistics
    except ModelRunError:  # the model takes no other size
        return lambda event: True
    pairs = {
        (event.place, position): event.values
        for place in {e.place for e in other}
        for position, event in enumerate([event for event in other if event.place == place])
    }
    numbered: dict[int, int] = {}
    for place in {event.place for event in seen}:
        for position, event in enumerate([event for event in seen if event.place == place]):
            numbered[id(event)] = position
    return lambda event: pairs.get((event.place, numbered[id(event)]), event.values) != event.values


def _batch_finding(members: Sequence[BatchStatistics]) -> Finding:
    first = members[0]
    modules = list(dict.fromkeys(event.place.module for event in members))
    seen = (
        f"{first.module_class or 'batch norm'} took mean and variance of {first.values} values a channel from the batch"
    )
    if len(modules) > 1:
        seen += f"; so in {len(modules)} modules, {', '.join(modules[:3])}{' ...' if len(modules) > 3 else ''}"
    return Finding(
        "EM142", CLAUSE, "batch statistics are used in evaluation mode", first.place, seen=seen, fix=_FIX_BATCH
    )
