"""A recurrent layer called by its function: dropout between its layers follows `train=`, which is always True here."""

import torch
from torch import nn

CLAUSE, CODE = "no-randomness", "EM124"


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 6, num_layers=2, batch_first=True)

    def forward(self, x):
        start, weights = x.new_zeros(2, len(x), 6), list(self.gru.parameters())
        return torch.gru(x, start, weights, True, 2, 0.3, True, False, True)[0]  # breaks


class Fixed(Tagger):
    def forward(self, x):
        start, weights = x.new_zeros(2, len(x), 6), list(self.gru.parameters())
        return torch.gru(x, start, weights, True, 2, 0.3, self.training, False, True)[0]


def model():
    return Tagger().eval()


def fixed():
    return Fixed().eval()


def batch():
    return torch.randn(8, 4, 5)
