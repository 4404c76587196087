"""Fine-tuning code puts one part into training and never back."""

import torch
from torch import nn

CLAUSE, CODE = "mode-complete", "EM102"


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))


def model():
    net = network().eval()
    net[1].train()
    return net


def fixed():
    return network().eval()


def batch():
    return torch.randn(8, 3, 8, 8)
