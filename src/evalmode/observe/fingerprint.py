"""Which model and which machine: the digest of a model's weights, and the records that a certificate keeps."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

import evalmode
from evalmode.certificate import Environment, ModelRecord
from evalmode.mode.weights import registered_weights, unregistered_weights
from evalmode.observe.tree import tensor_leaves

__all__ = ["digest_of", "environment_record", "fingerprint", "model_record"]


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the name, dtype, shape and bytes of every parameter and buffer, in the order of their names.

    What `evalmode.mode.weights` finds beside registration counts too; where there is nothing of that kind, it leaves no
    trace in the digest.

    Example:
        >>> fingerprint(nn.ReLU()) == fingerprint(nn.Sigmoid())
        True
        >>> len(fingerprint(nn.Linear(2, 2)))
        64
    """
    registered = _digest(sorted(registered_weights(model), key=lambda item: item[0]))
    others = unregistered_weights(model)
    if not others:
        return registered
    # the parts of a set come in any order: they are sorted by what they hold
    digests = sorted(_digest([pair]) for pair in others)
    return hashlib.sha256("\n".join((registered, *digests)).encode()).hexdigest()


def digest_of(outputs: Any) -> str:
    """SHA-256 over every tensor of an output tree, with paths, dtypes and shapes: equal digests mean equal bits.

    Example:
        >>> digest_of(torch.zeros(2)) == digest_of(torch.zeros(2))
        True
    """
    return _digest(tensor_leaves(outputs))


def model_record(model: nn.Module) -> ModelRecord:
    """The record of `model` that a certificate keeps."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    known = [tensor for tensor in tensors if not is_lazy(tensor)]
    return ModelRecord(
        name=type(model).__name__,
        modules=sum(1 for _ in model.modules()),
        parameters=sum(parameter.numel() for parameter in model.parameters() if any(parameter is t for t in known)),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in known),
        fingerprint=fingerprint(model),
    )


def environment_record(device: torch.device | str = "cpu") -> Environment:
    """The record of this machine and process."""
    place = torch.device(device)
    return Environment(
        evalmode=evalmode.__version__,
        python=platform.python_version(),
        torch=str(torch.__version__),
        device=torch.cuda.get_device_name(place) if place.type == "cuda" else str(place),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        platform=platform.platform(),
    )


def _digest(named: list[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(repr(name).encode())
        if is_lazy(tensor):
            digest.update(b"uninitialised")
            continue
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        plain = tensor.detach()
        plain = plain.to_dense() if plain.layout is not torch.strided else plain
        plain = plain.int_repr() if plain.is_quantized else plain.resolve_conj().resolve_neg()
        plain = plain.contiguous().reshape(-1)
        if plain.numel() and not plain.is_meta:
            digest.update(plain.view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
