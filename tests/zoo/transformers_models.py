"""Clean models from `transformers`, small, with random weights, built from configurations alone: nothing is downloaded.

Random weights of these configurations are so small that deep models answer nearly the same to everything; they are
scaled up, so that what happens inside reaches the outputs.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

__all__ = ["BUILDERS", "build"]

WIDTH = 32
LENGTH = 10
WORDS = 60
TEXT: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IMAGE: dict[str, Any] = {"image_size": 32, "num_channels": 3}


def library() -> Any:
    """`transformers`, loaded on first use and never asking a hub."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    found: Any = transformers
    found.logging.set_verbosity_error()
    return found


def tokens(samples: int, words: int = WORDS) -> torch.Tensor:
    return torch.randint(3, words, (samples, LENGTH))


def padded(samples: int) -> dict[str, torch.Tensor]:
    """Token ids of several lengths, padded on the right with the id 0, and the mask that says so."""
    ids = tokens(samples)
    lengths = LENGTH - torch.arange(samples) % 4
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def images(samples: int, size: int = 32) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(samples, 3, size, size)}


def bert(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.BertConfig(**TEXT, vocab_size=WORDS, max_position_embeddings=16, num_labels=4)
    return t.BertForSequenceClassification(config), padded(samples)


def gpt2(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, n_positions=16, vocab_size=WORDS, use_cache=True)
    return t.GPT2LMHeadModel(config), {"input_ids": tokens(samples)}


def llama(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.LlamaConfig(**TEXT, num_key_value_heads=2, vocab_size=WORDS, max_position_embeddings=16, use_cache=True)
    return t.LlamaForCausalLM(config), {"input_ids": tokens(samples)}


def t5(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.T5Config(
        d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=WORDS, decoder_start_token_id=0
    )
    return t.T5ForConditionalGeneration(config), {**padded(samples), "decoder_input_ids": tokens(samples)}


def vit(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    return t.ViTForImageClassification(t.ViTConfig(**TEXT, **IMAGE, patch_size=8, num_labels=5)), images(samples)


def swin(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.SwinConfig(
        **IMAGE, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5
    )
    return t.SwinForImageClassification(config), images(samples)


def convnextv2(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.ConvNextV2Config(**IMAGE, hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, num_labels=5)
    return t.ConvNextV2ForImageClassification(config), images(samples)


def resnet(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[2, 2],
        layer_type="basic",
        downsample_in_first_stage=True,
        num_labels=5,
    )
    return t.ResNetForImageClassification(config), images(samples)


def mobilenet_v2(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.MobileNetV2Config(image_size=32, depth_multiplier=0.25, num_labels=5)
    return t.MobileNetV2ForImageClassification(config), images(samples)


def wav2vec2(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.Wav2Vec2Config(
        **TEXT,
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 3, 3),
        conv_stride=(5, 2, 2),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
        num_labels=5,
    )
    return t.Wav2Vec2ForSequenceClassification(config), {"input_values": torch.randn(samples, 400)}


def whisper(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.WhisperConfig(
        vocab_size=WORDS,
        num_mel_bins=8,
        encoder_layers=2,
        encoder_attention_heads=4,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        encoder_ffn_dim=48,
        d_model=WIDTH,
        max_source_positions=20,
        max_target_positions=16,
        decoder_start_token_id=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    batch = {"input_features": torch.randn(samples, 8, 40), "decoder_input_ids": tokens(samples)}
    return t.WhisperForConditionalGeneration(config), batch


def yolos(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.YolosConfig(
        **TEXT,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=6,
        use_mid_position_embeddings=False,
        num_labels=5,
    )
    return t.YolosForObjectDetection(config), images(samples)


def mixtral(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.MixtralConfig(
        **TEXT,
        num_key_value_heads=2,
        vocab_size=WORDS,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=16,
    )
    return t.MixtralForCausalLM(config), {"input_ids": tokens(samples)}


def switch_transformers(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.SwitchTransformersConfig(
        d_model=WIDTH,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_sparse_encoder_layers=1,
        num_decoder_layers=2,
        num_sparse_decoder_layers=1,
        num_heads=4,
        num_experts=4,
        vocab_size=WORDS,
        decoder_start_token_id=0,
    )
    batch = {"input_ids": tokens(samples), "decoder_input_ids": tokens(samples)}
    return t.SwitchTransformersForConditionalGeneration(config), batch


def clip(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.CLIPVisionConfig(**TEXT, **IMAGE, patch_size=8, projection_dim=16)
    return t.CLIPVisionModelWithProjection(config), images(samples)


def segformer(samples: int) -> tuple[nn.Module, Any]:
    t = library()
    config = t.SegformerConfig(
        num_channels=3,
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        num_labels=5,
    )
    return t.SegformerForSemanticSegmentation(config), images(samples)


BUILDERS = {
    builder.__name__: builder
    for builder in (
        bert,
        gpt2,
        llama,
        t5,
        vit,
        swin,
        convnextv2,
        resnet,
        mobilenet_v2,
        wav2vec2,
        whisper,
        yolos,
        mixtral,
        switch_transformers,
        clip,
        segformer,
    )
}


def build(name: str, samples: int) -> tuple[nn.Module, Any]:
    """A model that behaves as if trained: weights that matter, batch norms that have seen data."""
    model, batch = BUILDERS[name](samples)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1 and "norm" not in path:
                parameter.mul_(3.0 if float(parameter.std()) < 0.05 else 1.0)
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            model.train()
            for _ in range(15):
                model(**images(8))
    return model.eval(), batch
