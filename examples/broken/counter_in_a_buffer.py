"""A step counter counts evaluation too, so the next training step does not go on where it was."""

import torch
from torch import nn

CLAUSE, CODE = "no-state-change", "EM152"


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.steps += 1  # breaks
        return self.layer(x)


class Fixed(Counting):
    def forward(self, x):
        if self.training:
            self.steps += 1
        return self.layer(x)


def model():
    return Counting().eval()


def fixed():
    return Fixed().eval()


def batch():
    return torch.randn(8, 6)
