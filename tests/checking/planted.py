"""Defects to plant in clean models: each wraps a module, and the line that breaks the contract ends in `# here`.

The oracle of the place is the source itself: the marked line of the class, and the path at which it was planted.
"""

from __future__ import annotations

import inspect
import random
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Planted(nn.Module):
    """Runs what it wraps and spoils the first tensor of its output."""

    code = ""
    clause = ""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.inner(*args, **kwargs)
        if isinstance(outputs, tuple):
            return (self.spoil(outputs[0]), *outputs[1:])
        return self.spoil(outputs)

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    @classmethod
    def line(cls) -> int:
        lines, start = inspect.getsourcelines(cls)
        return next(start + offset for offset, text in enumerate(lines) if text.rstrip().endswith("# here"))


class FunctionalDropout(Planted):
    code, clause = "EM122", "no-randomness"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.3)  # here


class BuiltDropout(Planted):
    code, clause = "EM121", "no-randomness"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        return nn.Dropout(0.3)(x)  # here


class HelperDropout(Planted):
    code, clause = "EM122", "no-randomness"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        def regularise(value: torch.Tensor) -> torch.Tensor:
            return F.alpha_dropout(value, p=0.2, training=True)  # here

        return regularise(x)


class AttentionDropout(Planted):
    code, clause = "EM123", "no-randomness"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(x.shape[0], 1, -1, 1)[:, :, :3]
        mixed = F.scaled_dot_product_attention(rows, rows, rows, dropout_p=0.2)  # here
        return x + 0.01 * mixed.mean((1, 2, 3)).reshape(-1, *[1] * (x.dim() - 1))


class RecurrentDropout(Planted):
    code, clause = "EM124", "no-randomness"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.weights = [
            nn.Parameter(torch.randn(4, 1)),
            nn.Parameter(torch.randn(4, 1)),
            nn.Parameter(torch.randn(4, 1)),
            nn.Parameter(torch.randn(4, 1)),
        ]

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        steps = x.reshape(x.shape[0], -1, 1)[:, :3]
        start = torch.zeros(2, x.shape[0], 1)
        out = torch.lstm(steps, (start, start), self.weights, False, 2, 0.5, True, False, True)[0]  # here
        return x + out.reshape(x.shape[0], -1).mean(1).reshape(-1, *[1] * (x.dim() - 1))


class Noise(Planted):
    code, clause = "EM125", "no-randomness"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.randn_like(x)  # here


class StochasticDepth(Planted):
    code, clause = "EM125", "no-randomness"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        keep = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(0.8)  # here
        return x * keep / 0.8


class RandomizedRelu(Planted):
    code, clause = "EM125", "no-randomness"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        return F.rrelu(x, training=True)  # here


class GumbelSample(Planted):
    code, clause = "EM125", "no-randomness"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        return F.gumbel_softmax(x, dim=-1)  # here


class PythonRandomness(Planted):
    code, clause = "EM126", "no-randomness"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        if random.random() < 0.5:  # here
            return x * 1.01
        return x


class NumpyRandomness(Planted):
    code, clause = "EM126", "no-randomness"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        factor = 1 + 0.1 * np.random.rand()  # here
        return x * factor


class BatchMaximum(Planted):
    code, clause = "EM171", "batch-independent"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.abs().amax() + 1e-3)  # here


class BatchMean(Planted):
    code, clause = "EM171", "batch-independent"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        centre = x.mean(0)  # here
        return x - centre


class BatchSoftmax(Planted):
    code, clause = "EM171", "batch-independent"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, dim=0)  # here


class BatchAttention(Planted):
    code, clause = "EM171", "batch-independent"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(x.shape[0], -1)
        weights = torch.softmax(rows @ rows.T, dim=-1)  # here
        return (weights @ rows).reshape(x.shape)


class BatchSum(Planted):
    code, clause = "EM171", "batch-independent"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(0)  # here


class BatchStatistics(Planted):
    code, clause = "EM142", "running-statistics"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(x.shape[0], -1)
        return F.batch_norm(rows, None, None, training=True).reshape(x.shape)  # here


class BatchSort(Planted):
    code, clause = "EM171", "batch-independent"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        return x.sort(dim=0).values  # here


