"""Models whose forward pass on eight samples takes 20 ms and more: what the price of a check is measured on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.zoo import local_models as local
from tests.zoo.case import Case, seeded
from tests.zoo.transformers_models import library
from torch import nn

__all__ = ["PRICED", "build_priced"]

SAMPLES = 8


def _residual() -> tuple[nn.Module, Any]:
    model = local.ResidualNetwork(width=48, blocks=8)
    return local.with_statistics(model, torch.randn(4, 3, 64, 64)), torch.randn(SAMPLES, 3, 64, 64)


def _u_net() -> tuple[nn.Module, Any]:
    model = local.with_statistics(local.UNet(width=48), torch.randn(2, 1, 96, 96))
    return model, torch.randn(SAMPLES, 1, 96, 96)


def _lstm() -> tuple[nn.Module, Any]:
    model = local.RecurrentClassifier(nn.LSTM, width=256)
    return model.eval(), torch.randint(0, 50, (SAMPLES, 60))


def _bert() -> tuple[nn.Module, Any]:
    config = library().BertConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, vocab_size=500
    )
    ids = torch.randint(3, 500, (SAMPLES, 96))
    mask = (torch.arange(96) < (96 - 8 * torch.arange(SAMPLES))[:, None]).long()
    return library().BertForSequenceClassification(config).eval(), {"input_ids": ids, "attention_mask": mask}


def _vit() -> tuple[nn.Module, Any]:
    config = library().ViTConfig(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=128,
        patch_size=16,
    )
    return library().ViTForImageClassification(config).eval(), {"pixel_values": torch.randn(SAMPLES, 3, 128, 128)}


def _convnext() -> tuple[nn.Module, Any]:
    config = library().ConvNextV2Config(hidden_sizes=[32, 64, 128, 256], depths=[2, 2, 4, 2])
    return library().ConvNextV2ForImageClassification(config).eval(), {
        "pixel_values": torch.randn(SAMPLES, 3, 128, 128)
    }


PRICED: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "residual": _residual,
    "u_net": _u_net,
    "lstm": _lstm,
    "bert": _bert,
    "vit": _vit,
    "convnextv2": _convnext,
}


def build_priced(name: str, *, seed: int = 0) -> Case:
    """A larger model in evaluation mode with a batch of eight."""
    with torch.random.fork_rng(devices=[]):
        seeded(seed)
        model, batch = PRICED[name]()
    return Case(name, model, batch)
