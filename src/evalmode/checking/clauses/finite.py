"""finite: finite inputs give finite outputs.

What it does
------------
Runs the given batch, then edge inputs made from it: zeros, constants, the smallest and the largest value of the batch
everywhere, one constant sample among others, smaller and larger values, and a sample that is masked throughout where
the inputs carry a mask. Edges stay in the range that the batch shows (a batch without negative values gets none), and
integers, other masks and shapes stay as they are. With `probes="fast"` the edges are put together into one batch, a
sample each.

Codes
-----
    EM191 finite inputs give outputs that are not finite
    EM192 a sample of the test data gives outputs that are not finite

Why it matters
--------------
One silent or blank sample gives NaN, which no exception reports and which compares as unequal to everything.

Example
-------
A constant sample has no variance:

    import torch
    from torch import nn

    class Net(nn.Module):
        def forward(self, x):
            return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)

    model, batch = Net().eval(), torch.randn(8, 4)

Use instead
-----------
    import torch
    from torch import nn

    class Net(nn.Module):
        def forward(self, x):
            return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-6)

    model, batch = Net().eval(), torch.randn(8, 4)

Fix and its safety
------------------
Add a small constant to what is divided by or taken the logarithm of, or clamp it. This changes answers a little: a
model that was trained without it should be evaluated again. A sample that is masked throughout has nothing to attend
to: send none, or leave one position unmasked. Where that is sure, or where scores are masked with -inf on purpose,
`allow=` the module path or leave that output out with `outputs=`.

Limits
------
Inputs of integers alone are tested as given, but for their mask. A domain that the batch does not show (positive but
never near zero) is not left.

Source
------
https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html#extremal-values
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from evalmode.checking.examination import Examination
from evalmode.checking.padding import argument_names, masks
from evalmode.checking.subject import Outputs, Subject
from evalmode.clause import Verdict
from evalmode.errors import ModelRunError
from evalmode.finding import Finding, Place
from evalmode.observe.finiteness import first_non_finite
from evalmode.observe.layouts import dense_parts, divisible, is_plain, through_dense
from evalmode.observe.tree import dense_leaves, map_leaves, tensor_leaves

CLAUSE = "finite"
_TOGETHER = "edge values, one sample each"
_MASKED = "a sample masked throughout by"


def examine(subject: Subject) -> Examination:
    """Test the clause on `subject`."""
    if not all(_is_finite(leaf) for _, leaf in dense_leaves(subject.batch)):
        return Examination(probes=0, evidence="the given batch itself holds NaN or Inf", verdict=Verdict.NOT_TESTED)
    tried: list[str] = []
    refused: list[str] = []
    edges = _edges(subject)
    inputs = [("the given batch", subject.batch), *edges]
    if subject.probes == "fast" and edges:
        together = _together(subject, edges)
        inputs = [inputs[0], (_TOGETHER, together) if together is not None else edges[0]]
    for name, batch in inputs:
        try:
            known = subject.given_outputs if batch is subject.batch else None
            outputs = subject.run(batch) if known is None else known
        except ModelRunError as error:
            if name == "the given batch":
                raise
            refused.append(f"{name}: refused by the model ({type(error.__cause__).__name__})")
            continue
        tried.append(name)
        bad = [path for path, leaf in outputs.items() if not _is_finite(leaf)]
        if bad and name == _TOGETHER:
            inputs.extend(edges)  # to see which one it is
        elif bad:
            finding = _finding(subject, batch, name, outputs, bad, sum(other != _TOGETHER for other in tried) - 1)
            return Examination(probes=len(tried), evidence="", findings=(finding,), notes=tuple(refused))
    count = min(len(edges), _samples(subject)) if _TOGETHER in tried else len(tried) - 1
    evidence = (
        f"{count} edge input{'s' if count != 1 else ''}" if count else "the given batch; no floating input to vary"
    )
    return Examination(probes=len(tried), evidence=evidence, notes=tuple(refused), measured={"edge inputs": count})


def _edges(subject: Subject) -> list[tuple[str, Any]]:
    """Edge inputs by name; none if the batch holds neither floating values nor a mask."""
    masked = [
        (f"{_MASKED} {path.strip('[]').strip(chr(39))}", _masked(subject.batch, path, real))
        for path, _, real in masks(subject.batch, argument_names(subject))
    ]
    varied = [leaf.detach() for path, leaf in tensor_leaves(subject.batch) if _varies(path, leaf)]
    values = [part.double() for leaf in varied for part in dense_parts(leaf) if part.numel()]
    if not values:
        return masked
    low = min(float(leaf.min()) for leaf in values)
    high = max(float(leaf.max()) for leaf in values)
    wanted: list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = []
    if low <= 0.0 <= high:
        wanted.append(("zeros", torch.zeros_like))
    wanted.append(("the smallest value everywhere", lambda x: torch.full_like(x, float(x.min()))))
    wanted.append(("the largest value everywhere", lambda x: torch.full_like(x, float(x.max()))))
    wanted.append(("the mean everywhere", lambda x: torch.full_like(x, float(x.double().mean()))))
    wanted.append(("one constant sample", _first_constant))
    wanted.append(("the largest value in one place", _one_spike))
    wanted.append(("the batch, smaller by 1,000", lambda x: x * 1e-3))
    if low < 0.0 < high:
        wanted.append(("the batch, negated", torch.neg))
        wanted.append(("the batch, ten times larger", lambda x: x * 10))
    return [*((name, _varied(subject.batch, change)) for name, change in wanted), *masked]


def _masked(batch: Any, mask: str, real: float) -> Any:
    """The batch with its first sample masked throughout."""

    def at(path: str, leaf: Any) -> Any:
        if path != mask:
            return leaf
        changed = leaf.clone()
        changed[0] = not real
        return changed

    return map_leaves(at, batch)


def _samples(subject: Subject) -> int:
    return 1 if isinstance(subject.axis, str) else subject.axis.size


def _together(subject: Subject, edges: list[tuple[str, Any]]) -> Any | None:
    """One batch with a sample of each edge input, as many as fit; None if the batch has no samples to share out."""
    axis = subject.axis
    if isinstance(axis, str) or axis.listed or not all(is_plain(leaf) for _, leaf in tensor_leaves(subject.batch)):
        return None
    inputs = [dict(tensor_leaves(batch)) for _, batch in edges]

    def at(path: str, leaf: Any) -> Any:
        if path not in axis.paths:
            return leaf
        rows = [inputs[row % len(inputs)][path].select(axis.axis, row) for row in range(axis.size)]
        return torch.stack(rows, axis.axis)

    return map_leaves(at, subject.batch)


def _varied(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    def changed(values: torch.Tensor) -> torch.Tensor:
        return change(values) if values.numel() else values

    return map_leaves(lambda path, leaf: through_dense(changed, leaf.detach()) if _varies(path, leaf) else leaf, batch)


def _varies(path: str, leaf: object) -> bool:
    """Whether a leaf is a floating input; a floating mask or weight of samples is not varied."""
    named = any(word in path.lower() for word in ("mask", "bias", "weight", "length", "time", "step"))
    return (
        isinstance(leaf, torch.Tensor)
        and leaf.is_floating_point()
        and leaf.numel() > 0
        and not named
        and divisible(leaf)
    )


def _first_constant(values: torch.Tensor) -> torch.Tensor:
    changed = values.clone()
    first = changed[:1] if changed.dim() > 0 else changed
    first.fill_(float(values.double().mean()))
    return changed


def _one_spike(values: torch.Tensor) -> torch.Tensor:
    changed = torch.full_like(values, float(values.double().mean()))
    changed[(0,) * values.dim()] = float(values.max())
    return changed


def _is_finite(leaf: torch.Tensor) -> bool:
    if not leaf.is_floating_point() and not leaf.is_complex():
        return True
    return bool((leaf if leaf.itemsize > 1 else leaf.float()).isfinite().all())


def _finding(subject: Subject, batch: Any, name: str, outputs: Outputs, bad: list[str], sound: int) -> Finding:
    """The finding for an input that `sound` other inputs were tried before, all with finite outputs."""
    nan = any(bool(outputs[path].isnan().any()) for path in bad)
    one_pass = subject.bare_pass(batch)
    parting = first_non_finite(lambda: subject.tensors(one_pass()), subject.model)
    count = sum(int((~outputs[path].isfinite()).sum()) for path in bad)
    total = sum(outputs[path].numel() for path in bad)
    operator = parting.operator.replace("aten.", "").partition(".")[0] if parting is not None else "an unseen operator"
    place = parting.place if parting is not None else Place()
    seen = f"{name}: {count} of {total} values are {'NaN' if nan else 'infinite'}; first out of {operator}"
    allowed = f'allow=["{place.module}"]' if place.module else "outputs= with the other outputs"
    fix = "keep the operand away from the edge: add a small constant, or clamp it"
    if name.startswith(_MASKED):
        if sound:
            seen += f"; only this edge: the given batch and {sound - 1} others are finite"
        if _is_fast_path(subject, batch):
            seen += "; without the fast path of nn.TransformerEncoder (torch.backends.mha) it is finite"
        fix = f"send no sample without a position to attend to: leave one unmasked; if none is ever sent, {allowed}"
    elif not nan:
        fix = f"clamp it; scores masked with -inf on purpose: {allowed}, or mask with torch.finfo(x.dtype).min"
    return Finding("EM191", CLAUSE, "finite inputs give outputs that are not finite", place, seen=seen, fix=fix)


def _is_fast_path(subject: Subject, batch: Any) -> bool:
    """Whether the outputs are finite once torch's fast path for attention is off."""
    if not torch.backends.mha.get_fastpath_enabled():
        return False
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return all(map(_is_finite, subject.run(batch).values()))
    except ModelRunError:
        return False
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
