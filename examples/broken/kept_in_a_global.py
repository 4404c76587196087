"""Losses are collected in a list of the program, each with the activations that it was made from."""

import torch
from torch import nn

CLAUSE, CODE = "no-gradients", "EM164"
collected = []


class Penalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        states = self.layer(x)
        collected.append(states.square().mean(1))  # breaks
        return states


class Fixed(Penalised):
    def forward(self, x):
        return self.layer(x)


def model():
    return Penalised().eval()


def fixed():
    return Fixed().eval()


def batch():
    return torch.randn(8, 6)
