from __future__ import annotations

import threading
import time

import pytest
import torch

from evalmode.backends.threads import each_pinned, pinned


def in_a_new_thread(work: object) -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_neither_this_thread_nor_a_new_one_sees_another_number() -> None:
    here, fresh = torch.get_num_threads(), in_a_new_thread(torch.get_num_threads)
    for wanted in (here + 1, here + 2, here):
        assert pinned(wanted, lambda _: torch.get_num_threads(), None) == wanted
        assert each_pinned(wanted, 2, lambda _: torch.get_num_threads(), [1, 2, 3]) == [wanted] * 3
        assert torch.get_num_threads() == here
        assert in_a_new_thread(torch.get_num_threads) == fresh


def test_many_threads_with_many_numbers_leave_none_behind() -> None:
    fresh = in_a_new_thread(torch.get_num_threads)
    wrong: list[tuple[int, int]] = []

    def work(number: int) -> None:
        own = 1 + number % 3
        torch.set_num_threads(own)
        for turn in range(20):
            wanted = 1 + (number + turn) % 4
            found = pinned(wanted, lambda _: torch.get_num_threads(), None)
            if (found, torch.get_num_threads()) != (wanted, own):
                wrong.append((wanted, found))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(fresh)  # what those threads themselves have set
    assert wrong == []


def test_streams_overlap_and_keep_the_order() -> None:
    both = threading.Barrier(3, timeout=20)

    def meet(item: int) -> int:
        both.wait()  # passes only if three are in flight at once
        return item * 10

    assert each_pinned(1, 3, meet, [1, 2, 3]) == [10, 20, 30]
    assert each_pinned(1, 5, lambda item: time.sleep(0.02 / item) or item, [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert each_pinned(1, 2, meet, []) == []


def test_an_error_reaches_the_caller_and_the_workers_go_on() -> None:
    def fail(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    for streams in (1, 2):
        with pytest.raises(ValueError, match="two"):
            each_pinned(torch.get_num_threads() + 1, streams, fail, [1, 2, 3])
        assert each_pinned(torch.get_num_threads() + 1, streams, fail, [1, 3]) == [1, 3]


def test_a_worker_holds_nothing_of_a_call() -> None:
    import gc
    import weakref

    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)
    pinned(torch.get_num_threads() + 1, lambda given: None, held)
    del held
    for _ in range(100):
        gc.collect()
        if gone() is None:
            break
        time.sleep(0.01)
    assert gone() is None
