"""Layers are skipped at random with Python's own random module, which no seed of torch reaches."""

import random

import torch
from torch import nn

CLAUSE, CODE = "no-randomness", "EM126"


class Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            if random.random() < 0.8:  # breaks
                x = x + layer(x).tanh()
        return x


class Fixed(Skipping):
    def forward(self, x):
        for layer in self.layers:
            if not self.training or random.random() < 0.8:
                x = x + layer(x).tanh()
        return x


def model():
    return Skipping().eval()


def fixed():
    return Fixed().eval()


def batch():
    return torch.randn(8, 6)
