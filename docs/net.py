"""The model whose check opens the README: an honest small network with two lines that break the evaluation contract.

It reads like many networks that train well. `Rescale` divides by the largest activation of the whole batch, and `Head`
drops activations without asking for the mode. Both are invisible in a training run, and neither is mended by
`model.eval()`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def images(samples: int) -> Tensor:
    """Random images of very different contrast, as real ones are. Shapes: (samples, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(0)
    contrast = torch.logspace(-1, 1, samples).reshape(-1, 1, 1, 1)
    return contrast * torch.randn(samples, 1, 8, 8, generator=generator)


class Stem(nn.Module):
    """Two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))))


class Rescale(nn.Module):
    """Activations brought into the range from -1 to 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().amax()


class Neck(nn.Module):
    """Rescaling, then pooling to one vector per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Rescale()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x).mean((2, 3))


class Head(nn.Module):
    """Logits of ten classes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.1)
        return self.linear(x)


class Net(nn.Module):
    """Stem, neck and head; the weights are drawn from a seed, so that everyone sees the same output."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem = Stem(channels)
            self.neck = Neck()
            self.head = Head(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck(self.stem(x)))
