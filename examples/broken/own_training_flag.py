"""A flag of its own says whether to drop: eval() does not know it, and nobody sets it."""

import torch
import torch.nn.functional as F
from torch import nn

CLAUSE, CODE = "mode-complete", "EM104"


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)
        self.is_training = True

    def forward(self, x):
        return self.layer(F.dropout(x, 0.3, training=self.is_training))  # breaks


class Fixed(Head):
    def forward(self, x):
        return self.layer(F.dropout(x, 0.3, training=self.training))


def model():
    return nn.Sequential(nn.Linear(8, 8), Head()).eval()


def fixed():
    return nn.Sequential(nn.Linear(8, 8), Fixed()).eval()


def batch():
    return torch.randn(8, 8)
