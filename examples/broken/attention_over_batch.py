"""nn.MultiheadAttention takes (time, batch, features) unless told otherwise: samples attend to each other."""

import torch
from torch import nn

CLAUSE, CODE = "batch-independent", "EM171"


class Tagger(nn.Module):
    def __init__(self, batch_first=False) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=batch_first)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        mixed, _ = self.attention(x, x, x, need_weights=False)  # breaks
        return self.head(x + mixed)


def model():
    return Tagger().eval()


def fixed():
    return Tagger(batch_first=True).eval()


def batch():
    return torch.randn(8, 5, 16)
