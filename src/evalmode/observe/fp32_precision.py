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
    return tuple(
        _FP32 if (value := _precision(library, operation)) == _UNSET else value for library, operation in _OPERATIONS
    )


def set_fp32_precisions(values: tuple[str, ...]) -> None:
    """Make `fp32_precisions` answer `values`; what follows a wider setting goes on following it where it can."""
    for (library, operation), wanted, now in zip(_OPERATIONS, values, fp32_precisions(), strict=True):
        if wanted == now:
            continue
        _set_precision(library, operation, _UNSET)
        if fp32_precisions()[_OPERATIONS.index((library, operation))] != wanted:
            _set_precision(library, operation, wanted)
