from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evalmode.checking.runner import check
from evalmode.observe.other_threads import following_threads
from evalmode.observe.still import still
from evalmode.observe.watch import watch

BATCH = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
POOL = ThreadPoolExecutor(2)  # its threads are older than a check, or begin in the middle of one
Work = Callable[[torch.Tensor], torch.Tensor]
Way = Callable[[Work, torch.Tensor], torch.Tensor]


def by_thread(work: Work, x: torch.Tensor) -> torch.Tensor:
    given: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: given.append(work(x)))
    thread.start()
    thread.join()
    return given[0]


class Running(threading.Thread):
    def __init__(self, work: Work, x: torch.Tensor) -> None:
        super().__init__()
        self.work, self.x = work, x

    def run(self) -> None:
        self.given = self.work(self.x)


def by_subclass(work: Work, x: torch.Tensor) -> torch.Tensor:
    thread = Running(work, x)
    thread.start()
    thread.join()
    return thread.given


def by_pool(work: Work, x: torch.Tensor) -> torch.Tensor:
    return POOL.submit(work, x).result()


def by_own_pool(work: Work, x: torch.Tensor) -> torch.Tensor:
    with ThreadPoolExecutor(1) as pool:
        return next(iter(pool.map(work, [x])))


def by_thread_pool(work: Work, x: torch.Tensor) -> torch.Tensor:
    with ThreadPool(1) as pool:
        return pool.map(work, [x])[0]


def by_asyncio(work: Work, x: torch.Tensor) -> torch.Tensor:
    return asyncio.run(asyncio.to_thread(work, x))


def by_two(work: Work, x: torch.Tensor) -> torch.Tensor:
    return by_thread(lambda y: by_pool(work, y), x)


WAYS: list[Way] = [by_thread, by_subclass, by_pool, by_own_pool, by_thread_pool, by_asyncio, by_two]


class Net(nn.Module):
    def __init__(self, way: Way, work: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))
        self.total = 0
        self._way, self._work = way, work

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._way(lambda y: self._work(self, y), x)


def with_graph(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.layer(x)  # EM161


def without_graph(self: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y = self.layer(x)
    return y.relu()


def graph_after_a_block(self: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y = self.layer(x)
    return self.layer(y)  # EM161


def graph_of_its_own_will(self: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), torch.enable_grad():  # EM161
        return self.layer(x)


def dropping(self: Any, x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.5)  # EM122


def drawing(self: Any, x: torch.Tensor) -> torch.Tensor:
    return x * random.random()  # EM126


def writing(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.count += 1  # EM152
    return x * 2


def counting(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.total += 1  # EM154
    return x * 2


def mixing(self: Any, x: torch.Tensor) -> torch.Tensor:
    return x - x.mean()  # EM171


def normalising(self: Any, x: torch.Tensor) -> torch.Tensor:
    return F.batch_norm(x, None, None, training=True)  # EM142


def told(model: nn.Module) -> list[tuple[str, str, str]]:
    return [(found.code, found.place.module, found.place.source) for found in check(model, BATCH).findings]


def expected(work: Callable[..., Any]) -> list[tuple[str, str]]:
    import inspect

    lines = [line.strip() for line in inspect.getsource(work).splitlines()]
    return [(line.rpartition("# ")[2], line) for line in lines if "# EM" in line]


@pytest.mark.parametrize(
    "work",
    [
        with_graph,
        without_graph,
        graph_after_a_block,
        graph_of_its_own_will,
        dropping,
        drawing,
        writing,
        counting,
        mixing,
        normalising,
    ],
)
def test_what_a_pool_does_is_told_with_its_line(work: Callable[..., Any]) -> None:
    model = nn.Sequential(nn.Identity(), Net(by_pool, work)).eval()
    assert told(model) == [(code, "1", line) for code, line in expected(work)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("work", [with_graph, without_graph, dropping])
def test_every_way_to_another_thread_is_followed(way: Way, work: Callable[..., Any]) -> None:
    model = nn.Sequential(Net(way, work)).eval()
    with torch.no_grad():
        seen = watch(lambda: model(BATCH), model)
    events = [("EM161", event.place) for event in seen.graphs] + [("EM122", draw.place) for draw in seen.draws]
    assert [(code, place.module, place.source) for code, place in events] == [
        (code, "0", line) for code, line in expected(work)
    ]


def test_a_module_that_is_handed_over_is_told_at_the_line_that_does_it() -> None:
    class Handing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return POOL.submit(self.layer, x).result()

    (finding,) = check(nn.Sequential(Handing()).eval(), BATCH).findings
    assert (finding.code, finding.place.module) == ("EM161", "0")
    assert finding.place.source == "return POOL.submit(self.layer, x).result()"
    assert "per thread" in finding.fix
    assert "on another thread" in finding.seen


def test_python_is_left_as_it_was_and_other_peoples_threads_alone() -> None:
    names = [(threading.Thread, "start"), (ThreadPoolExecutor, "submit"), (ThreadPool, "imap")]
    before = [vars(owner).get(name) for owner, name in names]
    begin, done = threading.Event(), threading.Event()
    seen: list[torch.Tensor] = []

    def stranger() -> None:
        begin.wait(10)
        seen.append(by_pool(lambda x: torch.rand(2), BATCH))
        seen.append(by_thread(lambda x: torch.rand(2), BATCH))
        done.set()

    thread = threading.Thread(target=stranger)
    thread.start()
    with following_threads(), still():
        begin.set()
        done.wait(10)
        followed = by_thread(lambda x: torch.rand(2), BATCH)
        with pytest.raises(RuntimeError, match="started once"):
            thread.start()
    thread.join()
    assert torch.equal(followed, torch.full((2,), 0.5))
    assert len(seen) == 2
    assert not any(torch.equal(one, followed) for one in seen)
    assert [vars(owner).get(name) for owner, name in names] == before
    assert "run" not in vars(thread)


def test_a_thread_that_outlives_the_pass_is_left_in_peace() -> None:
    go, gone = threading.Event(), threading.Event()
    seen: list[torch.Tensor] = []

    def later() -> None:
        seen.append(torch.rand(2))
        go.wait(10)
        seen.append(torch.rand(2))
        gone.set()

    with following_threads(), still():
        threading.Thread(target=later).start()
        while not seen:
            pass
    go.set()
    assert gone.wait(10)
    half = torch.full((2,), 0.5)
    assert [torch.equal(one, half) for one in seen] == [True, False]


def test_an_exception_on_another_thread_comes_back_as_it_was() -> None:
    def fails(self: Any, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("on purpose")

    model = Net(by_pool, fails)
    with pytest.raises(KeyError, match="on purpose"):
        watch(lambda: model(BATCH), model)
    assert watch(lambda: model.layer(BATCH), model).draws == []
