"""Every batch is kept in a list on the module, for a plot that somebody once made: memory grows with each request."""

import torch
from torch import nn

CLAUSE, CODE = "no-state-change", "EM153"


class Recording(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.history = []

    def forward(self, x):
        states = self.layer(x).relu()
        self.history.append(states)  # breaks
        return states


class Fixed(Recording):
    def forward(self, x):
        return self.layer(x).relu()


def model():
    return Recording().eval()


def fixed():
    return Fixed().eval()


def batch():
    return torch.randn(8, 6)
