"""A frozen layer follows the data all the same: its running mean is moved by hand in every pass."""

import torch
from torch import nn

CLAUSE, CODE = "no-state-change", "EM151"


class Adapting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        out = self.norm(x)
        self.follow(x)
        return out

    def follow(self, x):
        self.norm.running_mean.lerp_(x.mean(0), 0.1)  # breaks


class Fixed(Adapting):
    def follow(self, x):
        if self.training:
            self.norm.running_mean.lerp_(x.mean(0), 0.1)


def model():
    return nn.Sequential(Adapting(), nn.Linear(6, 3)).eval()


def fixed():
    return nn.Sequential(Fixed(), nn.Linear(6, 3)).eval()


def batch():
    return torch.randn(8, 6) + 2.0
