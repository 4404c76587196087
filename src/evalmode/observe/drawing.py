"""What an operator's arguments say about a random draw: from which streams, and whether it decides anything."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["is_certain", "streams_of"]


def is_certain(func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """A Bernoulli draw of probability 0 or 1 moves the stream and decides nothing (stochastic depth with rate 0)."""
    if "bernoulli" not in str(func):
        return False
    p = args[1] if len(args) > 1 else named.get("p")
    return isinstance(p, int | float) and p in (0, 1)


def streams_of(args: tuple[Any, ...], named: dict[str, Any]) -> list[torch.Generator]:
    """The process's streams that an operator on these arguments may draw from."""
    streams = [torch.default_generator]
    if torch.cuda.is_initialized():
        places = {leaf.device for leaf in pytree.tree_leaves((args, named)) if isinstance(leaf, torch.Tensor)}
        if named.get("device") is not None:
            places.add(torch.device(named["device"]))
        current = torch.cuda.current_device()
        indices = {place.index if place.index is not None else current for place in places if place.type == "cuda"}
        streams.extend(torch.cuda.default_generators[index] for index in sorted(indices))
    return streams
