"""Scaled by the largest value of the whole batch: a sample depends on its companions."""

import torch
from torch import nn

CLAUSE, CODE = "batch-independent", "EM171"


class Scale(nn.Module):
    def forward(self, x):
        return x / x.abs().amax()  # breaks


class Fixed(nn.Module):
    def forward(self, x):
        return x / x.abs().amax((1, 2, 3), keepdim=True)


def network(scale):
    return nn.Sequential(nn.Conv2d(3, 8, 3), scale, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


def model():
    return network(Scale())


def fixed():
    return network(Fixed())


def batch():
    return torch.randn(8, 3, 8, 8)
