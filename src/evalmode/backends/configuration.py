"""How a back end builds and runs a program: what, with the inputs' own axes, makes an execution shape."""

from __future__ import annotations

import msgspec

__all__ = ["Configuration"]

_MOST_THREADS = 1024


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """One way of running a program.

    `batch` is the number of samples of one execution (the micro-batch), `threads` the number of threads of one
    execution, `streams` the number of executions in flight at once. `precision` is `fp32`, `bf16`, on CUDA also `fp16`
    and `tf32`.

    Example:
        >>> str(Configuration(backend="openvino", batch=8, threads=2))
        'openvino fp32, 8 samples, 2 threads'
    """

    backend: str
    batch: int
    precision: str = "fp32"
    threads: int = 1
    streams: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.threads < 1 or self.streams < 1 or self.threads * self.streams > _MOST_THREADS:
            raise ValueError(
                f"{_counted(self.streams, 'stream')} of {_counted(self.threads, 'thread')}, not at least one of each "
                f"and {_MOST_THREADS:,} threads in all"
            )

    def __str__(self) -> str:
        parts = [f"{self.backend} {self.precision}", _counted(self.batch, "sample"), _counted(self.threads, "thread")]
        if self.streams > 1:
            parts.append(f"{self.streams} streams")
        return ", ".join(parts)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
