"""The models of benchmarks/optimize.py: full-sized architectures with random weights, in the shapes of deployment.

Batch norm's statistics are settled on random data first, so that activations have the scale of a trained network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model and how to make a batch of its inputs."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]


class Logits(nn.Module):
    """A Hugging Face model that answers with its logits, so that every peer's exporter gets the same function."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs).logits
        return logits


class Recurrent(nn.Module):
    """Two LSTM layers of 512 over 100 steps of 80 features (a filter bank), and a classifier on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(80, 512, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(512, 100)

    def forward(self, frames: Tensor) -> Tensor:
        logits: Tensor = self.head(self.recurrent(frames)[0][:, -1])
        return logits


def perceptron() -> nn.Module:
    """Six hidden layers of 512, each with batch norm and dropout."""
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(512, 100))


class UNet(nn.Module):
    """Ronneberger's network with batch norm, at half its width, for 128 x 128 images and 2 classes."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(_two_convolutions(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in itertools.pairwise(widths))
        self.merge = nn.ModuleList(_two_convolutions(2 * each, each) for each in widths[:-1])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        kept = []
        x = images
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        for level in reversed(range(4)):
            x = self.merge[level](torch.cat([kept[level], self.up[level](x)], 1))
        mask: Tensor = self.head(x)
        return mask


def _two_convolutions(inner: int, outer: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inner, outer):
        layers += [nn.Conv2d(channels, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers)


def _images(size: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, 3, size, size)


def _tokens(vocabulary: int, length: int = 128) -> Callable[[int], Tensor]:
    return lambda batch: torch.randint(1, vocabulary, (batch, length))


def _hugging_face(model: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        configuration = getattr(transformers, config)(**settings)
        return Logits(getattr(transformers, model)(configuration))

    return build


CASES = (
    Case("resnet50", _hugging_face("ResNetForImageClassification", "ResNetConfig", num_labels=1000), _images(224)),
    Case(
        "mobilenetv2",
        _hugging_face("MobileNetV2ForImageClassification", "MobileNetV2Config", num_labels=1000),
        _images(224),
    ),
    Case(
        "efficientnet-b0",
        _hugging_face(
            "EfficientNetForImageClassification",
            "EfficientNetConfig",
            width_coefficient=1.0,
            depth_coefficient=1.0,
            image_size=224,
            hidden_dim=1280,
            num_labels=1000,
        ),
        _images(224),
    ),
    Case(
        "convnext-tiny",
        _hugging_face("ConvNextForImageClassification", "ConvNextConfig", num_labels=1000),
        _images(224),
    ),
    Case(
        "vit-small",
        _hugging_face(
            "ViTForImageClassification",
            "ViTConfig",
            hidden_size=384,
            num_attention_heads=6,
            intermediate_size=1536,
            num_labels=1000,
        ),
        _images(224),
    ),
    Case("swin-tiny", _hugging_face("SwinForImageClassification", "SwinConfig", num_labels=1000), _images(224)),
    Case("bert-base-128", _hugging_face("BertForSequenceClassification", "BertConfig"), _tokens(30522)),
    Case("gpt2-prefill-128", _hugging_face("GPT2LMHeadModel", "GPT2Config", use_cache=False), _tokens(50257)),
    Case("lstm-2x512", Recurrent, lambda batch: torch.randn(batch, 100, 80)),
    Case("mlp-6x512-bn", perceptron, lambda batch: torch.randn(batch, 512)),
    Case("unet-128", UNet, _images(128)),
)


def built(case: Case, seed: int = 0) -> nn.Module:
    """The model in evaluation mode, the same weights for the same seed."""
    torch.manual_seed(seed)
    model = case.build()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001 - the common base of all batch norms has no public name
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # the plain average of all batches
        with torch.no_grad():
            for _ in range(2):
                model.train()(case.inputs(8))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model.eval()
