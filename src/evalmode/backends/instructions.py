"""Which reduced precisions the processor has instructions for: without them they are slower than fp32, not faster."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

__all__ = ["Instructions", "instruction_sets", "instructions", "reduced_precisions"]


@dataclass(frozen=True, slots=True)
class Instructions:
    """What a processor computes in hardware: products of bf16 or fp16 numbers, and tiles of them (AMX)."""

    bf16: bool = False
    fp16: bool = False
    amx: bool = False


@functools.cache
def instructions() -> Instructions:
    """Those of this processor, read once.

    Source: Intel Architecture Instruction Set Extensions, `AVX512_BF16`, `AMX-BF16`, `AVX512_FP16`; Arm Architecture
    Reference Manual, `FEAT_BF16`; oneDNN developer guide, Data Types.

    Example:
        >>> isinstance(instructions().bf16, bool)
        True
    """
    found = _capabilities()
    amx = bool(found.get("amx_tile"))
    bf16 = any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
    fp16 = any(found.get(name) for name in ("avx512_fp16", "amx_fp16"))
    return Instructions(bf16=bf16, fp16=fp16, amx=amx)


def reduced_precisions(device: str) -> tuple[str, ...]:
    """The precisions below fp32 that torch computes in hardware on `device`, the exactest first.

    Example:
        >>> reduced_precisions("meta")
        ()
    """
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            return ()
        recent = torch.cuda.get_device_capability(torch.device(device))[0] >= 8  # Ampere brought TF32 and bf16
        return ("tf32", "fp16", "bf16") if recent else ("fp16",)
    return ("bf16",) if device == "cpu" and instructions().bf16 else ()


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """The names of the processor's instruction sets, of which machine code may use any.

    Example:
        >>> all(isinstance(name, str) for name in instruction_sets())
        True
    """
    return tuple(sorted(name for name, value in _capabilities().items() if value is True))


def _capabilities() -> dict[str, object]:
    read = getattr(torch.cpu, "get_capabilities", None)
    if read is not None:
        return dict(read())
    names = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_tile": "_is_amx_tile_supported"}
    found = {name: bool(getattr(torch.cpu, probe, bool)()) for name, probe in names.items()}
    return {**found, "amx_bf16": found["amx_tile"]}  # every processor with tiles has the bf16 product of them
