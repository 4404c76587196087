"""Small pictures of samples whose input is an image, to look at those that went worst."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evalmode.observe.tree import leaves

__all__ = ["picture_of", "png"]

_LARGEST = 96  # pixels along a side: a report holds many of them


def picture_of(sample: Any) -> str:
    """The first image among a sample's tensors as a PNG in base64; empty where there is none.

    Shapes: `(C, H, W)` or `(H, W, C)` with 1 or 3 channels, or `(H, W)`. Floats are stretched to their own range.

    Example:
        >>> picture_of((torch.zeros(4), 1))
        ''
        >>> picture_of((torch.rand(1, 8, 8), 1))[:8]
        'iVBORw0K'
    """
    for _, leaf in leaves(sample):
        if hasattr(leaf, "convert") and hasattr(leaf, "size"):  # an image of PIL
            leaf = np.asarray(leaf.convert("RGB"))
        pixels = _pixels(leaf)
        if pixels is not None:
            return base64.b64encode(png(pixels)).decode("ascii")
    return ""


def png(pixels: NDArray[np.uint8]) -> bytes:
    """The bytes of a PNG file.

    Shapes: `(H, W)` gray or `(H, W, 3)` colours.

    Source: W3C, "Portable Network Graphics (PNG) Specification", third edition.
    """
    height, width = pixels.shape[:2]
    colours = 2 if pixels.ndim == 3 else 0
    rows = b"".join(b"\0" + np.ascontiguousarray(row).tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _pixels(leaf: Any) -> NDArray[np.uint8] | None:
    if isinstance(leaf, torch.Tensor):
        leaf = leaf.detach().cpu()
        leaf = (leaf.float() if leaf.is_floating_point() else leaf).numpy() if leaf.layout is torch.strided else None
    if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "fu":
        return None
    if leaf.ndim == 3 and leaf.shape[0] in {1, 3} and leaf.shape[2] not in {1, 3}:
        leaf = np.moveaxis(leaf, 0, 2)
    if leaf.ndim == 3 and leaf.shape[2] == 1:
        leaf = leaf[:, :, 0]
    if leaf.ndim not in {2, 3} or (leaf.ndim == 3 and leaf.shape[2] != 3) or min(leaf.shape[:2]) < 8:
        return None
    step = -(-max(leaf.shape[:2]) // _LARGEST)
    leaf = leaf[::step, ::step]
    if leaf.dtype == np.uint8:
        return np.asarray(leaf, np.uint8)
    wide = leaf.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())
    if not np.isfinite(low) or not np.isfinite(high):
        return None
    return np.asarray(np.rint((wide - low) / max(high - low, 1e-12) * 255), np.uint8)
