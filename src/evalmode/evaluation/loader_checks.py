"""Whether what a DataLoader does is right for an exact evaluation, and if not, what to write instead."""

from __future__ import annotations

import contextlib
import errno
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from evalmode.errors import TaskError, UsageError
from evalmode.evaluation.batches import loaded_apart
from evalmode.observe.tree import leaves, same_bits

__all__ = [
    "PADDING_FIX",
    "broken_pipes_told",
    "endless",
    "refuse_repeating",
    "require_apart",
    "require_end",
    "worker_deaths_told",
]

PADDING_FIX = (
    "pad every sample to one length in the dataset (a tokeniser's padding='max_length'), or hand over the dataset "
    "itself, whose samples are grouped by their own length; exact=False runs the batches as they come"
)
_AS_THEY_COME = "exact=False evaluates the batches as they come, and says so"
_PROBES = 16
_SIGNAL_SECONDS = 0.5  # until the signal of a process that has ended has surely been heard
_DIED = "a process that reads samples died"


def refuse_repeating(loader: DataLoader[Any]) -> tuple[str, ...]:
    """What is to be said about a loader whose samplers name every sample once and in an order of their own.

    Raises:
        TaskError: they draw at random, repeat samples, or leave some out.
    """
    batches: Any = loader.batch_sampler
    plain = type(batches) in {BatchSampler, type(None)}
    sampler: Any = batches.sampler if type(batches) is BatchSampler else loader.sampler
    for owner in (sampler, getattr(batches, "sampler", None)):
        if isinstance(owner, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
            raise TaskError(
                f"the DataLoader draws its samples at random ({type(owner).__name__})",
                expected="every sample once, in a fixed order",
                fix=f"DataLoader(..., shuffle=False), or hand over the dataset; {_AS_THEY_COME}",
            )
        if isinstance(owner, DistributedSampler):
            raise TaskError(
                "the DataLoader has a DistributedSampler: it gives one process its share, and repeats samples to make "
                "the shares equal",
                expected="every sample once",
                fix=f"evaluate the dataset in one process: DataLoader(dataset); {_AS_THEY_COME}",
            )
    if plain and type(sampler) is SequentialSampler:
        left_out = len(sampler) % batches.batch_size if batches is not None and batches.drop_last else 0
        return (f"drop_last=True is not followed: the last {left_out} samples count as well",) if left_out else ()
    total = len(loader.dataset)  # type: ignore[arg-type]
    given = _named(sampler if plain else batches, total)
    who = type(sampler if plain else batches).__name__
    counts = np.bincount(np.asarray(given, dtype=np.int64), minlength=total) if given else np.zeros(total, int)
    if (twice := int((counts > 1).sum())) or (never := int((counts == 0).sum())):
        what = f"repeats {twice} of {total} samples" if twice else f"leaves {never} of {total} samples out"
        raise TaskError(
            f"the DataLoader's {who} {what}",
            expected="every sample once",
            fix=f"for a part of the data DataLoader(torch.utils.data.Subset(dataset, indices)); {_AS_THEY_COME}",
        )
    return (f"the order of the DataLoader's {who} is not followed: samples are in the order of the dataset",)


def _named(sampler: Any, total: int) -> list[int]:
    """The positions that a sampler or batch sampler gives, and at most twice as many as there are samples."""
    found: list[int] = []
    for entry in loaded_apart(lambda: itertools.islice(iter(sampler), 2 * total)):  # a sampler may never end
        found += [int(index) for index in entry] if isinstance(entry, Iterable) else [int(entry)]
    if any(not 0 <= index < total for index in found):
        raise TaskError(
            f"the DataLoader's {type(sampler).__name__} names samples outside the dataset of {total}",
            expected=f"positions from 0 to {total - 1}",
        )
    return found


@contextlib.contextmanager
def worker_deaths_told() -> Iterator[None]:
    """Raises `TaskError` where a process that reads samples dies.

    torch has a bare `RuntimeError` for it, which its signal handler raises wherever the main thread is: in the model,
    in a metric, in the journal. What a worker's dataset raised is no death, and stays as it is.
    """
    try:
        yield
    except Exception as error:
        told = isinstance(error, TaskError) and error.got.startswith(_DIED)
        if not told and any(map(_says_death, _chain(error))):
            raise _died(error) from error
        raise


@contextlib.contextmanager
def broken_pipes_told() -> Iterator[None]:
    """Raises `TaskError` where what a process that reads samples was sending breaks off, as it dies.

    For reading by processes alone: what the dataset raises there says that it was caught in a worker.
    """
    try:
        yield
    except (EOFError, OSError) as error:
        torn = isinstance(error, EOFError | ConnectionError | FileNotFoundError) or error.errno == errno.EBADF
        if not torn or "in DataLoader worker process" in str(error):
            raise
        time.sleep(_SIGNAL_SECONDS)  # torch's handler raises too: let it do so here, not in what runs afterwards
        raise _died(error) from error


def _died(error: Exception) -> TaskError:
    said = next((str(seen) for seen in _chain(error) if _says_death(seen)), f"{type(error).__name__}: {error}")
    return TaskError(
        f"{_DIED}: {said}",
        expected="samples that can be read, and memory for every process",
        fix="workers=0 (num_workers=0 of a DataLoader) reads in this process and shows the error; fewer workers need "
        "less memory",
    )


def _says_death(error: BaseException) -> bool:
    text = str(error)
    return (
        isinstance(error, RuntimeError)
        and text.startswith("DataLoader worker (pid")
        and any(words in text for words in ("exited unexpectedly", "is killed by signal"))
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause or context, and so on; an error that is raised twice may be in its own chain."""
    seen: BaseException | None = error
    known: set[int] = set()
    while seen is not None and id(seen) not in known:
        yield seen
        known.add(id(seen))
        seen = seen.__cause__ or seen.__context__


def endless(kind: str) -> UsageError:
    """The error for data that cannot tell its length, and so may never end."""
    return UsageError(
        f"{kind} is a stream without length: it may never end",
        expected="a limit, or __len__",
        fix="limit=10_000, or limit=math.inf if it ends by itself",
    )


def require_end(data: Any) -> None:
    """Refuse a stream, or a DataLoader of one or with a sampler of one, that has no length.

    Raises:
        UsageError: it may never end.
    """
    if not isinstance(data, DataLoader | IterableDataset):
        return
    try:
        len(data)  # type: ignore[arg-type]
    except TypeError:  # a stream says by it that it has no length
        raise endless(f"the {type(getattr(data, 'dataset', data)).__name__}") from None


def require_apart(fetch: Callable[[int], Any] | None, samples: int, collate: Callable[[list[Any]], Any]) -> None:
    """Refuse a collate that changes a sample with its companions, as padding to the longest of them does.

    Some samples, spread over the data, are collated alone and together. Samples that cannot be read or collated here
    are told when they are evaluated.

    Raises:
        TaskError: a sample has another shape or other values beside companions.
    """
    if fetch is None or samples < 2:
        return
    places = np.unique(np.linspace(0, samples - 1, min(_PROBES, samples)).round().astype(int)).tolist()
    read: list[tuple[int, Any, Any]] = []
    for place in places:
        try:
            sample = loaded_apart(lambda place=place: [fetch(place)])[0]  # type: ignore[misc]
            read.append((place, sample, loaded_apart(lambda sample=sample: [collate([sample])])[0]))  # type: ignore[misc]
        except Exception:  # noqa: BLE001, S112 - a broken sample is told with its id when its turn comes
            continue
    for first in range(len(read) - 1):
        pair = (read[first], read[first + 1])
        try:
            together = loaded_apart(lambda pair=pair: [collate([sample for _, sample, _ in pair])])[0]  # type: ignore[misc]
        except Exception:  # noqa: BLE001, S112 - samples of different shapes are grouped by their own, not collated
            continue
        for row, (place, _, alone) in enumerate(pair):
            if (how := _changed(alone, together, row)) is not None:
                raise TaskError(
                    f"collate_fn changes a sample with its companions: sample {place} is {how}",
                    expected="the same values for a sample, whatever it is loaded with",
                    fix=PADDING_FIX,
                )


def _changed(alone: Any, together: Any, row: int) -> str | None:
    """How a sample differs that was collated alone and as `row` of two; None where it does not."""
    one, both = dict(leaves(alone)), dict(leaves(together))
    for path, leaf in one.items():
        other = both.get(path)
        if not isinstance(leaf, torch.Tensor) or not isinstance(other, torch.Tensor):
            continue
        if not leaf.ndim or len(leaf) != 1 or not other.ndim or len(other) != 2:
            continue
        where = f" at {path}" if path else ""
        if leaf[0].shape != other[row].shape:
            return f"{list(leaf[0].shape)} alone and {list(other[row].shape)} beside another one{where}"
        if not same_bits(leaf[0], other[row]):
            return f"of other values beside another one{where}"
    return None
