"""One tensor of a model, kept: its contents, its storage and its `.grad`, and how to bring them back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from evalmode.observe.tree import same_bits

__all__ = [
    "KeptTensor",
    "gradient_changed",
    "is_copyable",
    "is_untouched",
    "keep_tensor",
    "restore_gradient",
    "restore_tensor",
    "tensor_changed",
]


@dataclass(slots=True)
class KeptTensor:
    """A tensor, the storage it had, a copy of its contents, and its `.grad`."""

    owner: str
    name: str
    tensor: torch.Tensor
    storage: torch.Tensor
    contents: torch.Tensor
    requires_grad: bool
    gradient: torch.Tensor | None
    gradient_contents: torch.Tensor | None
    version: int


def is_copyable(tensor: torch.Tensor) -> bool:
    """Whether a copy of the contents can be kept: not of lazy, meta and sparse tensors."""
    lazy = is_lazy(tensor)
    return not lazy and not tensor.is_meta and tensor.layout is torch.strided


def keep_tensor(path: str, name: str, tensor: torch.Tensor) -> KeptTensor:
    """Keep a tensor that the module at `path` holds as `name`."""
    gradient = tensor.grad if tensor.is_leaf else None
    return KeptTensor(
        owner=path,
        name=name,
        tensor=tensor,
        storage=tensor.detach(),
        contents=tensor.detach().clone(),
        requires_grad=tensor.requires_grad,
        gradient=gradient,
        gradient_contents=gradient.detach().clone() if gradient is not None else None,
        version=_version_of(tensor),
    )


def _version_of(tensor: torch.Tensor) -> int:
    """The version counter of a parameter; -1 for what is always compared by content."""
    if tensor.is_inference() or not isinstance(tensor, nn.Parameter):
        return -1
    return int(tensor._version)  # noqa: SLF001 - torch offers no public reader


def _same_storage(kept: KeptTensor) -> bool:
    tensor, storage = kept.tensor, kept.storage
    return (
        tensor.data_ptr() == storage.data_ptr()
        and tensor.shape == storage.shape
        and tensor.dtype == storage.dtype
        and tensor.stride() == storage.stride()
    )


def is_untouched(kept: KeptTensor) -> bool:
    """Whether a parameter's version counter and storage say that nothing was written."""
    return kept.version >= 0 and kept.version == _version_of(kept.tensor) and _same_storage(kept)


def tensor_changed(kept: KeptTensor) -> bool:
    """Whether contents or `requires_grad` are not as they were."""
    if kept.tensor.requires_grad != kept.requires_grad:
        return True
    return not same_bits(kept.tensor.detach(), kept.contents)


def restore_tensor(kept: KeptTensor) -> None:
    """Bring a tensor back; one that was written behind its version counter (`.data`) is compared each time from now."""
    unseen = is_untouched(kept)
    if unseen and not tensor_changed(kept):
        return
    _bring_back(kept)
    kept.version = -1 if unseen or kept.version < 0 else _version_of(kept.tensor)


def _bring_back(kept: KeptTensor) -> None:
    with torch.no_grad():
        if not _same_storage(kept):
            kept.tensor.data = kept.storage
        if not same_bits(kept.storage, kept.contents):
            kept.storage.copy_(kept.contents)
    if kept.tensor.is_leaf and kept.tensor.requires_grad != kept.requires_grad:
        kept.tensor.requires_grad_(kept.requires_grad)


def gradient_changed(kept: KeptTensor) -> bool:
    """Whether `.grad` is another tensor, or holds other bits."""
    gradient = kept.tensor.grad if kept.tensor.is_leaf else None
    if gradient is not kept.gradient:
        return True
    return (
        gradient is not None
        and kept.gradient_contents is not None
        and not same_bits(gradient.detach(), kept.gradient_contents)
    )


def restore_gradient(kept: KeptTensor) -> None:
    """Bring `.grad` back: the same tensor with the same bits."""
    kept.tensor.grad = kept.gradient
    if kept.gradient is not None and kept.gradient_contents is not None:
        with torch.no_grad():
            kept.gradient.detach().copy_(kept.gradient_contents)
