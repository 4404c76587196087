"""The inputs on which an optimised model is tested: the user's own, random ones like them, and edges."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evalmode.backends.backend import Chunk
from evalmode.optimization.samples import Samples
from evalmode.predictor.plan import IntegerRange

__all__ = ["LEAST", "LOUD", "REGULAR", "Leaf", "leaves_of", "probe_samples"]

LEAST = 64
"""At least so many samples are made: the classes of sizes are measured on all of them."""

LOUD = "100 times larger"
_ENDS = ("the smallest value everywhere", "the largest value everywhere")
_ANY = "any value that the model takes"

REGULAR = ("given", "random", "mixed", "shuffled")
"""The kinds that look like the user's data; every other kind is an edge."""

_MASK = re.compile(r"(?<![a-z])(mask|padding)(?![a-z])")
_SENTINEL = 1e4  # a floating input of zeros and values below minus this is added to attention scores


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """One input and what it holds: `values` (floating), `integers`, or a `mask` whose rows keep their pattern.

    `taken` are the whole numbers that the model takes here, None where only the given ones are known to be.
    """

    given: Tensor
    axis: int | None
    name: str
    role: str
    taken: IntegerRange | None = None

    @property
    def count(self) -> int:
        """The number of given samples; 1 where the input belongs to all of them."""
        return 1 if self.axis is None else self.given.shape[self.axis]

    def row(self, position: int) -> Tensor:
        """The input of one given sample, beginning anew after the last."""
        return self.given if self.axis is None else self.given.select(self.axis, position % self.count)


def leaves_of(
    inputs: Chunk, axes: Sequence[int | None], names: Sequence[str], taken: Sequence[IntegerRange | None] | None = None
) -> tuple[Leaf, ...]:
    """Every input with the role that its values and its name show.

    Example:
        >>> [leaf.role for leaf in leaves_of((torch.randn(2, 3), torch.ones(2, 3)), (0, 0), ("x", "attention_mask"))]
        ['values', 'mask']
    """
    return tuple(
        Leaf(tensor.detach(), axis, name, _role(tensor.detach(), name), values)
        for tensor, axis, name, values in zip(inputs, axes, names, taken or [None] * len(inputs), strict=True)
    )


def probe_samples(
    inputs: Chunk,
    axes: Sequence[int | None],
    names: Sequence[str],
    *,
    taken: Sequence[IntegerRange | None] | None = None,
    count: int = LEAST,
    seed: int = 0,
) -> tuple[Samples, ...]:
    """Samples to test with, the most telling first: the given ones, edges, and random ones like the given.

    The first part has `count` samples or more, of the inputs' own dtypes and shapes. Where an input belongs to no
    sample, further parts hold a few samples beside other values of it, so that a plan that baked it in is found.
    Without any axis that counts samples, each part is one whole input. Whole numbers reach to the ends of `taken`.

    Shapes: `inputs` as the program takes them, with any number of samples.

    Example:
        >>> (samples,) = probe_samples((torch.randn(3, 5),), (0,), ("x",))
        >>> len(samples) >= 64, samples.kinds[:3]
        (True, ('given', 'zeros', 'random'))
    """
    generator = torch.Generator().manual_seed(seed)
    leaves = leaves_of(inputs, axes, names, taken)
    makers = _makers(leaves, count, generator)
    rows = [(kind, tuple(make(leaf) for leaf in leaves)) for kind, make in makers]
    if all(axis is None for axis in axes):
        return tuple(Samples(row, tuple(axes), (kind,)) for kind, row in _whole(leaves, generator))
    stacked = tuple(
        leaf.given if leaf.axis is None else torch.stack([row[place] for _, row in rows], leaf.axis)
        for place, leaf in enumerate(leaves)
    )
    samples = Samples(stacked, tuple(axes), tuple(kind for kind, _ in rows))
    return (samples, *_other_shared(samples, leaves, generator))


def _makers(
    leaves: Sequence[Leaf], count: int, generator: torch.Generator
) -> list[tuple[str, Callable[[Leaf], Tensor]]]:
    """What makes each sample, ordered so that every beginning holds edges and ordinary samples."""
    given = max((leaf.count for leaf in leaves if leaf.axis is not None), default=1)
    edges = [(kind, _per_leaf(kind, position, generator)) for position, kind in enumerate(_edge_kinds(leaves))]
    own = min(given, 16)
    ordinary: list[tuple[str, Callable[[Leaf], Tensor]]] = []
    number = 0
    while len(ordinary) + len(edges) < count or number < own:
        if number < own:
            ordinary.append(("given", _own(number)))
        ordinary.extend((kind, _per_leaf(kind, number, generator)) for kind in REGULAR[1:])
        number += 1
    woven: list[tuple[str, Callable[[Leaf], Tensor]]] = []
    for place in range(max(len(edges), len(ordinary))):
        woven.extend(ordinary[place : place + 1])
        woven.extend(edges[place : place + 1])
    return woven


def _own(number: int) -> Callable[[Leaf], Tensor]:
    return lambda leaf: leaf.row(number)