class Neighbour(Planted):
    code, clause = "EM171", "batch-independent"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.roll(x, 1, 0)  # here


class Tiny(Planted):
    code, clause = "EM171", "batch-independent"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1e-4 * x.abs().mean()  # here


class PositionFeature(Planted):
    code, clause = "EM172", "batch-independent"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        place = torch.arange(x.shape[0], device=x.device).reshape(-1, *[1] * (x.dim() - 1))
        return torch.cos(x + place)  # here


class FirstOnly(Planted):
    code, clause = "EM172", "batch-independent"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[0] = x[0] * 1.1  # here
        return x


class Alone(Planted):
    code, clause = "EM173", "batch-independent"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 1:
            x = x * 1.5  # here
        return x


class AloneFails(Planted):
    code, clause = "EM173", "batch-independent"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 1:
            raise ValueError("two samples or more")  # here
        return x


class BatchSize(Planted):
    code, clause = "EM171", "batch-independent"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.shape[0]  # here


class GradientsOn(Planted):
    code, clause = "EM161", "no-gradients"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():  # here
            return x * nn.Parameter(torch.ones(1))


class GradientLeak(Planted):
    code, clause = "EM162", "no-gradients"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        torch.set_grad_enabled(True)  # here
        return x * 1.0


class Backward(Planted):
    code, clause = "EM163", "no-gradients"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.scale = nn.Parameter(torch.ones(1))

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            (self.scale * 2).sum().backward()  # here
        return x


class Clock(Planted):
    code, clause = "EM181", "deterministic"

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 + 0.001 * (time.perf_counter_ns() % 1009))  # here


class OwnGenerator(Planted):
    code, clause = "EM126", "no-randomness"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.generator = np.random.default_rng(0)

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        return x + float(self.generator.normal())  # here


class Counter(Planted):
    code, clause = "EM154", "no-state-change"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.calls = 0

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1  # here
        return x * self.calls


class ZeroVariance(Planted):
    code, clause = "EM191", "finite"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)

    def forward(self, x: torch.Tensor) -> Any:
        rows = x.reshape(x.shape[0], -1)
        spread = rows.std(1).reshape(-1, *[1] * (x.dim() - 1))
        return self.inner(x / spread)  # here


class Recorder(Planted):
    code, clause = "EM152", "no-state-change"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.register_buffer("seen", torch.zeros(()))

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1  # here
        return x


class HiddenDropout(Planted):
    code, clause = "EM103", "mode-complete"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.layers = [nn.Dropout(0.4)]

    def spoil(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


PLANTED: tuple[type[Planted], ...] = tuple(
    kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Planted) and kind is not Planted
)


def sites(model: nn.Module, batch: Any) -> list[str]:
    """Paths at which something can be planted: modules that run once and give one tensor with a row for each sample."""
    from evalmode.predictor.calling import call

    runs: dict[str, int] = {}
    fit: dict[str, bool] = {}
    handles = []
    for path, module in model.named_modules():
        if not path:
            continue

        def after(_: nn.Module, inputs: Any, output: Any, path: str = path) -> None:
            runs[path] = runs.get(path, 0) + 1
            lead = output[0] if isinstance(output, tuple) and output else output
            fit[path] = (
                isinstance(lead, torch.Tensor)
                and lead.is_floating_point()
                and lead.dim() >= 2
                and lead.shape[0] == 8
                and lead[0].numel() >= 3
            )

        handles.append(module.register_forward_hook(after))
    with torch.no_grad():
        call(model, batch)
    for handle in handles:
        handle.remove()
    names = [path for path in fit if fit[path] and runs[path] == 1]
    closed = [path for path, module in model.named_modules() if isinstance(module, nn.TransformerEncoderLayer)]
    names = [path for path in names if not any(path.startswith(f"{layer}.") for layer in closed)]  # it reads its parts
    return [path for path in names if not isinstance(model.get_submodule(path), nn.Dropout)]


def plant(model: nn.Module, path: str, kind: type[Planted]) -> None:
    """Put `kind` around the module at `path`."""
    holder, _, name = path.rpartition(".")
    parent = model.get_submodule(holder)
    wrapper = kind(getattr(parent, name)).eval()
    setattr(parent, name, wrapper)
