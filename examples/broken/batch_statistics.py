"""Batch norm without running statistics normalises with the batch at hand, in evaluation too."""

import torch
from torch import nn

CLAUSE, CODE = "running-statistics", "EM142"


class Block(nn.Module):
    def __init__(self, norm) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 16)
        self.norm = norm

    def forward(self, x):
        return self.norm(self.linear(x)).relu()  # breaks


def model():
    return nn.Sequential(Block(nn.BatchNorm1d(16, track_running_stats=False)), nn.Linear(16, 3)).eval()


def fixed():
    return nn.Sequential(Block(nn.BatchNorm1d(16)), nn.Linear(16, 3)).eval()


def batch():
    return torch.randn(8, 10)
