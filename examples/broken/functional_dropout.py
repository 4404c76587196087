"""Dropout that no mode switches off: F.dropout is on unless told otherwise."""

import torch
import torch.nn.functional as F
from torch import nn

CLAUSE, CODE = "no-randomness", "EM122"


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(20, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        x = torch.relu(self.hidden(x))
        return self.head(F.dropout(x, 0.1))  # breaks


class Fixed(Classifier):
    def forward(self, x):
        x = torch.relu(self.hidden(x))
        return self.head(F.dropout(x, 0.1, training=self.training))


def model():
    return Classifier().eval()


def fixed():
    return Fixed().eval()


def batch():
    return torch.randn(8, 20)
