"""Where in a model a defect can be planted: modules that return a floating tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tests.zoo.case import Case, first_tensor, run, take
from torch import nn

__all__ = ["Site", "sites_of"]


@dataclass(frozen=True)
class Site:
    """A module by its path, the tensor that it first returned, whether that has one row per sample, and its calls."""

    path: str
    example: torch.Tensor
    per_sample: bool
    calls: int


@contextmanager
def _watching(model: nn.Module, seen: dict[str, list[torch.Tensor]]) -> Iterator[None]:
    handles = []
    for path, module in model.named_modules():

        def keep(module: nn.Module, inputs: Any, outputs: Any, path: str = path) -> None:
            found = first_tensor(outputs)
            if found is not None and found[0].numel():
                seen.setdefault(path, []).append(found[0].detach().clone())

        handles.append(module.register_forward_hook(keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sites_of(case: Case) -> list[Site]:
    """The sites of a clean model, seen by running it on its batch and on all but the last sample."""
    runs: list[dict[str, list[torch.Tensor]]] = []
    for samples in (case.samples, case.samples - 1):
        seen: dict[str, list[torch.Tensor]] = {}
        with _watching(case.model, seen):
            run(case.model, take(case.batch, list(range(samples)), case.samples))
        runs.append(seen)
    names: dict[int, list[str]] = {}
    for path, module in case.model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(path)
    shared = {path for paths in names.values() if len(paths) > 1 for path in paths}
    sites = []
    for path, tensors in runs[0].items():
        fewer = runs[1].get(path, [])
        if path in shared or len(tensors) != len(fewer) or tensors[0].dim() == 0:
            continue
        per_sample = all(
            len(more) == case.samples and len(less) == case.samples - 1 and more.shape[1:] == less.shape[1:]
            for more, less in zip(tensors, fewer, strict=True)
        )
        sites.append(Site(path, tensors[0], per_sample, len(tensors)))
    return sites
