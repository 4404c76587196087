"""finite: finite inputs give finite outputs.

What it does
------------
Runs the given batch, then edge inputs made from it: zeros, constants, the smallest and the largest value of the batch
everywhere, one constant sample among others, smaller and larger values. Edges stay in the range that the batch shows (a
batch without negative values gets none), and integers, masks and shapes stay as they are.

Codes
-----
    EM191 finite inputs give outputs that are not finite

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
model that was trained without it should be evaluated again.

Limits
------
Inputs of integers alone are tested as given. A domain that the batch does not show (positive but never near zero) is
not left. Fully masked rows come with a later version.

Source
------
https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html#extremal-values
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from evalmode.checking.examination import Examination
from evalmode.checking.subject import Outputs, Subject
from evalmode.clause import Verdict
from evalmode.errors import ModelRunError
from evalmode.finding import Finding, Place
from evalmode.observe.trace import first_non_finite
from evalmode.observe.tree import map_leaves, tensor_leaves

CLAUSE = "finite"
_FAST = 3


def examine(subject: Subject) -> Examination:
    """Test the clause on `subject`."""
    if not all(_is_finite(leaf) for _, leaf in tensor_leaves(subject.batch)):
        return Examination(probes=0, evidence="the given batch itself holds NaN or Inf", verdict=Verdict.NOT_TESTED)
    tried: list[str] = []
    refused: list[str] = []
    for name, batch in [("the given batch", subject.batch), *_edges(subject)]:
        try:
            outputs = subject.run(batch)
        except ModelRunError as error:
            if name == "the given batch":
                raise
            refused.append(f"{name}: refused by the model ({type(error.__cause__).__name__})")
            continue
        tried.append(name)
        bad = [path for path, leaf in outputs.items() if not _is_finite(leaf)]
        if bad:
            finding = _finding(subject, batch, name, outputs, bad)
            return Examination(probes=len(tried), evidence="", findings=(finding,), notes=tuple(refused))
    edges = len(tried) - 1
    evidence = (
        f"{edges} edge input{'s' if edges != 1 else ''}" if edges else "the given batch; no floating input to vary"
    )
    return Examination(probes=len(tried), evidence=evidence, notes=tuple(refused), measured={"edge inputs": edges})


def _edges(subject: Subject) -> list[tuple[str, Any]]:
    """Edge inputs by name; none if the batch holds no floating values."""
    values = [leaf for path, leaf in tensor_leaves(subject.batch) if _varies(path, leaf)]
    if not values:
        return []
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
    if subject.probes == "fast":
        wanted = wanted[:_FAST]
    return [(name, _varied(subject.batch, change)) for name, change in wanted]


def _varied(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return map_leaves(lambda path, leaf: change(leaf) if _varies(path, leaf) else leaf, batch)


def _varies(path: str, leaf: object) -> bool:
    """Whether a leaf is a floating input; a floating mask or weight of samples is not varied."""
    named = any(word in path.lower() for word in ("mask", "bias", "weight", "length", "time", "step"))
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.numel() > 0 and not named


def _first_constant(values: torch.Tensor) -> torch.Tensor:
    changed = values.clone()
    first = changed[:1] if changed.dim() > 0 else changed
    first.fill_(float(values.double().mean()))
    return changed


def _one_spike(values: torch.Tensor) -> torch.Tensor:
    changed = torch.full_like(values, float(values.double().mean()))
    changed.reshape(-1)[:1].fill_(float(values.max())) if changed.is_contiguous() else None
    return changed


def _is_finite(leaf: torch.Tensor) -> bool:
    if not leaf.is_floating_point() and not leaf.is_complex():
        return True
    return bool(leaf.isfinite().all())


def _finding(subject: Subject, batch: Any, name: str, outputs: Outputs, bad: list[str]) -> Finding:
    nan = any(bool(outputs[path].isnan().any()) for path in bad)
    parting = first_non_finite(subject.bare_pass(batch), subject.model)
    count = sum(int((~outputs[path].isfinite()).sum()) for path in bad)
    total = sum(outputs[path].numel() for path in bad)
    operator = parting.operator.replace("aten.", "").partition(".")[0] if parting is not None else "an unseen operator"
    return Finding(
        "EM191",
        CLAUSE,
        "finite inputs give outputs that are not finite",
        parting.place if parting is not None else Place(),
        seen=f"{name}: {count} of {total} values are {'NaN' if nan else 'infinite'}; first out of {operator}",
        fix="keep the operand away from the edge: add a small constant, or clamp it",
    )
