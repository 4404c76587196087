"""One bad batch in training left a NaN in a running variance: it stays there for ever."""

import torch
from torch import nn

CLAUSE, CODE = "running-statistics", "EM141"


def model(poison=float("nan")):
    net = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval()
    net[1].running_mean.normal_(std=0.1)
    net[1].running_var.uniform_(0.5, 1.5)
    net[1].running_var[4] = poison
    return net


def fixed():
    return model(poison=0.9)


def batch():
    return torch.randn(8, 10)
