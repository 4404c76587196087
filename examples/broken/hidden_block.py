"""Blocks in a plain list: used in forward, never reached by eval()."""

import torch
from torch import nn

CLAUSE, CODE = "mode-complete", "EM103"


def block():
    return nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3))


class Ensemble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.members = [block(), block()]

    def forward(self, x):
        return sum(member(x) for member in self.members)


class Fixed(Ensemble):
    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList([block(), block()])


def model():
    return Ensemble().eval()


def fixed():
    return Fixed().eval()


def batch():
    return torch.randn(8, 12)
