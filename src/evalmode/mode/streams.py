"""The random streams of a process, swapped for evaluation's own and swapped back.

A rewound stream would give every evaluation the same numbers; an untouched one would let evaluation advance training's.
So evaluation has streams of its own. They are seeded from the training seed without drawing from it, go on at the next
evaluation, and start anew when the training seed is set anew.
"""

from __future__ import annotations

import hashlib
import random
import threading
import warnings
from dataclasses import dataclass

import torch

from evalmode.errors import EvalmodeWarning
from evalmode.mode.stream_states import StreamStates, cuda_generators, numpy_random, read_streams, write_streams

__all__ = ["StreamHold", "hold_streams", "release_streams"]


@dataclass(slots=True, eq=False)
class StreamHold:
    """One evaluation's share in the swapped streams. `swapped` stays False if they were left alone."""

    swapped: bool = False


class _Process:
    """What this process knows about its streams. Every access holds `lock`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.holds: set[StreamHold] = set()
        self.thread = 0
        self.training: StreamStates | None = None
        self.evaluation: StreamStates | None = None
        self.drawn_from = False
        self.left: torch.Tensor | None = None
        self.mark: tuple[object, ...] = ()
        self.warned = False


_process = _Process()


def hold_streams(hold: StreamHold) -> None:
    """Swap the process's random streams for evaluation's, unless that is done already.

    Streams are process-wide: if another thread holds them, they are left alone and a warning says so, once.
    """
    with _process.lock:
        if _process.holds and _process.thread != threading.get_ident():
            if not _process.warned:
                _process.warned = True
                warnings.warn(
                    "evaluations overlap on different threads: random streams belong to the process, so the later "
                    "evaluation draws from the same streams as the earlier one (said once; rng='leave' never swaps)",
                    EvalmodeWarning,
                    stacklevel=5,
                )
            return
        hold.swapped = True
        if not _process.holds:
            mark = _seeding_mark()
            training = read_streams()
            if _process.evaluation is None or not _same_mark(mark, _process.mark) or _begins_anew(training):
                _process.evaluation = _seeded(torch.initial_seed(), training)
                _process.mark = mark
            evaluation = _completed(_process.evaluation, training)
            _process.training = training
            _process.thread = threading.get_ident()
            _process.holds.add(hold)  # from here on a release puts training's streams back
            write_streams(evaluation)
            _process.drawn_from = True
        else:
            _process.holds.add(hold)


def release_streams(hold: StreamHold) -> None:
    """Give training its streams back when the last evaluation that holds them lets go. Safe to call twice."""
    with _process.lock:
        if not hold.swapped or hold not in _process.holds:
            return
        if len(_process.holds) == 1 and _process.training is not None:
            if _process.drawn_from:  # not again after an interruption, when training's streams are half back
                _process.evaluation = read_streams()
                _process.drawn_from = False
            write_streams(_process.training)
            _rewind_new_cuda(_process.training)
            _process.mark = _seeding_mark()  # a seed set inside evaluation is evaluation's business
            _process.left = _process.training.torch_cpu
            _process.training = None
        _process.holds.discard(hold)


def _seeding_mark() -> tuple[object, ...]:
    """Changes when the process is seeded: the seed itself, and a trace that seeding with the same seed leaves too.

    Every torch.manual_seed queues a fresh call for CUDA while CUDA is not initialised; its identity tells two seedings
    with one seed apart. Where torch keeps no such trace, `_begins_anew` looks at the stream itself.
    """
    tracker = getattr(torch.cuda, "_lazy_seed_tracker", None)
    return torch.initial_seed(), getattr(tracker, "manual_seed_all_cb", None)


def _same_mark(first: tuple[object, ...], second: tuple[object, ...]) -> bool:
    return len(first) == len(second) and first[0] == second[0] and first[1] is second[1]


def _begins_anew(training: StreamStates) -> bool:
    """Whether training's stream is at the start of its seed and was not when the last evaluation gave it back."""
    if _process.left is None or not torch.cuda.is_initialized():
        return False
    start = torch.Generator().manual_seed(torch.initial_seed()).get_state()
    return torch.equal(training.torch_cpu, start) and not torch.equal(_process.left, start)


def _rewind_new_cuda(training: StreamStates) -> None:
    """Devices that came up inside evaluation drew from training's stream: set them back to its start."""
    if training.cuda is None:
        for generator in cuda_generators() or ():
            generator.manual_seed(generator.initial_seed())


def _completed(evaluation: StreamStates, training: StreamStates) -> StreamStates:
    """`evaluation` with fresh streams for what has come up since: CUDA, numpy, another numpy bit generator."""
    kinds = [states.numpy and states.numpy["bit_generator"] for states in (evaluation, training)]
    if kinds[0] == kinds[1] and (evaluation.cuda is None) == (training.cuda is None):
        return evaluation
    fresh = _seeded(torch.initial_seed(), training)
    return StreamStates(
        torch_cpu=evaluation.torch_cpu,
        python=evaluation.python,
        numpy=evaluation.numpy if kinds[0] == kinds[1] else fresh.numpy,
        cuda=evaluation.cuda if evaluation.cuda is not None and training.cuda is not None else fresh.cuda,
    )


def _seeded(seed: int, like: StreamStates) -> StreamStates:
    """Fresh streams derived from `seed`, of the same kinds as `like`."""
    own = int.from_bytes(hashlib.sha256(f"evalmode evaluation {seed}".encode()).digest()[:8], "little")
    numpy_state = None
    if like.numpy is not None:
        numpy = numpy_random()
        bit_generator = getattr(numpy, like.numpy["bit_generator"])
        numpy_state = numpy.RandomState(bit_generator(own % 2**32)).get_state(legacy=False)
    cuda = None
    if like.cuda is not None:
        cuda = tuple(
            torch.Generator(generator.device).manual_seed(own).get_state() for generator in cuda_generators() or ()
        )
    return StreamStates(
        torch_cpu=torch.Generator().manual_seed(own).get_state(),
        python=random.Random(own).getstate(),  # noqa: S311 - a reproducible stream, no secret
        numpy=numpy_state,
        cuda=cuda,
    )
