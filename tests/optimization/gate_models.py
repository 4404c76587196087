"""Small models, right rewrites and planted faults for the gate. Every model answers with a tuple of tensors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evalmode.optimization.probes import probe_samples
from evalmode.optimization.reference import Reference, accepted_samples, reference_of
from evalmode.optimization.samples import Run

Flat = Callable[..., tuple[Tensor, ...]]


def run_of(flat: Flat) -> Run:
    def run(chunks: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
        with torch.no_grad():
            return [tuple(flat(*chunk)) for chunk in chunks]

    return run


def reference(plain: Flat, inputs: tuple[Tensor, ...], names=None, axes=None, output_axes=None, **options) -> Reference:
    names = names or tuple(f"x{place}" for place in range(len(inputs)))
    parts, _ = accepted_samples(plain, probe_samples(inputs, axes or (0,) * len(inputs), names), 2)
    options.setdefault("seconds", 3.0)
    return reference_of(plain, parts, output_axes or (0,), **options)


class Convolutional(nn.Module):
    def __init__(self, activation: type[nn.Module] = nn.ReLU, eps: float = 1e-5) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8, eps=eps)
        self.activation = activation()
        self.second = nn.Conv2d(8, 12, 3, stride=2)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        hidden = self.activation(self.second(self.activation(self.norm(self.first(x)))))
        return (self.head(hidden.mean((2, 3))),)


class Block(nn.Module):
    """A transformer block, over vectors or over token ids with a mask."""

    def __init__(
        self, *, vocabulary: int = 0, approximate: str = "none", eps: float = 1e-5, fused: bool = True
    ) -> None:
        super().__init__()
        width, self.heads, self.fused, self.approximate = 24, 4, fused, approximate
        self.embedding = nn.Embedding(vocabulary, width) if vocabulary else nn.Identity()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 48), nn.Linear(48, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        x = self.embedding(x)
        samples, length, width = x.shape
        parts = self.project(self.norms[0](x)).view(samples, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        allowed = None if mask is None else mask[:, None, None, :].bool()
        if self.fused:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        else:
            scores = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads)
            scores = scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))
            attended = scores.softmax(-1) @ value
        x = x + self.merge(attended.transpose(1, 2).reshape(samples, length, width))
        return (x + self.narrow(F.gelu(self.widen(self.norms[1](x)), approximate=self.approximate)),)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, 2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs, (hidden, cell) = self.lstm(x)
        return outputs[:, -1], hidden, cell  # samples along axis 0, 1 and 1


class Routed(nn.Module):
    """Each position goes to one of four experts; with `ties` two of them are wanted equally, up to rounding."""

    def __init__(self, *, approximate: str = "none", ties: bool = False) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.approximate = approximate
        if ties:
            with torch.no_grad():
                self.router.weight[1] = self.router.weight[0] + 1e-6 * torch.randn(16)
                self.router.bias[1] = self.router.bias[0]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        weight, chosen = self.router(x).softmax(-1).max(-1)
        everyone = torch.stack([expert(x) for expert in self.experts], -2)
        picked = everyone.gather(-2, chosen[..., None, None].expand(*chosen.shape, 1, 16)).squeeze(-2)
        return F.gelu(picked, approximate=self.approximate) * weight[..., None], chosen


def convolutional(seed: int = 0) -> Convolutional:
    torch.manual_seed(seed)
    model = Convolutional().eval()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.05, 2)
    nn.init.normal_(model.norm.weight)
    nn.init.normal_(model.norm.bias)
    return model


def like(model: nn.Module, **options) -> nn.Module:
    """The same weights in a model built otherwise."""
    other = type(model)(**options).eval()
    other.load_state_dict(model.state_dict())
    return other


def coarser(model: nn.Module, bits: int) -> nn.Module:
    """The weights with so many bits of their fraction left: 10 is TF32, 7 is bf16."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_((parameter.view(torch.int32) & -(1 << (23 - bits))).view(torch.float32))
    return other
