"""Which plans are worth a trial: every back end at the callers' size or less first, then variations on the best.

Threads, streams and the micro-batch belong to a candidate as much as its back end: a batch cut into pieces that fit the
cache, or shared out between streams of one thread each, is often faster than one execution of all threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from evalmode.backends.backend import Backend
from evalmode.backends.configuration import Configuration

__all__ = ["QUICK", "Candidate", "build_estimate", "first_batch", "first_round", "variations"]

LARGEST_BATCH = 64
_LONGEST = 1.0  # seconds: half of so long an execution is hardly slower, needs less memory and is judged sooner
QUICK = ("eager", "openvino", "onnxruntime")
"""Back ends that are built in seconds; the others compile."""
_KEEP_ORDER = ("eager", "inductor")  # the others choose the memory order of weights and activations themselves
_BUILD_SECONDS = {
    # seconds before the first operator, and for each operator: on two cores of 2.5 GHz; only the order matters
    "eager": (0.0, 0.0),
    "openvino": (1.0, 0.02),
    "onnxruntime": (1.5, 0.02),
    "inductor": (6.0, 0.08),
    "aot_inductor": (8.0, 0.08),
}


@dataclass(frozen=True)
class Candidate:
    """A back end, how it runs, and which form of the model: `""` as it is, `"passes"`, or `"channels-last"`."""

    backend: Backend
    configuration: Configuration
    form: str = ""
    varied: bool = False

    def __str__(self) -> str:
        return f"{self.configuration}{f', {self.form}' if self.form == 'channels-last' else ''}"

    @property
    def kind(self) -> str:
        """Back end and precision."""
        return f"{self.configuration.backend} {self.configuration.precision}"

    @property
    def name(self) -> str:
        """As tables name it: its kind, and for a variation the streams and the samples of an execution.

        `2x4` is two streams of 4 samples each; `t1` is one thread, `nhwc` the memory order channels-last.
        """
        parts = [self.kind]
        if self.form == "channels-last":
            parts.append("nhwc")
        if self.varied:
            parts.append(f"{self.configuration.streams}x{self.configuration.batch}")
            if self.configuration.threads == 1 and self.configuration.streams == 1:
                parts.append("t1")
        return " ".join(parts)

    def at(self, **changes: int) -> Candidate:
        """The same back end with another batch, other threads or streams."""
        return Candidate(self.backend, msgspec.structs.replace(self.configuration, **changes), self.form, varied=True)


def first_batch(sizes: Sequence[int], sample_seconds: float, smallest: int = 1) -> int:
    """The samples of an execution to begin with: the largest batch of the callers, halved while it takes plain long.

    Not below `smallest`, from which on a graph holds.

    Example:
        >>> first_batch((1, 8), 0.001), first_batch((1, 8), 0.3), first_batch((256,), 0.001)
        (8, 2, 64)
    """
    size = min(max(sizes), LARGEST_BATCH)
    while size > 1 and size * sample_seconds > _LONGEST and -(-size // 2) >= smallest:
        size = -(-size // 2)
    return size


def first_round(
    backends: Iterable[Backend],
    precisions: Sequence[str] | None,
    configuration: Configuration,
    forms: Sequence[str],
) -> list[Candidate]:
    """Candidates for each back end and precision that run here, shaped as `configuration`: the quickest to build first.

    `precisions` limits them; None admits every one the processor has instructions for, the lower ones first. `forms`
    are those that the model has or may have: the back ends that keep the memory order they are given try channels-last
    as well.
    """
    found = []
    for backend in backends:
        if backend.missing() is not None:
            continue
        for precision in backend.precisions(configuration.device):
            if precisions is not None and precision not in precisions:
                continue
            shaped = msgspec.structs.replace(configuration, backend=backend.name, precision=precision)
            found.append(Candidate(backend, shaped, "passes" if "passes" in forms else ""))
            if backend.name in _KEEP_ORDER and "channels-last" in forms:
                found.append(Candidate(backend, shaped, "channels-last"))
    return sorted(found, key=_turn)


def _turn(candidate: Candidate) -> tuple[tuple[float, float], bool]:
    """The quickest build first; of a back end's precisions the lower ones, which gain most where they are admitted."""
    return _BUILD_SECONDS.get(candidate.backend.name, (1.0, 0.02)), candidate.configuration.precision == "fp32"


def variations(candidate: Candidate, sizes: Sequence[int], cores: int, *, smaller: bool = False) -> list[Candidate]:
    """The same back end with other micro-batches, threads and streams, the likeliest to win first.

    `sizes` are the callers' batch sizes, `cores` those that the process may use. With `smaller`, only those that hold
    fewer samples at a time than the candidate does.
    """
    largest = min(max(sizes), LARGEST_BATCH)
    found: list[Candidate] = []
    if candidate.configuration.batch < largest:  # it was begun smaller, so that it is judged at all
        found.append(candidate.at(batch=largest))
    if candidate.backend.streams and cores > 1:
        share = max(1, -(-largest // cores))
        shares = sorted({share, max(1, share // 2), 1}, reverse=True)
        found += [candidate.at(batch=micro, threads=1, streams=cores) for micro in shares if largest > 1]
    found += [candidate.at(batch=micro) for micro in (largest // 2, largest // 4, 1) if 1 <= micro < largest]
    if cores > 1:
        found.append(candidate.at(batch=largest, threads=1))
    held = candidate.configuration.batch * candidate.configuration.streams
    return [
        each
        for each in dict.fromkeys(found)
        if each.configuration != candidate.configuration
        and (not smaller or each.configuration.batch * each.configuration.streams < held)
    ]


def build_estimate(backend: str, operators: int) -> float:
    """About how long a build will take.

    Units: seconds.
    """
    base, each = _BUILD_SECONDS.get(backend, (1.0, 0.02))
    return base + each * operators
