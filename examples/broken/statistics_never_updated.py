"""Weights were loaded without their running statistics: mean 0 and variance 1 stand beside trained weights."""

import torch
from torch import nn

CLAUSE, CODE = "running-statistics", "EM141"


def model():
    net = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
    nn.init.normal_(net[0].weight, 1.0, 0.2)
    nn.init.normal_(net[0].bias, 0.0, 0.2)
    return net


def fixed():
    net = model()
    net[0].running_mean.fill_(20.0)
    net[0].running_var.fill_(9.0)
    return net


def batch():
    return 20.0 + 3.0 * torch.randn(8, 6)
