"""A back end of this test folder: y = x @ w, rounded in a way that depends on the execution size.

Sizes of one class round alike; sizes of different classes do not, as with real kernels. Faults can be planted: bits
that depend on the position, or on the companions, of a sample.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evalmode.backends.backend import Backend, Chunk, Executor
from evalmode.backends.configuration import Configuration
from evalmode.errors import ArtifactError, BackendError
from evalmode.observe.fingerprint import fingerprint
from evalmode.predictor import artifact, manifest
from evalmode.predictor.artifact_file import read_sections, write_sections
from evalmode.predictor.optimized import OptimizedPredictor
from evalmode.predictor.plan import Plan, spec_of
from evalmode.predictor.structure import input_structure, output_structure

FEATURES = 6


class FakeExecutor(Executor):
    def __init__(self, configuration: Configuration, weights: torch.Tensor, fault: str = "", serialises: bool = True):
        self.configuration = configuration
        self.weights = weights
        self.fault = fault
        self.serialises = serialises
        self.runs: list[int] = []
        self.seen: list[dict[str, Any]] = []
        self.closed = False
        self._lock = threading.Lock()

    def run(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        with self._lock:
            self.runs.append(len(chunks))
            self.seen.append(
                {
                    "grad": torch.is_grad_enabled(),
                    "inference": torch.is_inference_mode_enabled(),
                    "autocast": torch.is_autocast_enabled("cpu"),
                }
            )
        return [self._one(x) for (x,) in chunks]

    def _one(self, x: torch.Tensor) -> Chunk:
        size = self.configuration.batch
        assert x.shape == (size, FEATURES) and x.is_contiguous() and x.data_ptr() % 64 == 0
        assert x.stride() == (FEATURES, 1) and type(x) is torch.Tensor and not x.requires_grad
        # one class of sizes adds the features up from the front, the other from the back
        order = range(FEATURES) if size % 2 == 0 else reversed(range(FEATURES))
        y = torch.zeros(size, self.weights.shape[1])
        for feature in order:
            y = y + x[:, feature, None] * self.weights[feature]
        if self.fault == "position":
            y[-1] += 1e-6
        if self.fault == "companions":
            y = y + 1e-6 * x.mean()
        table = self.weights.clone()
        if self.fault == "shared":
            table = table + x.mean()
        return y, y.argmax(-1), table

    def payload(self) -> bytes | None:
        if not self.serialises:
            return None
        return json.dumps({"fault": self.fault, "weights": self.weights.tolist()}).encode()

    def close(self) -> None:
        self.closed = True


def load(payload: bytes, configuration: Configuration, outputs: int) -> Executor:
    try:
        data = json.loads(payload)
    except ValueError as error:
        raise BackendError("the payload is no JSON") from error
    return FakeExecutor(configuration, torch.tensor(data["weights"]), data["fault"])


def backend(**changes: Any) -> Backend:
    values = {
        "name": "fake",
        "missing": lambda: None,
        "version": lambda: "fake 1.0",
        "precisions": lambda device: ("fp32",) if device == "cpu" else (),
        "build": None,
        "load": load,
    }
    return Backend(**{**values, **changes})


def install(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Put the back end into the catalog of those that artifacts are read with."""

    def named(name: str) -> Backend:
        if name != "fake":
            raise ArtifactError(f"the plan runs on {name!r}, a back end that this version does not know")
        return backend(**changes)

    monkeypatch.setattr(artifact, "backend_of", named)
    monkeypatch.setattr(manifest, "backend_of", named)


def rewritten(path: Path, **changes: Any) -> Path:
    """The same file with another manifest or sections, and a right digest."""
    data, sections = read_sections(path)
    values = json.loads(data)
    values.pop("sections")
    sections.update(changes.pop("sections", {}))
    for where, value in changes.items():
        target = values
        *above, last = where.split("__")
        for step in above:
            target = target[int(step) if step.isdigit() else step]
        target[int(last) if last.isdigit() else last] = value
    return write_sections(path, values, sections)


class Net(nn.Module):
    """What the fake back end runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, 3))

    def forward(self, x: torch.Tensor) -> Any:
        y = x @ self.weight
        return {"logits": y, "labels": (y.argmax(-1), "greedy"), "table": self.weight}


def predictor(
    sizes: Sequence[int] = (2, 8),
    *,
    costs: Sequence[float] | None = None,
    fault: str = "",
    serialises: bool = True,
    model: Net | None = None,
    samples: int = 5,
    form: str = "single",
    streams: int = 1,
    **options: Any,
) -> OptimizedPredictor:
    """A predictor on the fake back end; even sizes are one class, odd sizes the other."""
    net = model if model is not None else Net()
    example = torch.randn(samples, FEATURES)
    batch: Any = {"single": example, "tuple": (example,), "mapping": {"x": example}}[form]
    with torch.no_grad():
        outputs = output_structure(net(example))
        flat = outputs.flatten(net(example))
    plan = Plan(
        configurations=tuple(Configuration(backend="fake", batch=size, streams=streams) for size in sizes),
        costs=tuple(costs or [1.0 + 0.1 * size for size in sizes]),
        inputs=(spec_of("x", example, 0),),
        outputs=tuple(
            spec_of(name, tensor, axis)
            for name, tensor, axis in zip(("logits", "labels", "table"), flat, (0, 0, None), strict=True)
        ),
        input_form=input_structure(batch).root,
        output_form=outputs.root,
        call=form,
        parameters=("x",),
        weights=fingerprint(net),
        **({"stable": options.pop("stable")} if "stable" in options else {}),
    )
    executors = [
        FakeExecutor(configuration, net.weight.detach().clone(), fault, serialises)
        for configuration in plan.configurations
    ]
    return OptimizedPredictor(plan, executors, outputs=outputs, probes=[example], model=model, **options)
