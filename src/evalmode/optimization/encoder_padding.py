"""`nn.TransformerEncoder` under a padding mask: the zeros that evaluation writes at padded positions, in operators.

In evaluation, without gradients, the encoder packs the real positions into a nested tensor and unpacks them with zeros
where padding was; under export, or while a mode watches its operators, it takes another way, and what it computes at
padded positions comes out. Both are "the model"; what people deploy is the first. So a copy of the encoder is told to
write those zeros itself wherever it does not pack.

PyTorch packs only if the mask of every sample in the batch ends in its padding: a sample beside one that is padded
elsewhere gets no zeros. Written out, each sample's own mask decides: what the encoder gives for that sample alone.

Source:
    `torch.nn.TransformerEncoder.forward`: https://pytorch.org/docs/stable/generated/torch.nn.TransformerEncoder.html
"""

from __future__ import annotations

import contextlib
import contextvars
import types
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalmode.mode.discover import discover

__all__ = ["each_sample_alone", "write_padding_out"]

_alone = contextvars.ContextVar("each_sample_alone", default=False)


@contextlib.contextmanager
def each_sample_alone() -> Iterator[None]:
    """Inside, encoders that `write_padding_out` has seen never pack: each sample's own mask decides about its zeros.

    For batches whose masks are padded anywhere, where packing would depend on the companions of a sample.
    """
    before = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(before)


def write_padding_out(model: nn.Module) -> nn.Module:
    """`model`, which is a copy of the user's, whose encoders give zeros at padded positions in whatever way they run.

    Left as they are: encoders of a class with a `forward` of its own, and those that never pack (heads of odd number,
    norm first, `enable_nested_tensor=False`) or pack without looking at the mask (`mask_check=False`).

    Example:
        >>> layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        >>> encoder = write_padding_out(nn.TransformerEncoder(layer, 1).eval())
        >>> padding = torch.tensor([[False, False, True]])
        >>> with torch.no_grad(), each_sample_alone():
        ...     encoder(torch.randn(1, 3, 4), src_key_padding_mask=padding)[0, 2]
        tensor([0., 0., 0., 0.])
    """
    for module in discover(model).modules:
        ordinary = isinstance(module, nn.TransformerEncoder) and type(module).forward is nn.TransformerEncoder.forward
        if ordinary and "forward" not in module.__dict__:
            module.__dict__["forward"] = types.MethodType(_forward, module)
    return model


def _forward(
    encoder: nn.TransformerEncoder,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Tensor:
    if src_key_padding_mask is None or mask is not None or not _would_pack(encoder, src):
        return nn.TransformerEncoder.forward(encoder, src, mask, src_key_padding_mask, is_causal)
    packs = not (torch.compiler.is_compiling() or torch.overrides.has_torch_function((src,)) or _alone.get())
    if packs:
        return nn.TransformerEncoder.forward(encoder, src, mask, src_key_padding_mask, is_causal)
    added = src_key_padding_mask
    if added.dtype == torch.bool:
        added = torch.zeros_like(added, dtype=src.dtype).masked_fill_(added, float("-inf"))
    output = src
    for layer in encoder.layers:
        output = layer(output, src_mask=None, is_causal=bool(is_causal), src_key_padding_mask=added)
    output = output.masked_fill(_cleared(added != 0).unsqueeze(-1), 0.0)
    return output if encoder.norm is None else encoder.norm(output)


def _would_pack(encoder: nn.TransformerEncoder, src: Tensor) -> bool:
    """Whether the encoder packs such inputs in plain evaluation, as far as the mask lets it."""
    return (
        torch.backends.mha.get_fastpath_enabled()
        and bool(getattr(encoder, "use_nested_tensor", False))
        and bool(getattr(encoder, "mask_check", True))
        and not encoder.layers[0].training
        and src.dim() == 3
        and not src.is_nested
        and not torch.is_autocast_enabled()
    )


def _cleared(padded: Tensor) -> Tensor:
    """The positions that come out as zeros: the padding of each sample whose padding is all at its end.

    Shapes: (samples, length), and so is the answer.
    """
    ends = functional.pad(padded, (0, 1), value=True)[:, 1:]  # what follows each position
    at_the_end = (~padded | ends).all(1, keepdim=True)
    return padded & at_the_end
