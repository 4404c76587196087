"""Clean models written out: the kinds of architecture that no configuration of `transformers` stands for."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "Attention",
    "ConvolutionalNetwork",
    "Detector",
    "GraphNetwork",
    "InstanceNormNetwork",
    "Perceptron",
    "RecurrentClassifier",
    "ResidualNetwork",
    "SequenceEncoder",
    "Siamese",
    "UNet",
    "VariationalAutoencoder",
    "with_statistics",
]


def with_statistics(model: nn.Module, *batches: torch.Tensor) -> nn.Module:
    """`model` in evaluation mode, its batch norms having seen training passes on `batches`."""
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return model.eval()


class ConvolutionalNetwork(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.dropout(self.features(images).flatten(1)))
        return out


class ResidualBlock(nn.Module):
    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.drop_path = drop_path

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        branch = self.second_norm(self.second(F.relu(self.first_norm(self.first(images)))))
        if self.training and self.drop_path:
            branch = branch * (torch.rand(len(branch), 1, 1, 1) > self.drop_path)
        return F.relu(images + branch)


class ResidualNetwork(nn.Module):
    """A deep residual network with stochastic depth, off in evaluation as it should be."""

    def __init__(self, width: int = 8, blocks: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width, 0.1 * index / blocks) for index in range(blocks)))
        self.head = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.blocks(self.stem(images)).mean((2, 3)))
        return out


class RecurrentClassifier(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU], width: int = 24, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.recurrent = kind(width, width, layers, dropout=0.2, batch_first=True, bidirectional=kind is nn.LSTM)
        self.norm = nn.LayerNorm(width * (2 if kind is nn.LSTM else 1))
        self.head = nn.Linear(self.norm.normalized_shape[0], 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states, _ = self.recurrent(self.embedding(tokens))
        out: torch.Tensor = self.head(self.norm(states[:, -1]))
        return out


class UNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down = self._block(1, width)
        self.bottom = self._block(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.merge = self._block(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout2d(0.1)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        skip = self.down(images)
        up = self.up(self.bottom(F.max_pool2d(skip, 2)))
        out: torch.Tensor = self.head(self.merge(torch.cat([skip, up], 1)))
        return out


class VariationalAutoencoder(nn.Module):
    """Samples its latent in training and takes the mean in evaluation."""

    def __init__(self, latent: int = 6) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 24), nn.GELU(), nn.Linear(24, 32))

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        mean, log_variance = self.encoder(inputs).chunk(2, dim=-1)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return {"reconstruction": self.decoder(latent), "mean": mean, "log_variance": log_variance}


class GraphNetwork(nn.Module):
    """Graph convolutions on dense adjacency matrices, one graph per sample."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, width)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in self.layers])
        self.head = nn.Linear(width, 4)

    def forward(self, nodes: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        degree = adjacency.sum(-1, keepdim=True) + 1.0
        for layer, norm in zip(self.layers, self.norms, strict=True):
            messages = layer(nodes)
            nodes = F.relu(norm((adjacency @ messages + messages) / degree))
        out: torch.Tensor = self.head(nodes.mean(1))
        return out


class Perceptron(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(16, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(inputs))
        return out


class InstanceNormNetwork(nn.Module):
    """Instance and group normalisation use a sample's own statistics in evaluation too: that breaks nothing."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.instance = nn.InstanceNorm2d(width, affine=True)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.group = nn.GroupNorm(2, width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.group(self.second(F.gelu(self.instance(self.first(images)))))
        return out


class Detector(nn.Module):
    """Takes a list of images and returns, for each, as many boxes as score above the threshold."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        maps = self.head(self.backbone(torch.stack(images))).flatten(2).transpose(1, 2)
        results = []
        for predictions in maps:
            scores = predictions[:, 4].sigmoid()
            kept = scores > 0.5
            results.append({"boxes": predictions[kept, :4], "scores": scores[kept]})
        return results


class Attention(nn.Module):
    """Self-attention with a key-padding mask, its dropout off in evaluation."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        samples, length, width = states.shape
        parts = self.project(self.norm(states)).view(samples, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads)
        weights = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min).softmax(-1)
        mixed = F.dropout(weights, 0.1, training=self.training) @ value
        out: torch.Tensor = states + self.out(mixed.transpose(1, 2).reshape(samples, length, width))
        return out


class SequenceEncoder(nn.Module):
    """Padded token sequences with a mask, pooled over the real tokens alone."""

    def __init__(self, width: int = 24, layers: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.layers = nn.ModuleList(Attention(width) for _ in range(layers))
        self.head = nn.Linear(width, 5)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask.bool()
        states = self.embedding(input_ids)
        for layer in self.layers:
            states = layer(states, mask)
        weights = attention_mask.to(states.dtype).unsqueeze(-1)
        out: torch.Tensor = self.head((states * weights).sum(1) / weights.sum(1).clamp(min=1))
        return out


class Siamese(nn.Module):
    """Two inputs per sample through one shared tower."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, width))
        self.head = nn.Bilinear(width, width, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = self.tower(left), self.tower(right)
        return self.head(first, second), F.cosine_similarity(first, second, dim=-1)
