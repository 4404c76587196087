"""A dropout that is made anew in every forward pass, so eval() never meets it."""

import torch
from torch import nn

CLAUSE, CODE = "no-randomness", "EM121"


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = nn.Dropout(0.2)(layer(x).relu())  # breaks
        return x


class Fixed(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        for layer in self.layers:
            x = self.drop(layer(x).relu())
        return x


def model():
    return Encoder().eval()


def fixed():
    return Fixed().eval()


def batch():
    return torch.randn(8, 16)
