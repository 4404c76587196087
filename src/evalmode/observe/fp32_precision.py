"""The precision in which torch's own libraries compute with fp32: `torch.set_float32_matmul_precision` and its kin.

It belongs to the process. The older question, `torch.get_float32_matmul_precision`, raises where the newer settings
(`torch.backends.mkldnn.matmul.fp32_precision = "bf16"`) were used; so each library and operation is asked by itself.

Source: https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["fp32_precisions", "set_fp32_precisions"]

_precision: Callable[[str, str], str] = torch._C._get_fp32_precision_getter  # noqa: SLF001 - `fp32_precision` asks it
_set_precision: Callable[[str, str, str], str] = torch._C._set_fp32_precision_setter  # noqa: SLF001
_UNSET, _FP32 = "none", "ieee"
_OPERATIONS = tuple((library, operation) for library in ("mkldnn", "cuda") for operation in ("matmul", "conv", "rnn"))
_TF32_BY_CUDNN = {(_FP32, _FP32): False, ("tf32", "tf32"): True}
# Products of oneDNN and of CUDA: what the older setting makes of both.
_OLDER = {(_FP32, _FP32): "highest", (_FP32, "tf32"): "highest", ("tf32", "tf32"): "high", ("bf16", "tf32"): "medium"}


def fp32_precisions() -> tuple[str, ...]:
    """What holds for products, convolutions and recurrent layers, of oneDNN and then of CUDA: "ieee" is fp32 itself.

    Example:
        >>> torch.set_float32_matmul_precision("medium")
        >>> fp32_precisions()[0]
        'bf16'
        >>> torch.set_float32_matmul_precision("highest")
        >>> fp32_precisions()[0]
        'ieee'
    """
    return tuple([_effective(library, operation) for library, operation in _OPERATIONS])


def set_fp32_precisions(values: tuple[str, ...]) -> None:
    """Make `fp32_precisions` answer `values`; what follows a wider setting goes on following it where it can.

    The older settings are kept in step where they can say the same: torch refuses to read them where they differ.
    """
    changed = [
        (place, wanted)
        for place, wanted, now in zip(_OPERATIONS, values, fp32_precisions(), strict=True)
        if wanted != now
    ]
    if not changed:
        return
    _set_older(values)
    for (library, operation), wanted in changed:
        _set_precision(library, operation, _UNSET)
        if _effective(library, operation) != wanted:
            _set_precision(library, operation, wanted)
    for (library, operation), wanted in zip(_OPERATIONS, values, strict=True):  # the older ones set several at once
        if _effective(library, operation) != wanted:
            _set_precision(library, operation, wanted)


def _set_older(values: tuple[str, ...]) -> None:
    products, convolutions = (values[0], values[3]), (values[4], values[5])
    if products != (now := fp32_precisions())[0:4:3] and products in _OLDER:
        torch.set_float32_matmul_precision(_OLDER[products])
        if products == (_FP32, "tf32"):
            torch.backends.cuda.matmul.allow_tf32 = True
    if convolutions != now[4:] and convolutions in _TF32_BY_CUDNN:
        torch._C._set_cudnn_allow_tf32(_TF32_BY_CUDNN[convolutions])  # noqa: SLF001 - `cudnn.allow_tf32` sets it


def _effective(library: str, operation: str) -> str:
    value = _precision(library, operation)
    return _FP32 if value == _UNSET else value