def _per_leaf(kind: str, number: int, generator: torch.Generator) -> Callable[[Leaf], Tensor]:
    return lambda leaf: _row(leaf, kind, number, generator)


def _row(leaf: Leaf, kind: str, number: int, generator: torch.Generator) -> Tensor:
    row = leaf.row(number)
    if leaf.axis is None or not leaf.given.numel():
        return row
    made = _OF_ROLE[leaf.role](leaf, kind, number, generator)
    return made.to(row.dtype).reshape(row.shape)


def _values(leaf: Leaf, kind: str, number: int, generator: torch.Generator) -> Tensor:
    row, given = leaf.row(number), leaf.given
    if kind in _EDGES:
        flat = bool((given == given.reshape(-1)[0]).all())  # zeros or ones are no ground for larger and smaller ones
        return _EDGES[kind](_random_values(given, row, generator) if flat else row)
    if kind == "random":
        return _random_values(given, row, generator)
    return _rearranged(leaf, row, kind, number, generator)


def _random_values(given: Tensor, row: Tensor, generator: torch.Generator) -> Tensor:
    """Normal values with the mean and the spread of the given ones, and like them without negative ones."""
    if row.is_complex():
        parts = torch.view_as_real(row.resolve_conj())
        whole = torch.view_as_real(given.resolve_conj())
        return torch.view_as_complex(_random_values(whole, parts, generator).contiguous())
    finite = given.double()[given.isfinite()]
    if not finite.numel():
        return row
    noise = torch.randn(row.shape, generator=generator, dtype=torch.float64).to(row.device)
    spread = float(finite.std(correction=0)) or 1.0  # an example of zeros or ones says nothing about its spread
    drawn = finite.mean() + noise * spread
    least = finite.min()
    drawn = drawn.clamp(min=float(least)) if least >= 0 else drawn
    return drawn.to(row.dtype)


def _integers(leaf: Leaf, kind: str, number: int, generator: torch.Generator) -> Tensor:
    row, given = leaf.row(number), leaf.given
    low, high = int(given.min()), int(given.max())
    if leaf.taken is not None and kind != "random":
        low, high = min(low, leaf.taken.least), max(high, leaf.taken.most)
    if kind in {"random", _ANY}:
        drawn = torch.randint(low, high + 1, row.shape, generator=generator, dtype=torch.int64)
        return drawn.to(device=row.device, dtype=row.dtype)
    if kind in _ENDS:
        return torch.full_like(row, low if kind == _ENDS[0] else high)
    return _rearranged(leaf, row, kind, number, generator) if kind in REGULAR else row


def _rearranged(leaf: Leaf, row: Tensor, kind: str, number: int, generator: torch.Generator) -> Tensor:
    if kind == "shuffled" and row.dim() > 0:
        order = torch.randperm(row.shape[-1], generator=generator).to(row.device)
        return row.index_select(-1, order)
    if kind == "mixed":
        take = torch.rand(row.shape, generator=generator).to(row.device) < 0.5
        return torch.where(take, row, leaf.row(number + 1))
    return row


def _masks(leaf: Leaf, kind: str, number: int, generator: torch.Generator) -> Tensor:
    """A given row, or one filled on the same side to another length, never masked throughout."""
    row, given = leaf.row(number), leaf.given
    varies = kind in REGULAR[1:] or kind == "one position alone"
    if not varies or row.dim() != 1 or not _is_binary(given) or leaf.axis is None:
        return row
    real = int((given != 0).sum() * 2 >= given.numel())  # most masks say 1 for what is real, key_padding_mask says 0
    rows = given.movedim(leaf.axis, 0)
    padded_before = bool(((rows[:, 0] != real) & (rows[:, -1] == real)).any())
    length = 1 if kind == "one position alone" else int(torch.randint(1, len(row) + 1, (1,), generator=generator))
    made = torch.full_like(row, 1 - real)
    made[:length] = real
    return made.flip(0) if padded_before else made


_OF_ROLE = {"values": _values, "integers": _integers, "mask": _masks}


