"""Settings of the process, changed after a plan was built, change no bit of what it gives."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from evalmode.backends.backend import Executor
from evalmode.backends.catalog import backend_named
from evalmode.backends.configuration import Configuration
from evalmode.backends.program import Program
from evalmode.backends.surroundings import standing_now, with_standing
from evalmode.backends.threads import pinned
from evalmode.observe.tree import same_bits

IMAGES = torch.randn(2, 3, 33, 35, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Makes tensors of its own, and convolves: by oneDNN or without it, the bits differ."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU())
        self.hidden, self.head = nn.Linear(32, 512), nn.Linear(512, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images).mean((2, 3))
        ramp = torch.linspace(0, 1, 5) / 3
        return self.head(self.hidden(features)) + ramp, torch.zeros(len(images)) + 1 / 3


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    torch.backends.mkldnn.set_flags(False)  # `flags` warns of a setting for GPUs
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(True)


@contextlib.contextmanager
def products_in_bf16() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextlib.contextmanager
def products_in_bf16_the_newer_way() -> Iterator[None]:
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


SETTINGS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "default dtype": default_dtype,
    "default device": default_device,
    "a device as a block": lambda: torch.device("meta"),
    "oneDNN": without_onednn,
    "products in bf16": products_in_bf16,
    "products in bf16, the newer way": products_in_bf16_the_newer_way,
}


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(3)
    return Net().eval()


@pytest.fixture(scope="module", params=["eager", "inductor"])
def executor(request: pytest.FixtureRequest, net: Net) -> Executor:
    backend = backend_named(request.param)
    if backend.missing() is not None:
        pytest.skip(f"{request.param} is not installed")
    program = Program(net, (IMAGES,), ("images",), (0,), (0, 0), torch.export.export(net, (IMAGES,)))
    return backend.build(program, Configuration(backend=request.param, batch=2, threads=torch.get_num_threads()))


def in_a_thread(work: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("where", ["here", "in a thread"])
def test_a_setting_of_the_process_changes_no_bit(executor: Executor, setting: str, where: str) -> None:
    (expected,) = executor.run([(IMAGES,)])

    def compare() -> None:
        (found,) = executor.run([(IMAGES,)])
        assert all(map(same_bits, found, expected))

    with SETTINGS[setting]():
        before = standing_now()
        compare() if where == "here" else in_a_thread(compare)
        assert standing_now() == before
    compare()


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_settings_do_matter_to_the_model_itself(net: Net, setting: str) -> None:
    if setting == "oneDNN" and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    if setting.startswith("products in bf16") and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no instructions for bf16")
    with torch.no_grad():
        expected = net(IMAGES)
        try:
            with SETTINGS[setting]():
                found = net(IMAGES)
        except (RuntimeError, NotImplementedError):  # tensors on two devices
            return
    assert not all(map(same_bits, found, expected))


def test_overlapping_executions_keep_their_settings_until_the_last_ends() -> None:
    built = standing_now()
    inside, go_on = threading.Event(), threading.Event()

    def slow(_: None) -> list[torch.dtype]:
        first = torch.ones(1).dtype
        inside.set()
        go_on.wait(20)
        return [first, torch.ones(1).dtype]

    seen: list[list[torch.dtype]] = []
    with default_dtype():
        thread = threading.Thread(target=lambda: seen.append(with_standing(built, slow, None)))
        thread.start()
        inside.wait(20)
        assert with_standing(built, lambda _: torch.ones(1).dtype, None) is torch.float32
        go_on.set()
        thread.join()
        assert torch.get_default_dtype() is torch.float64
    assert seen == [[torch.float32, torch.float32]]


class Slow:
    """Work that tells when it runs, and goes on when it may."""

    def __init__(self) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.seen: list[torch.dtype] = []

    def __call__(self, _: None) -> None:
        self.inside.set()
        assert self.go_on.wait(20)
        self.seen.append(torch.ones(1).dtype)


def start(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_an_execution_under_the_settings_of_the_process_is_not_disturbed_by_one_that_wants_others() -> None:
    built = standing_now()
    with default_dtype():
        other = standing_now()
    slow, order = Slow(), []
    first = start(lambda: with_standing(built, slow, None))
    assert slow.inside.wait(20)
    second = start(lambda: order.append(with_standing(other, lambda _: torch.ones(1).dtype, None)))
    second.join(0.2)
    assert not order  # it waits
    slow.go_on.set()
    first.join(20)
    second.join(20)
    assert slow.seen == [torch.float32]
    assert order == [torch.float64]
    assert torch.get_default_dtype() is torch.float32


def test_who_waits_has_a_turn_though_others_keep_coming() -> None:
    built = standing_now()
    with default_dtype():
        other = standing_now()
    done = threading.Event()
    slow = Slow()
    first = start(lambda: with_standing(built, slow, None))
    assert slow.inside.wait(20)
    waiting = start(lambda: (with_standing(other, lambda _: None, None), done.set()))
    waiting.join(0.2)
    late: list[bool] = []
    newcomer = start(lambda: with_standing(built, lambda _: late.append(done.is_set()), None))
    newcomer.join(0.2)
    assert not late  # it does not join the first past the one that waits
    slow.go_on.set()
    for thread in (first, waiting, newcomer):
        thread.join(20)
    assert done.is_set()
    assert len(late) == 1


def test_what_the_caller_sets_meanwhile_stays() -> None:
    built = standing_now()
    with default_dtype():
        slow = Slow()
        thread = start(lambda: with_standing(built, slow, None))
        assert slow.inside.wait(20)
        torch.set_default_dtype(torch.float16)
        slow.go_on.set()
        thread.join(20)
        assert torch.get_default_dtype() is torch.float16


@pytest.mark.parametrize("through_a_worker", [False, True])
def test_an_execution_within_one_of_other_settings_does_not_wait_for_itself(through_a_worker: bool) -> None:
    built = standing_now()
    with default_dtype():
        other = standing_now()
    found: list[torch.dtype] = []

    def inner(_: None) -> None:
        found.append(torch.ones(1).dtype)

    def outer(_: None) -> None:
        if through_a_worker:
            pinned(torch.get_num_threads() + 1, lambda given: with_standing(other, inner, given), None)
        else:
            with_standing(other, inner, None)
        found.append(torch.ones(1).dtype)

    thread = start(lambda: with_standing(built, outer, None))
    thread.join(20)
    assert found == [torch.float64, torch.float32]


def test_tf32_on_cuda_belongs_to_the_plan_and_keeps_the_older_settings_readable() -> None:
    before = standing_now()
    for allowed in (True, False):
        found = with_standing(before.at_tf32(allowed), lambda _: _tf32(), None)
        assert found == (allowed, allowed, "high" if allowed else "highest")
    assert standing_now() == before
    _tf32()


def _tf32() -> tuple[bool, bool, str]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_child_waits_for_no_execution_of_its_parent() -> None:
    built = standing_now()
    with default_dtype():
        other = standing_now()
    slow = Slow()
    thread = start(lambda: with_standing(built, slow, None))
    assert slow.inside.wait(20)
    child = os.fork()
    if child == 0:
        right = with_standing(other, lambda _: torch.ones(1).dtype, None) is torch.float64
        os._exit(0 if right and torch.get_default_dtype() is torch.float32 else 1)
    for _ in range(200):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        status = -1
    slow.go_on.set()
    thread.join(20)
    assert status == 0


def test_a_setting_that_changes_under_an_execution_takes_the_others_along() -> None:
    built = standing_now()
    torch.set_float32_matmul_precision("medium")
    try:
        slow = Slow()
        thread = start(lambda: with_standing(built, slow, None))
        assert slow.inside.wait(20)
        torch.set_default_dtype(torch.float64)
        with_standing(built, lambda _: None, None)
        slow.go_on.set()
        thread.join(20)
        assert torch.get_default_dtype() is torch.float64
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
