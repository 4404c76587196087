"""Test data as samples that can be asked for: whatever it comes from, every sample once, with its place in the data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate, default_convert

from evalmode.errors import TaskError
from evalmode.evaluation.batches import loaded_apart
from evalmode.evaluation.given_columns import is_texts, odd_part, with_arrays
from evalmode.evaluation.loader_checks import refuse_repeating, require_apart
from evalmode.observe.columns import together
from evalmode.observe.tree import describe, map_leaves

__all__ = ["Source", "source_of"]

Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True, slots=True)
class Source:
    """Samples by position (`fetch`), one after the other (`stream`), or whole rows of arrays at once (`rows`).

    `samples` is None where the data does not know its length. `fetch` gives one sample and raises what the data raises.
    `collate` makes a batch of samples; `own_collate` says that it is the user's. `kind` names the data in messages.
    `ends` says of data that does not know its length that it ends.
    """

    kind: str
    samples: int | None
    collate: Collate = field(repr=False, default=default_collate)
    fetch: Callable[[int], Any] | None = field(repr=False, default=None)
    stream: Callable[[], Iterator[Any]] | None = field(repr=False, default=None)
    rows: Callable[[Sequence[int]], Any] | None = field(repr=False, default=None)
    own_collate: bool = False
    notes: tuple[str, ...] = ()
    dataset: Any = field(repr=False, default=None)
    ends: bool = False

    def sample(self, place: int) -> Any:
        """One sample, read on evaluation's own random streams; None where it cannot be read."""
        if self.rows is not None:
            return map_leaves(
                lambda _, leaf: leaf if isinstance(leaf, str) else leaf[0], self.rows(range(place, place + 1))
            )
        fetch = self.fetch
        try:
            return None if fetch is None else loaded_apart(lambda: [fetch(place)])[0]
        except Exception:  # noqa: BLE001 - a decoder of the user's may raise anything; without it there is no picture
            return None


def source_of(data: Any) -> Source:
    """The samples of `data`: a dataset, a DataLoader, arrays, a Hugging Face dataset, or the path of a Parquet file.

    From a DataLoader its dataset and collate are taken: which samples are loaded together is decided here.

    Raises:
        TaskError: it is none of these, it is empty, or it cannot be evaluated sample by sample; the message has the
            fix.

    Example:
        >>> source_of((torch.zeros(5, 2), torch.zeros(5))).samples
        5
    """
    if isinstance(data, str | os.PathLike):
        from evalmode.evaluation.parquet import parquet_rows

        rows = parquet_rows(data)
        return _of_dataset(rows, together, own=False, kind=f"the Parquet file {os.fspath(data)!r}")
    if isinstance(data, DataLoader):
        return _of_loader(data)
    data = with_arrays(data)
    if isinstance(data, IterableDataset):
        return _of_stream(data, default_collate, own=False)
    if isinstance(data, TensorDataset):
        return _of_arrays(data.tensors, "the TensorDataset")
    if _is_hugging_face(data):
        return _of_dataset(_formatted(data), default_collate, own=False, kind="the Hugging Face dataset")
    if _is_arrays(data):
        return _of_arrays(data, "the data")
    if isinstance(data, tuple | list) and len(data) == 2 and _is_columns(data):
        return _of_dataset(_Zipped(*data), default_collate, own=False, kind="the pair (inputs, targets)")
    if _is_dataset(data):
        return _of_dataset(data, default_collate, own=False, kind=f"the {type(data).__name__}")
    parts = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, tuple) else ()
    for name, part in parts:
        if not _is_arrays({name: part}):
            raise odd_part(data, name, part)
    raise TaskError(
        f"test data of type {type(data).__name__}: {describe(data)}",
        expected="a dataset with __len__ and __getitem__, a DataLoader, a pair (inputs, targets) of arrays, "
        "a Hugging Face dataset, or the path of a Parquet file",
        fix="evalmode.evaluate(model, torch.utils.data.TensorDataset(inputs, targets))",
    )


