"""Executions with a number of torch threads of their own, in whatever thread calls.

`torch.set_num_threads` also sets what threads that never asked will start with. So a thread that has another number
than the one wanted is left alone: the work is done by a worker thread that keeps its number for life. So is one with a
default device of its own.
"""

from __future__ import annotations

import contextvars
import functools
import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

__all__ = ["each_pinned", "function_modes", "pinned"]

Given = TypeVar("Given")
Answer = TypeVar("Answer")

_Task = tuple[Callable[[], Any], "SimpleQueue[tuple[Any, BaseException | None]]"]
_idle: defaultdict[int, deque[_Worker]] = defaultdict(deque)
_CPU = torch.device("cpu")
function_modes: Callable[[], int] = torch._C._len_torch_function_stack  # noqa: SLF001 - no other way to ask
_starting = threading.Lock()


def pinned(threads: int, work: Callable[[Given], Answer], given: Given) -> Answer:
    """`work(given)`, run where torch has `threads` threads; the caller's own number stays as it is.

    Example:
        >>> before = torch.get_num_threads()
        >>> pinned(before + 1, lambda _: torch.get_num_threads() - before, None)
        1
        >>> torch.get_num_threads() == before
        True
    """
    if _fits(threads):
        return work(given)
    (answer,) = _in_workers(threads, [lambda: work(given)])
    return answer


def each_pinned(threads: int, streams: int, work: Callable[[Given], Answer], items: Sequence[Given]) -> list[Answer]:
    """`work` of each item, in order, at most `streams` of them at once, each with `threads` torch threads.

    Raises whatever `work` raises for the first item that fails.

    Example:
        >>> each_pinned(1, 2, lambda x: x * x, [1, 2, 3])
        [1, 4, 9]
    """
    lanes = min(streams, len(items))
    if lanes <= 1:
        if _fits(threads):
            return [work(item) for item in items]
        (found,) = _in_workers(threads, [lambda: [work(item) for item in items]])
        return found
    waiting = deque(enumerate(items))
    answers: dict[int, Answer] = {}

    def lane() -> None:
        while True:
            try:
                index, item = waiting.popleft()
            except IndexError:
                return
            answers[index] = work(item)

    _in_workers(threads, [lane] * lanes)
    return [answers[index] for index in range(len(items))]


def _fits(threads: int) -> bool:
    return torch.get_num_threads() == threads and not (function_modes() and torch.get_default_device() != _CPU)


class _Worker(threading.Thread):
    """A thread with its own number of torch threads, waiting for work."""

    def __init__(self, threads: int) -> None:
        super().__init__(name=f"evalmode-{threads}-threads", daemon=True)
        self.threads = threads
        self.tasks: SimpleQueue[_Task] = SimpleQueue()
        self.ready = threading.Event()

    def run(self) -> None:
        everyone = torch.get_num_threads()  # what a thread starts with that never asked
        torch.set_num_threads(self.threads)
        restorer = threading.Thread(target=torch.set_num_threads, args=(everyone,))
        restorer.start()
        restorer.join()
        self.ready.set()
        while True:
            work, answers = self.tasks.get()
            try:
                answers.put((work(), None))
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
                answers.put((None, error))
            del work, answers  # nothing of a caller's is held while waiting


def _in_workers(threads: int, tasks: Sequence[Callable[[], Answer]]) -> list[Answer]:
    workers = [_worker(threads) for _ in tasks]
    queues: list[SimpleQueue[tuple[Any, BaseException | None]]] = [SimpleQueue() for _ in tasks]
    for worker, task, answers in zip(workers, tasks, queues, strict=True):
        worker.tasks.put((functools.partial(contextvars.copy_context().run, task), answers))
    outcomes = [answers.get() for answers in queues]
    _idle[threads].extend(workers)
    for _, error in outcomes:
        if error is not None:
            raise error
    return [value for value, _ in outcomes]


def _worker(threads: int) -> _Worker:
    try:
        return _idle[threads].pop()
    except IndexError:
        worker = _Worker(threads)
        with _starting:  # while one starts, the number for new threads is wrong for a moment
            worker.start()
            worker.ready.wait()
        return worker


# A child of fork() has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)
