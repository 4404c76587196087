"""The answer warms up over the first hundred calls, counted in a plain attribute, in evaluation too."""

import torch
from torch import nn

CLAUSE, CODE = "no-state-change", "EM154"


class WarmingUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1  # breaks
        return self.layer(x) * min(1.0, self.calls / 100)


class Fixed(WarmingUp):
    def forward(self, x):
        if not self.training:
            return self.layer(x)
        return super().forward(x)


def model():
    return WarmingUp().eval()


def fixed():
    return Fixed().eval()


def batch():
    return torch.randn(8, 6)