def _of_loader(loader: DataLoader[Any]) -> Source:
    collate: Any = loader.collate_fn
    own = collate is not default_collate
    if isinstance(loader.dataset, IterableDataset):
        if loader.batch_size is None:
            return _of_ready_batches(loader)
        return _of_stream(loader.dataset, collate, own=own)
    notes = refuse_repeating(loader)
    if loader.batch_size is None and loader.batch_sampler is None:
        return _of_ready_batches(loader)
    dataset: Any = loader.dataset
    if isinstance(dataset, TensorDataset) and not own:
        source = _of_arrays(dataset.tensors, "the TensorDataset")
    else:
        source = _of_dataset(dataset, collate, own=own, kind=f"the {type(dataset).__name__}")
    if own:
        require_apart(source.fetch, source.samples or 0, collate)
    return Source(
        source.kind,
        source.samples,
        source.collate,
        source.fetch,
        source.stream,
        source.rows,
        own,
        (*source.notes, *notes),
        source.dataset,
    )


def _of_ready_batches(loader: DataLoader[Any]) -> Source:
    """A loader without batch size: what its dataset gives is a sample, or a batch, which is cut into samples."""
    from evalmode.evaluation.ready_batches import is_one_sample, samples_of

    dataset: Any = loader.dataset
    kind = f"the {type(dataset).__name__}"
    ends = not isinstance(dataset, IterableDataset)
    convert: Any = loader.collate_fn  # of one item, where there is no batch size
    own = convert is not default_convert
    if ends and not own:
        if not len(dataset):
            raise empty(kind)
        try:
            single = is_one_sample(loaded_apart(lambda: [dataset[0]])[0])
        except Exception:  # noqa: BLE001 - a sample that cannot be read is told with its id when its turn comes
            single = False
        if single:
            return _of_dataset(dataset, default_collate, own=False, kind=kind)
    note = "the DataLoader has batch_size=None: batches that its dataset gives are cut into samples"
    return Source(
        kind, None, stream=lambda: samples_of(_items(dataset, convert if own else None)), notes=(note,), ends=ends
    )


def _items(dataset: Any, convert: Callable[[Any], Any] | None) -> Iterator[Any]:
    ends = not isinstance(dataset, IterableDataset)
    items = (dataset[place] for place in range(len(dataset))) if ends else iter(dataset)
    return items if convert is None else map(convert, items)


def _of_stream(data: IterableDataset[Any], collate: Collate, *, own: bool) -> Source:
    try:
        length: int | None = len(data)  # type: ignore[arg-type]
    except TypeError:  # a stream says by it that it has no length
        length = None
    if length == 0:
        raise empty(f"the {type(data).__name__}")
    return Source(f"the {type(data).__name__}", length, collate, stream=lambda: iter(data), own_collate=own)


def _of_dataset(data: Any, collate: Collate, *, own: bool, kind: str) -> Source:
    if not len(data):
        raise empty(kind)
    return Source(kind, len(data), collate, fetch=data.__getitem__, own_collate=own, dataset=data)


def _of_arrays(data: Any, kind: str) -> Source:
    columns = _columns(data)
    tensors = [leaf for leaf in columns if isinstance(leaf, torch.Tensor)]
    odd = next((leaf for leaf in tensors if leaf.is_nested or leaf.layout is not torch.strided), None)
    if odd is not None:
        layout = "" if odd.is_nested else f", {odd.layout}"
        raise TaskError(
            f"{kind} holds {describe(odd)}{layout}, which is not dense",
            expected="dense tensors, whose first axis counts samples",
            fix="tensor.to_dense(); or a dataset whose samples are what the model takes",
        )
    lengths = [len(leaf) for leaf in columns]
    if len(set(lengths)) != 1 or not lengths[0]:
        if set(lengths) == {0}:
            raise empty(kind)
        raise TaskError(
            f"{kind} has {' and '.join(map(str, lengths))} samples",
            expected="the same number in each array, at least one",
            fix="look at what test_data() returns",
        )
    return Source(kind, lengths[0], rows=lambda positions: _picked(data, _as_slice(positions)), dataset=data)


