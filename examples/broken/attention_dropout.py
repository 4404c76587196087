"""Fused attention with a constant dropout_p: the function knows no mode."""

import torch
import torch.nn.functional as F
from torch import nn

CLAUSE, CODE = "no-randomness", "EM123"


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.project(x).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)  # breaks


class Fixed(Attention):
    def forward(self, x):
        q, k, v = self.project(x).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)


def model():
    return nn.Sequential(nn.Linear(16, 16), Attention(), nn.Linear(16, 4)).eval()


def fixed():
    return nn.Sequential(nn.Linear(16, 16), Fixed(), nn.Linear(16, 4)).eval()


def batch():
    return torch.randn(8, 6, 16)
