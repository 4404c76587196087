"""Clean models of many kinds, small and with random weights: none of them may give a finding.

Each entry of `CLEAN` makes a model in evaluation mode and a batch of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

Made = tuple[nn.Module, Any]


class ConvolutionalNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout2d(0.2),
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.PReLU(8)),
        )
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU())
        self.middle = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.InstanceNorm2d(8), nn.SiLU())
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        shallow = self.down(images)
        deep = self.up(self.middle(shallow))
        return {"mask": self.out(torch.cat([shallow, deep], 1))}


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(6, 8, num_layers=2, dropout=0.3, bidirectional=True, batch_first=True)  # type: ignore[call-arg]
        self.head = nn.Linear(16, 3)

    def forward(self, steps: torch.Tensor) -> tuple[torch.Tensor, Any]:
        hidden, state = self.rnn(steps)
        return self.head(hidden[:, -1]), state


class VariationalAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(10, 8)
        self.decode = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, log_variance = self.encode(x).chunk(2, 1)
        if self.training:
            mean = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decode(mean)


class GraphNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Linear(5, 5)

    def forward(self, nodes: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        nodes = torch.relu(self.message(adjacency @ nodes))
        return (adjacency @ nodes).sum(1)


class TransformerNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(tokens).mean(1))


def _tokens(**more: Any) -> dict[str, Any]:
    return {"input_ids": torch.randint(3, 50, (8, 10)), "attention_mask": torch.ones(8, 10, dtype=torch.long), **more}


def _bert() -> Made:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return transformers.BertForSequenceClassification(config), _tokens()


def _gpt2() -> Made:
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return transformers.GPT2LMHeadModel(config), _tokens(use_cache=True)


def _t5() -> Made:
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return transformers.T5ForConditionalGeneration(config), _tokens(decoder_input_ids=torch.randint(3, 50, (8, 6)))


def _llama() -> Made:
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config), _tokens()


def _mixtral() -> Made:
    config = transformers.MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        output_router_logits=False,
    )
    return transformers.MixtralForCausalLM(config), _tokens()


def _vit() -> Made:
    config = transformers.ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(8, 3, 16, 16)}


def _convnext() -> Made:
    config = transformers.ConvNextV2Config(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=32)
    return transformers.ConvNextV2ForImageClassification(config), {"pixel_values": torch.randn(8, 3, 32, 32)}


def _resnet() -> Made:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return transformers.ResNetForImageClassification(config), {"pixel_values": torch.randn(8, 3, 32, 32)}


def _mobilenet() -> Made:
    config = transformers.MobileNetV2Config(depth_multiplier=0.25, image_size=32)
    return transformers.MobileNetV2ForImageClassification(config), {"pixel_values": torch.randn(8, 3, 32, 32)}


def _swin() -> Made:
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4
    )
    return transformers.SwinForImageClassification(config), {"pixel_values": torch.randn(8, 3, 32, 32)}


def _wav2vec() -> Made:
    config = transformers.Wav2Vec2Config(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    return transformers.Wav2Vec2ForCTC(config), {"input_values": torch.randn(8, 400)}


CLEAN: dict[str, Callable[[], Made]] = {
    "cnn": lambda: (ConvolutionalNet(), torch.randn(8, 3, 12, 12)),
    "u-net": lambda: (UNet(), torch.randn(8, 3, 16, 16)),
    "lstm": lambda: (Recurrent(nn.LSTM), torch.randn(8, 7, 6)),
    "gru": lambda: (Recurrent(nn.GRU), torch.randn(8, 7, 6)),
    "mlp": lambda: (
        nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3)),
        torch.randn(8, 10),
    ),
    "vae": lambda: (VariationalAutoencoder(), torch.randn(8, 10)),
    "graph": lambda: (GraphNet(), (torch.randn(8, 6, 5), torch.rand(8, 6, 6))),
    "transformer": lambda: (TransformerNet(), torch.randn(8, 6, 16)),
    "bert": _bert,
    "gpt2": _gpt2,
    "t5": _t5,
    "llama": _llama,
    "mixtral": _mixtral,
    "vit": _vit,
    "convnextv2": _convnext,
    "resnet": _resnet,
    "mobilenetv2": _mobilenet,
    "swin": _swin,
    "wav2vec2": _wav2vec,
}


def make(name: str, seed: int = 0) -> Made:
    """The model in evaluation mode, with a batch; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, batch = CLEAN[name]()
    return model.eval(), batch