def empty(kind: str) -> TaskError:
    """The error for data without samples."""
    return TaskError(f"{kind} is empty", expected="at least one sample", fix="look at what the data was made from")


class _Zipped:
    """Samples of columns that are no arrays: lists of tensors of different lengths, of text, of images."""

    def __init__(self, inputs: Any, targets: Any) -> None:
        self.inputs, self.targets = inputs, targets
        if len(inputs) != len(targets):
            raise TaskError(
                f"the pair (inputs, targets) has {len(inputs)} and {len(targets)} samples",
                expected="the same number in each",
                fix="look at what test_data() returns",
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, position: int) -> tuple[Any, Any]:
        return self.inputs[position], self.targets[position]


def _is_array(part: object) -> bool:
    return isinstance(part, torch.Tensor | np.ndarray) and part.ndim > 0 and not _is_objects(part)


def _is_objects(part: object) -> bool:
    return isinstance(part, np.ndarray) and part.dtype.kind not in "biufc"


def _is_arrays(data: object, depth: int = 0) -> bool:
    """Arrays with samples along axis 0, in a tuple or mapping; a list of two arrays is a pair of them.

    A mapping may hold texts beside them.
    """
    if isinstance(data, Mapping):
        return (
            bool(data) and depth < 4 and all(is_texts(value) or _is_arrays(value, depth + 1) for value in data.values())
        )
    if isinstance(data, tuple) or (isinstance(data, list) and len(data) == 2 and not depth):
        return bool(data) and depth < 4 and all(_is_arrays(value, depth + 1) for value in data)
    return _is_array(data)


def _is_columns(data: Sequence[Any]) -> bool:
    """Two columns as long as each other, the first of which is a list: not one of the two is a sample of its own."""
    inputs, targets = data
    listed = isinstance(inputs, list) or _is_objects(inputs) or isinstance(targets, list) or _is_objects(targets)
    return listed and all(isinstance(part, list | torch.Tensor | np.ndarray) and len(part) > 0 for part in data)


def _is_dataset(data: object) -> bool:
    if isinstance(data, str | bytes | Mapping | tuple | torch.Tensor | np.ndarray | torch.nn.Module | type):
        return False
    return isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__"))


def _is_hugging_face(data: object) -> bool:
    return not isinstance(data, type) and all(
        hasattr(data, name) for name in ("features", "with_format", "__len__", "__getitem__")
    )


def _formatted(data: Any) -> Any:
    """The dataset with tensors instead of Python lists, unless its user has chosen a format."""
    chosen = getattr(data, "format", None)
    if isinstance(chosen, Mapping) and chosen.get("type") not in {None, "python"}:
        return data
    return data.with_format("torch")


def _columns(data: Any) -> list[Any]:
    if isinstance(data, Mapping):
        return [leaf for value in data.values() for leaf in _columns(value)]
    if isinstance(data, tuple | list):
        return [leaf for value in data for leaf in _columns(value)]
    return [data]


def _as_slice(positions: Sequence[int]) -> slice | list[int]:
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions) and (
        isinstance(positions, range) or list(positions) == [*range(first, last + 1)]
    ):
        return slice(first, last + 1)
    return list(positions)


def _picked(data: Any, rows: slice | list[int]) -> Any:
    if isinstance(data, Mapping):
        return {name: _picked(value, rows) for name, value in data.items()}
    if isinstance(data, tuple | list):
        return tuple(_picked(value, rows) for value in data)
    picked = data[rows]
    if is_texts(picked):
        return picked.tolist()
    if isinstance(picked, np.ndarray):
        if any(stride < 0 for stride in picked.strides):
            picked = picked.copy()  # torch takes no array that runs backwards
        picked = picked.astype(picked.dtype.newbyteorder("="), copy=False)  # nor one in the other byte order
    return torch.as_tensor(picked)
