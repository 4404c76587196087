"""The clean models: each keeps every clause of the contract. `build(name)` gives one with a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.zoo import local_models as local
from tests.zoo import transformers_models
from tests.zoo.case import Case, seeded
from torch import nn

__all__ = ["CLEAN", "build"]


def _images(samples: int, channels: int = 3, size: int = 16) -> torch.Tensor:
    return torch.randn(samples, channels, size, size)


def _cnn(samples: int) -> tuple[nn.Module, Any]:
    model = local.with_statistics(local.ConvolutionalNetwork(), *(_images(16) for _ in range(30)))
    return model, _images(samples)


def _residual(samples: int) -> tuple[nn.Module, Any]:
    model = local.with_statistics(local.ResidualNetwork(), *(_images(16) for _ in range(30)))
    return model, _images(samples)


def _lstm(samples: int) -> tuple[nn.Module, Any]:
    return local.RecurrentClassifier(nn.LSTM).eval(), torch.randint(0, 50, (samples, 9))


def _gru(samples: int) -> tuple[nn.Module, Any]:
    return local.RecurrentClassifier(nn.GRU).eval(), torch.randint(0, 50, (samples, 9))


def _u_net(samples: int) -> tuple[nn.Module, Any]:
    model = local.with_statistics(local.UNet(), *(_images(8, 1) for _ in range(30)))
    return model, _images(samples, 1)


def _vae(samples: int) -> tuple[nn.Module, Any]:
    return local.VariationalAutoencoder().eval(), torch.randn(samples, 32)


def _graph_network(samples: int) -> tuple[nn.Module, Any]:
    adjacency = (torch.rand(samples, 7, 7) < 0.4).float()
    return local.GraphNetwork().eval(), (
        torch.randn(samples, 7, 6),
        (adjacency + adjacency.transpose(1, 2)).clamp(max=1),
    )


def _mlp(samples: int) -> tuple[nn.Module, Any]:
    model = local.with_statistics(local.Perceptron(), *(torch.randn(32, 16) for _ in range(30)))
    return model, torch.randn(samples, 16)


def _instance_norm(samples: int) -> tuple[nn.Module, Any]:
    return local.InstanceNormNetwork().eval(), _images(samples)


def _detector(samples: int) -> tuple[nn.Module, Any]:
    model = local.Detector()
    local.with_statistics(model.backbone, *(_images(16) for _ in range(30)))
    return model.eval(), list(_images(samples))


def _padded_sequences(samples: int) -> tuple[nn.Module, Any]:
    return local.SequenceEncoder().eval(), transformers_models.padded(samples) | {
        "input_ids": torch.randint(0, 50, (samples, transformers_models.LENGTH))
    }


def _siamese(samples: int) -> tuple[nn.Module, Any]:
    return local.Siamese().eval(), (torch.randn(samples, 16), torch.randn(samples, 16))


CLEAN: dict[str, Callable[[int], tuple[nn.Module, Any]]] = {
    "cnn": _cnn,
    "residual": _residual,
    "lstm": _lstm,
    "gru": _gru,
    "u_net": _u_net,
    "vae": _vae,
    "graph_network": _graph_network,
    "mlp": _mlp,
    "instance_norm": _instance_norm,
    "detector": _detector,
    "padded_sequences": _padded_sequences,
    "siamese": _siamese,
}
CLEAN |= {
    name: lambda samples, name=name: transformers_models.build(name, samples)  # type: ignore[misc]
    for name in transformers_models.BUILDERS
}


def build(name: str, *, seed: int = 0, samples: int = 6) -> Case:
    """The clean model `name` with a batch, both made from `seed`; the caller's random streams are left alone."""
    with torch.random.fork_rng(devices=[]):
        seeded(seed)
        model, batch = CLEAN[name](samples)
    return Case(name, model, batch)
