"""Evaluations in flight together: threads, asyncio tasks, generators, in any order; decorators of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import random
import threading
import warnings

import pytest
import torch
from torch import nn

from evalmode import evaluating
from evalmode.errors import EvalmodeWarning
from evalmode.mode import streams


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2).eval())


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(streams._process, "warned", True)


def flags(model):
    return [m.training for m in model.modules()]


BEFORE = [True, True, True, False]


def inside(model):
    assert not any(flags(model))
    assert not torch.is_grad_enabled()


def outside(model):
    assert flags(model) == BEFORE
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


# ---------------------------------------------------------------------------------------------- threads


def test_threads_that_end_in_the_order_they_began(model, quiet):
    stop = [threading.Event() for _ in range(3)]
    ready = [threading.Event() for _ in range(3)]
    failures = []

    def evaluate(number):
        try:
            with evaluating(model):
                inside(model)
                ready[number].set()
                assert stop[number].wait(30)
                inside(model)
            assert torch.is_grad_enabled()
        except BaseException as error:
            failures.append(error)
            ready[number].set()

    threads = [threading.Thread(target=evaluate, args=(n,)) for n in range(3)]
    for thread, event in zip(threads, ready, strict=True):
        thread.start()
        assert event.wait(30)
    assert torch.is_grad_enabled()  # grad mode is per thread
    for number, thread in enumerate(threads):
        assert not any(flags(model))
        stop[number].set()
        thread.join()
    assert not failures
    outside(model)


def test_many_threads_at_random(model, quiet):
    failures = []
    before = torch.get_rng_state()

    def evaluate(seed):
        chance = random.Random(seed)
        try:
            for _ in range(40):
                part = chance.choice([model, model[1], model[0]])
                with evaluating(part, rng=chance.choice(["own", "leave"])):
                    inside(part)
                assert torch.is_grad_enabled()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=evaluate, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    outside(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_evaluating_shared_by_threads(model, quiet):
    evaluation = evaluating(model)
    failures = []

    def evaluate():
        try:
            for _ in range(40):
                with evaluation:
                    inside(model)
                assert torch.is_grad_enabled()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=evaluate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    outside(model)


# ---------------------------------------------------------------------------------------------- asyncio


async def test_decorated_coroutines_hold_grad_mode_only_while_they_run(model):
    order = []

    @evaluating(model)
    async def evaluate(number, before, after):
        """Documented."""
        for _ in range(before):
            inside(model)
            order.append(number)
            await asyncio.sleep(0)
        inside(model)
        return number

    async def train():
        for _ in range(6):
            assert torch.is_grad_enabled()
            await asyncio.sleep(0)

    assert inspect.iscoroutinefunction(evaluate) and evaluate.__doc__ == "Documented."
    answers = await asyncio.gather(evaluate(1, 5, 0), train(), evaluate(2, 2, 0), train(), evaluate(3, 7, 0))
    assert answers == [1, None, 2, None, 3]
    assert len(set(order[:6])) == 3  # they did overlap
    outside(model)


async def test_decorated_coroutines_leave_training_s_streams_alone_while_suspended(model):
    torch.manual_seed(0)
    expected = torch.rand(4).tolist()
    torch.manual_seed(0)
    drawn = []

    @evaluating(model)
    async def evaluate():
        for _ in range(4):
            torch.rand(3)
            await asyncio.sleep(0)

    async def train():
        for _ in range(4):
            drawn.append(torch.rand(1).item())
            await asyncio.sleep(0)

    await asyncio.gather(evaluate(), train())
    assert drawn == expected


@pytest.mark.parametrize("wishes", [{}, {"inference_mode": True}, {"gradients": True}], ids=str)
@pytest.mark.parametrize("first_out", [0, 1, 2])
async def test_blocks_of_tasks_that_end_in_any_order(model, wishes, first_out):
    stop = [asyncio.Event() for _ in range(3)]
    last = [None]

    async def evaluate(number):
        with pytest.warns(EvalmodeWarning, match="suspended"), evaluating(model, **(wishes if number == 1 else {})):
            await stop[number].wait()
        last[0] = number

    tasks = []
    for number in range(3):
        tasks.append(asyncio.ensure_future(evaluate(number)))
        await asyncio.sleep(0)
    assert not any(flags(model))
    rest = [n for n in range(3) if n != first_out]
    for number in [first_out, *rest]:
        assert not any(flags(model))
        stop[number].set()
        await tasks[number]
    outside(model)


@pytest.mark.parametrize("decorate", [True, False])
async def test_a_cancelled_task_puts_everything_back(model, decorate):
    if decorate:

        @evaluating(model)
        async def evaluate():
            await asyncio.sleep(60)

        expectation = contextlib.nullcontext()
    else:

        async def evaluate():
            with evaluating(model):
                await asyncio.sleep(60)

        expectation = pytest.warns(EvalmodeWarning, match="suspended")
    with expectation:
        task = asyncio.ensure_future(evaluate())
        await asyncio.sleep(0)
    assert not any(flags(model))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    outside(model)


async def test_a_timeout_and_an_error_inside_pass_through(model):
    @evaluating(model)
    async def slow():
        await asyncio.sleep(60)

    @evaluating(model)
    async def failing():
        await asyncio.sleep(0)
        raise ValueError("inside")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slow(), 0.01)
    outside(model)
    with pytest.raises(ValueError, match="inside"):
        await failing()
    outside(model)


async def test_a_block_without_await_is_not_warned_about(model):
    with evaluating(model):
        inside(model)
    outside(model)
    with evaluating(model):

        async def unrelated():
            await asyncio.sleep(0)

    await unrelated()


async def test_the_warning_names_the_line_of_the_user(model):
    with pytest.warns(EvalmodeWarning) as caught:
        with evaluating(model):
            await asyncio.sleep(0)
    assert caught[0].filename == __file__


async def test_asynchronous_generators(model):
    closed = []

    @evaluating(model)
    async def batches(count):
        try:
            for number in range(count):
                inside(model)
                await asyncio.sleep(0)
                inside(model)
                received = yield number
                assert received is None or received == "sent"
        finally:
            inside(model)
            closed.append(count)

    assert inspect.isasyncgenfunction(batches)
    seen = []
    async for number in batches(3):
        assert torch.is_grad_enabled() and not any(flags(model))
        seen.append(number)
    assert seen == [0, 1, 2] and closed == [3]
    outside(model)
    generator = batches(5)
    assert await anext(generator) == 0
    assert await generator.asend("sent") == 1
    assert torch.is_grad_enabled()
    await generator.aclose()
    assert closed == [3, 5]
    outside(model)
    generator = batches(4)
    await anext(generator)
    with pytest.raises(KeyError):
        await generator.athrow(KeyError("thrown"))
    outside(model)
    async with contextlib.aclosing(batches(9)) as generator:
        async for _ in generator:
            break
    outside(model)


# ---------------------------------------------------------------------------------------------- generators


def test_decorated_generators_hold_grad_mode_only_while_they_run(model):
    @evaluating(model)
    def numbers(count):
        received = []
        for number in range(count):
            inside(model)
            received.append((yield number))
            inside(model)
        return received

    assert inspect.isgeneratorfunction(numbers)
    generator = numbers(3)
    assert next(generator) == 0
    assert torch.is_grad_enabled() and not any(flags(model))
    assert generator.send("a") == 1
    assert generator.send("b") == 2
    with pytest.raises(StopIteration) as stop:
        generator.send("c")
    assert stop.value.value == ["a", "b", "c"]
    outside(model)


def test_a_decorated_generator_takes_throw_and_close(model):
    log = []

    @evaluating(model)
    def numbers():
        try:
            while True:
                try:
                    yield len(log)
                except KeyError as error:
                    inside(model)
                    log.append(error)
        finally:
            inside(model)
            log.append("closed")

    generator = numbers()
    next(generator)
    assert generator.throw(KeyError("x")) == 1
    assert torch.is_grad_enabled()
    generator.close()
    assert log[-1] == "closed"
    outside(model)
    generator = numbers()
    next(generator)
    with pytest.raises(ValueError, match="y"):
        generator.throw(ValueError("y"))
    outside(model)
    generator = numbers()
    next(generator)
    del generator
    outside(model)
    numbers()  # never begun: nothing is switched
    outside(model)


def test_generators_that_end_in_any_order(model):
    @evaluating(model)
    def numbers(count):
        yield from range(count)

    first, second = numbers(2), numbers(5)
    next(first), next(second)
    list(first)
    assert not any(flags(model)) and torch.is_grad_enabled()
    list(second)
    outside(model)


def test_a_block_in_a_generator_holds_grad_mode_meanwhile_and_says_so(model):
    def numbers():
        with evaluating(model):
            yield 1
        yield 2

    generator = numbers()
    with pytest.warns(EvalmodeWarning, match="suspended at line") as caught:
        next(generator)
    assert caught[0].filename == __file__
    assert not torch.is_grad_enabled()  # documented
    next(generator)
    outside(model)


def test_a_context_manager_of_the_user_s_own_is_not_warned_about(model):
    @contextlib.contextmanager
    def validation():
        with evaluating(model) as switched:
            yield switched

    with validation():
        inside(model)
    outside(model)


def test_interleaved_generators_with_blocks_restore_grad_mode(model):
    def numbers():
        with evaluating(model):
            yield 1
            yield 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvalmodeWarning)
        first, second = numbers(), numbers()
        next(first), next(second)
        assert list(first) == [2]
        assert not torch.is_grad_enabled() and not any(flags(model))
        assert list(second) == [2]
    outside(model)


# ---------------------------------------------------------------------------------------------- functions


def test_decorated_functions(model):
    @evaluating(model)
    def predict(a, *, b=2):
        """Documented."""
        inside(model)
        if a == "raise":
            raise ValueError(a)
        return a, b

    assert predict(1, b=3) == (1, 3)
    assert predict.__name__ == "predict" and predict.__doc__ == "Documented."
    outside(model)
    with pytest.raises(ValueError, match="raise"):
        predict("raise")
    outside(model)

    class Service:
        @evaluating(model)
        def predict(self, x):
            inside(model)
            return self, x

    service = Service()
    assert service.predict(4) == (service, 4)
    outside(model)


def test_a_decorated_function_that_calls_itself(model):
    @evaluating(model)
    def count(n):
        inside(model)
        return 0 if n == 0 else 1 + count(n - 1)

    assert count(5) == 5
    outside(model)


async def test_partials_and_callable_objects(model):
    async def coroutine(x):
        await asyncio.sleep(0)
        inside(model)
        return x

    assert await evaluating(model)(functools.partial(coroutine, 3))() == 3

    class Asynchronous:
        async def __call__(self, x):
            await asyncio.sleep(0)
            inside(model)
            return x

    assert await evaluating(model)(Asynchronous())(4) == 4

    class Synchronous:
        def __call__(self, x):
            inside(model)
            return x

    assert evaluating(model)(Synchronous())(5) == 5
    outside(model)


@pytest.mark.parametrize("seed", range(6))
def test_blocks_of_every_wish_in_any_order_restore_grad_mode(model, seed):
    chance = random.Random(seed)
    open_blocks = []
    for _ in range(60):
        if open_blocks and chance.random() < 0.5:
            open_blocks.pop(chance.randrange(len(open_blocks))).__exit__(None, None, None)
        else:
            wishes = chance.choice([{}, {"inference_mode": True}, {"rng": "leave"}, {"gradients": True}])
            if wishes == {"gradients": True} and torch.is_inference_mode_enabled():
                continue
            block = evaluating(model, **wishes)
            block.__enter__()
            open_blocks.append(block)
            assert torch.is_grad_enabled() is ("gradients" in wishes)
        assert any(flags(model)) is (not open_blocks)
    while open_blocks:
        open_blocks.pop(chance.randrange(len(open_blocks))).__exit__(None, None, None)
    outside(model)


def test_an_object_whose_call_is_a_generator_runs_in_evaluation():
    model = nn.Dropout()

    class Steps:
        def __call__(self, count):
            for _ in range(count):
                yield model.training, torch.is_grad_enabled()

    seen = [(step, torch.is_grad_enabled()) for step in evaluating(model)(Steps())(2)]
    assert seen == [((False, False), True)] * 2
    assert model.training


def test_an_object_whose_call_is_an_asynchronous_generator_runs_in_evaluation():
    model = nn.Dropout()

    class Steps:
        async def __call__(self):
            yield model.training, torch.is_grad_enabled()

    async def run():
        return [(step, torch.is_grad_enabled()) async for step in evaluating(model)(Steps())()]

    assert asyncio.run(run()) == [((False, False), True)]
