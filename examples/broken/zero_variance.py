"""Standardised by its own spread: a blank image has none, and becomes NaN."""

import torch
from torch import nn

CLAUSE, CODE = "finite", "EM191"


class Standardise(nn.Module):
    def forward(self, x):
        centred = x - x.mean((1, 2, 3), keepdim=True)
        return centred / centred.std((1, 2, 3), keepdim=True)  # breaks


class Fixed(nn.Module):
    def forward(self, x):
        centred = x - x.mean((1, 2, 3), keepdim=True)
        return centred / (centred.std((1, 2, 3), keepdim=True) + 1e-6)


def model():
    return nn.Sequential(Standardise(), nn.Flatten(), nn.Linear(3 * 36, 4)).eval()


def fixed():
    return nn.Sequential(Fixed(), nn.Flatten(), nn.Linear(3 * 36, 4)).eval()


def batch():
    return torch.randn(8, 3, 6, 6)
