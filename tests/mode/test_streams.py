"""Random streams are swapped, not rewound; seeded from the training seed without drawing from it."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from evalmode import evaluating
from evalmode.errors import EvalmodeWarning
from evalmode.mode import streams


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5))


def draw():
    return [*torch.rand(3).tolist(), *torch.randn(3).tolist(), random.random(), random.gauss(0, 1),
            *np.random.rand(2).tolist(), np.random.randn()]  # fmt: skip


def states():
    return torch.get_rng_state().tolist(), random.getstate(), [np.asarray(p).tolist() for p in np.random.get_state()]


def seed(value):
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value)


def test_training_s_streams_are_bit_identical_after_an_evaluation(model):
    draw()  # leaves a cached second normal number behind in each stream
    before = states()
    with evaluating(model):
        draw()
        torch.manual_seed(99)
        np.random.seed(3)
        random.seed(4)
    assert states() == before


def test_evaluation_does_not_draw_training_s_numbers(model):
    before = states()
    training = draw()
    torch.set_rng_state(torch.tensor(before[0], dtype=torch.uint8))
    with evaluating(model):
        assert not set(draw()) & set(training)


def test_eight_passes_in_eight_blocks_give_eight_samples_and_the_run_is_reproducible(model):
    inputs = torch.ones(2, 4)

    def run():
        seed(11)
        samples = []
        for _ in range(8):
            with evaluating(model, keep_training=nn.Dropout):
                samples.append(model(inputs))
            torch.rand(1)  # training goes on
        return samples

    first, second = run(), run()
    for i, sample in enumerate(first):
        assert not any(torch.equal(sample, other) for other in first[:i])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_eight_blocks_give_the_numbers_of_one_long_block(model):
    seed(3)
    blocks = []
    for _ in range(8):
        with evaluating(model):
            blocks.append(torch.rand(2))
    seed(3)
    with evaluating(model):
        whole = torch.rand(2), *(torch.rand(2) for _ in range(7))
    assert all(torch.equal(a, b) for a, b in zip(blocks, whole, strict=True))


def test_another_training_seed_gives_other_numbers(model):
    answers = []
    for value in (1, 2, 1):
        seed(value)
        with evaluating(model):
            answers.append(draw())
    assert answers[0] == answers[2]
    assert not set(answers[0]) & set(answers[1])


def test_how_far_training_has_gone_does_not_matter(model):
    seed(1)
    with evaluating(model):
        first = draw()
    seed(1)
    torch.rand(1000)
    with evaluating(model):
        assert draw() == first


def test_a_seed_set_inside_is_the_evaluation_s_business(model):
    seed(8)
    with evaluating(model):
        torch.manual_seed(123)
        inside = torch.rand(2)
    with evaluating(model):
        assert not torch.equal(torch.rand(2), inside)  # continued, not begun anew
    seed(8)
    expected = torch.rand(1)
    seed(8)
    with evaluating(model):
        torch.manual_seed(123)
    assert torch.equal(torch.rand(1), expected)


def test_the_seed_itself_is_put_back(model):
    torch.manual_seed(31)
    with evaluating(model):
        torch.rand(1)
    assert torch.initial_seed() == 31


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_inside_draws_from_evaluation_s_stream(model, workers):
    data = TensorDataset(torch.arange(12.0))
    before = states()
    orders = []
    for _ in range(2):
        with evaluating(model):
            orders.append([int(i) for (b,) in DataLoader(data, 4, shuffle=True, num_workers=workers) for i in b])
    assert states() == before
    assert orders[0] != orders[1] and sorted(orders[0]) == list(range(12))


def test_leave_never_touches_the_streams(model):
    seed(5)
    expected = draw() + draw()
    seed(5)
    got = draw()
    with evaluating(model, rng="leave"):
        got += draw()
    assert got == expected


def test_leave_inside_own_and_own_inside_leave(model):
    seed(5)
    expected = draw()
    seed(5)
    with evaluating(model), evaluating(model, rng="leave"):
        assert draw() != expected
    assert draw() == expected
    seed(5)
    with evaluating(model, rng="leave"):
        before = states()
        with evaluating(model):
            draw()
        assert states() == before


def test_nested_entries_share_one_stream_and_the_last_to_end_gives_training_s_back(model):
    before = states()
    outer, inner = evaluating(model), evaluating(model)
    outer.__enter__()
    first = draw()
    inner.__enter__()
    second = draw()
    outer.__exit__(None, None, None)
    assert states() != before
    third = draw()
    inner.__exit__(None, None, None)
    assert states() == before
    assert len({*first, *second, *third}) == len(first + second + third)


def test_contexts_that_overlap_on_different_threads_warn_once_and_leave_the_streams_alone(model, monkeypatch):
    monkeypatch.setattr(streams._process, "warned", False)
    before = states()
    seen = []

    def other():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            inside = states()
            for _ in range(3):
                with evaluating(model):
                    seen.append(states() == inside)
            seen.append(states() == inside)
        seen.append([w for w in caught if issubclass(w.category, EvalmodeWarning)])

    with evaluating(model):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen[:4] == [True] * 4
    (warning,) = seen[4]
    assert "threads" in str(warning.message)
    assert warning.filename == __file__  # where the user entered
    assert states() == before


def test_the_thread_that_began_first_gives_the_streams_back_when_it_ends_first(model, monkeypatch):
    monkeypatch.setattr(streams._process, "warned", True)
    before = states()
    first = evaluating(model)
    first.__enter__()
    entered, finish = threading.Event(), threading.Event()

    def other():
        with evaluating(model):
            entered.set()
            finish.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(30)
    first.__exit__(None, None, None)
    assert states() == before
    finish.set()
    thread.join()
    assert states() == before


def test_without_numpy_nothing_imports_it_and_everything_works():
    code = """
