"""A plain set_grad_enabled(True) inside forward stays on after it, for the caller too."""

import torch
from torch import nn

CLAUSE, CODE = "no-gradients", "EM162"


class Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x):
        torch.set_grad_enabled(True)  # breaks
        return self.layer(x) ** 2


class Fixed(Energy):
    def forward(self, x):
        return self.layer(x) ** 2


def model():
    return Energy().eval()


def fixed():
    return Fixed().eval()


def batch():
    return torch.randn(8, 6)
