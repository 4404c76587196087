"""squeeze() without an axis drops the batch axis of a batch of one, and the model fails in production only."""

import torch
from torch import nn

CLAUSE, CODE = "batch-independent", "EM173"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        pooled = self.pool(self.features(x)).squeeze()
        return self.head(pooled).log_softmax(dim=1)  # breaks


class Fixed(Net):
    def forward(self, x):
        pooled = self.pool(self.features(x)).flatten(1)
        return self.head(pooled).log_softmax(dim=1)


def model():
    return Net().eval()


def fixed():
    return Fixed().eval()


def batch():
    return torch.randn(8, 3, 8, 8)