import sys, torch
from torch import nn
from evalmode import evaluating
sys.modules.pop("numpy.random", None)
model = nn.Linear(2, 2)
before = torch.get_rng_state()
with evaluating(model):
    torch.rand(2)
assert torch.equal(before, torch.get_rng_state())
assert "numpy.random" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_another_numpy_bit_generator_is_put_back_too(model):
    original = np.random.mtrand._rand._bit_generator
    with evaluating(model):
        pass
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        before = np.random.get_state(legacy=False)
        with evaluating(model):
            np.random.rand(3)
        assert np.random.get_state(legacy=False) == before
    finally:
        np.random.set_bit_generator(original)
    with evaluating(model):
        np.random.rand(3)


def test_the_same_seed_set_anew_is_noticed_without_torch_s_trace_of_it_too(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)  # then torch queues no seeds
    monkeypatch.setattr(torch.cuda._lazy_seed_tracker, "manual_seed_all_cb", None)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
    monkeypatch.setattr(streams._process, "evaluation", None)
    answers = []
    for _ in range(2):
        seed(7)
        torch.rand(1)
        for _ in range(2):
            with evaluating(model):
                answers.append(torch.rand(2).tolist())
            torch.rand(1)
        seed(7)
        with evaluating(model):
            answers.append(torch.rand(2).tolist())
        torch.rand(1)
    assert answers[0] == answers[2] == answers[5] and answers[0] != answers[1]


@pytest.mark.gpu
def test_every_cuda_device_s_stream_is_swapped(model):
    torch.rand(1, device="cuda")
    seed(4)
    before = [g.get_state().tolist() for g in torch.cuda.default_generators]
    drawn = []
    for _ in range(2):
        with evaluating(model):
            drawn.append(torch.rand(3, device="cuda").tolist())
    assert [g.get_state().tolist() for g in torch.cuda.default_generators] == before
    assert drawn[0] != drawn[1]
    torch.rand(1)  # training has gone on, and is seeded anew
    seed(4)
    with evaluating(model):
        assert torch.rand(3, device="cuda").tolist() == drawn[0]


@pytest.mark.gpu
def test_cuda_that_comes_up_inside_does_not_move_training_s_stream():
    code = """
import torch
from torch import nn
from evalmode import evaluating
torch.manual_seed(4)
with evaluating(nn.Linear(2, 2)):
    torch.rand(5, device="cuda")
after = torch.rand(5, device="cuda")
torch.manual_seed(4)
assert torch.equal(after, torch.rand(5, device="cuda"))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
