"""A few numbers that tell two tensors apart, so that runs are compared without keeping their activations."""

from __future__ import annotations

import torch

__all__ = ["Summary", "differ", "summary_of"]

Summary = tuple[float, ...]
_RELATIVE = 1e-11
_PIECE = 1 << 17  # values that are summed at a time, so that a large activation is not copied whole


def summary_of(tensor: torch.Tensor) -> Summary:
    """A weighted sum, the sum of magnitudes, and how many NaN and infinities: what tells two tensors apart."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return (0.0, 0.0, 0.0, 0.0, float(tensor.numel()))
    values = tensor.detach()
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    flat = values.reshape(-1)
    pieces = [_piece_summary(piece, number * _PIECE) for number, piece in enumerate(flat.split(_PIECE))]
    weighted, magnitude, nans, infinities = (sum(column) for column in zip(*pieces, strict=True))
    return (weighted, magnitude, nans, infinities, float(len(flat)))


def _piece_summary(values: torch.Tensor, start: int) -> tuple[float, float, float, float]:
    flat = values.to(torch.float64)
    finite = torch.where(flat.isfinite(), flat, torch.zeros_like(flat))
    order = torch.arange(start, start + len(flat), dtype=torch.float64, device=flat.device)
    weights = 1.0 + 0.5 * torch.cos(order * 1.7 + 0.3)  # tells orders apart, and a constant shift does not cancel
    return (
        float((finite * weights).sum()),
        float(finite.abs().sum()),
        float(flat.isnan().sum()),
        float((flat == float("inf")).sum() - (flat == float("-inf")).sum()),
    )


def differ(first: Summary, second: Summary, noise: float = 0.0) -> bool:
    """Whether two summaries tell of other values; `noise` is the magnitude of what both were computed from.

    A sum that cancels holds only rounding, which is small beside what was summed.

    Example:
        >>> one = summary_of(torch.tensor([1e-17]))
        >>> differ(one, summary_of(torch.tensor([3e-17]))), differ(one, summary_of(torch.tensor([3e-17])), noise=4.0)
        (True, False)
    """
    if first[2:] != second[2:]:
        return True
    return abs(first[0] - second[0]) > _RELATIVE * max(first[1], second[1], noise, 1e-300)