def _full(value: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda row: torch.ones_like(row) * value(row)


def _spike(row: Tensor) -> Tensor:
    changed = torch.zeros_like(row).reshape(-1)
    changed[len(changed) // 2] = row.abs().max().to(row.dtype) * 10 + 1
    return changed.reshape(row.shape)


def _with(value: float, *, last: bool = False) -> Callable[[Tensor], Tensor]:
    def changed(row: Tensor) -> Tensor:
        flat = row.clone(memory_format=torch.contiguous_format).reshape(-1)
        flat[len(flat) - 1 if last else len(flat) // 3] = value
        return flat.reshape(row.shape)

    return changed


def _denormal(row: Tensor) -> Tensor:
    real = row.real if row.is_complex() else row
    tiny = torch.finfo(real.dtype).tiny
    return (torch.where(real < 0, -1.0, 1.0) * (tiny / 8)).to(row.dtype)


_EDGES: dict[str, Callable[[Tensor], Tensor]] = {
    # the most telling first: where answers take long, only the first few are asked for
    "zeros": torch.zeros_like,
    "one NaN": _with(math.nan),
    "one infinity": _with(math.inf),
    LOUD: lambda row: row * 100,
    "one large value": _spike,
    "1,000,000 times larger": lambda row: row * 1e6,
    "a large constant": _full(lambda row: row.abs().max() * 100 + 100),
    "both infinities": lambda row: _with(-math.inf, last=True)(_with(math.inf)(row)),
    "one minus infinity": _with(-math.inf),
    "negated": torch.neg,
    "denormal": _denormal,
    "NaN throughout": lambda row: torch.full_like(row, math.nan),
    "a constant": _full(lambda row: row.mean()),
    "1,000 times smaller": lambda row: row * 1e-3,
}


def _edge_kinds(leaves: Sequence[Leaf]) -> list[str]:
    """The edges that these inputs have: not below zero where the given values never are."""
    roles = {leaf.role for leaf in leaves if leaf.axis is not None and leaf.given.numel()}
    kinds: list[str] = []
    if "values" in roles:
        floating = [leaf.given for leaf in leaves if leaf.role == "values" and leaf.axis is not None]
        signed = any(tensor.is_complex() or bool((tensor < 0).any()) for tensor in floating)
        kinds.extend(
            kind for kind in _EDGES if signed or kind not in {"negated", "both infinities", "one minus infinity"}
        )
    if "integers" in roles:
        kinds.extend(_ENDS)
        kinds.extend([_ANY] if any(leaf.taken is not None for leaf in leaves) else [])
    if "mask" in roles:
        kinds.append("one position alone")
    return kinds


def _role(tensor: Tensor, name: str) -> str:
    if not tensor.numel() or (_MASK.search(name.lower()) and _is_binary(tensor)):
        return "mask"
    if tensor.is_complex():
        return "values"
    if tensor.is_floating_point():
        return "mask" if _is_additive_mask(tensor) else "values"
    return "integers"


def _is_binary(tensor: Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == 1)).all())


def _is_additive_mask(tensor: Tensor) -> bool:
    """Zeros, and somewhere a value that only a mask added to scores holds."""
    ruled_out = tensor < -_SENTINEL
    return bool(ruled_out.any()) and bool((ruled_out | (tensor == 0)).all())


def _other_shared(samples: Samples, leaves: Sequence[Leaf], generator: torch.Generator) -> tuple[Samples, ...]:
    """A few ordinary samples beside another value of the inputs that belong to no sample."""
    shared = [place for place, leaf in enumerate(leaves) if leaf.axis is None and leaf.given.numel()]
    if not shared:
        return ()
    few = [place for place, kind in enumerate(samples.kinds) if kind in REGULAR][:4]
    part = samples.chosen(few)
    makers: list[tuple[str, Callable[[Leaf], Tensor]]] = [
        ("another shared input", lambda leaf: _another(leaf, generator))
    ]
    if any(leaves[place].role == "integers" and leaves[place].taken is not None for place in shared):
        kinds = (*_ENDS, _ANY)
        makers += [(f"shared: {kind}", lambda leaf, kind=kind: _at_an_end(leaf, kind, generator)) for kind in kinds]  # type: ignore[misc]
    found = []
    for kind, make in makers:
        inputs = tuple(
            make(leaf) if place in shared else tensor
            for place, (leaf, tensor) in enumerate(zip(leaves, part.inputs, strict=True))
        )
        if not all(torch.equal(inputs[place], leaves[place].given) for place in shared):
            found.append(Samples(inputs, part.axes, tuple(kind for _ in few)))
    return tuple(found)


def _another(leaf: Leaf, generator: torch.Generator) -> Tensor:
    """Other values of the same kind for a whole input."""
    given = leaf.given
    if leaf.role == "values":
        return _random_values(given, given, generator)
    if leaf.role == "integers" and given.numel() > 1:
        flat = given.reshape(-1)
        return flat[torch.randperm(len(flat), generator=generator).to(given.device)].reshape(given.shape)
    return given


def _whole(leaves: Sequence[Leaf], generator: torch.Generator) -> list[tuple[str, Chunk]]:
    """Whole inputs, where nothing counts samples: as given, then others like them, then edges."""
    found: list[tuple[str, Chunk]] = [("given", tuple(leaf.given for leaf in leaves))]
    found.extend(("random", tuple(_another(leaf, generator) for leaf in leaves)) for _ in range(11))
    for kind, change in _EDGES.items():
        if any(leaf.role == "values" for leaf in leaves):
            found.append((kind, tuple(change(leaf.given) if leaf.role == "values" else leaf.given for leaf in leaves)))
    if any(leaf.taken is not None and leaf.role == "integers" for leaf in leaves):
        found.extend((kind, tuple(_at_an_end(leaf, kind, generator) for leaf in leaves)) for kind in (*_ENDS, _ANY))
    return found


def _at_an_end(leaf: Leaf, kind: str, generator: torch.Generator) -> Tensor:
    return _integers(leaf, kind, 0, generator) if leaf.taken is not None and leaf.role == "integers" else leaf.given
