"""Put back whatever interrupts: KeyboardInterrupt at every line of enter and exit, real signals, finalisers."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import evalmode.mode.switch
from evalmode import evaluating, freeze
from evalmode.errors import EvalmodeWarning
from evalmode.mode import backward, ledger, stash, streams
from evalmode.mode.session import Session

ROOM = str(Path(evalmode.mode.switch.__file__).parent)


class Merging(nn.Linear):
    def __init__(self):
        super().__init__(5, 5)
        self.delta = nn.Parameter(torch.randn(5, 5) * 3.3)
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode and self.merged:
            self.weight.data -= self.delta.data
            self.merged = False
        elif not mode and not self.merged:
            self.weight.data += self.delta.data
            self.merged = True
        return self


class Replacing(Merging):
    def train(self, mode=True):
        nn.Linear.train(self, mode)
        if mode is self.merged:
            self.weight = nn.Parameter(
                self.weight.detach() + (self.delta.detach() if not mode else -self.delta.detach())
            )
            self.merged = not mode
        return self

    def eval(self):
        return super().eval()


class Overriding(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        return self


def plain_model():
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5).eval(), nn.Dropout())
    model.held = [nn.Dropout()]
    return model


def merging_model():
    return Overriding(Merging(), nn.BatchNorm1d(5).eval(), nn.Dropout(), Replacing())


def everything(model):
    """Every module reachable in these models, the hidden one included."""
    return [*model.modules(), *getattr(model, "held", [])]


def observed(model):
    return {
        "flags": [module.training for module in everything(model)],
        "methods": [sorted({"train", "eval"} & vars(module).keys()) for module in everything(model)],
        "merged": [module.merged for module in model.modules() if hasattr(module, "merged")],
        "tensors": [t.detach().numpy().tobytes() for t in model.state_dict().values()],
        "identity": [id(p) for p in model.parameters()],
        "grads": [id(p.grad) for p in model.parameters()],
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "python": random.getstate(),
        "numpy": [np.asarray(part).tobytes() for part in np.random.get_state()],
        "engine": torch.autograd._engine_run_backward,
    }


def differences(before, after):
    return [name for name in before if before[name] != after[name]]


class Interrupter:
    """Raises KeyboardInterrupt at the k-th line that runs in a file of the room, and says where that was."""

    def __init__(self, position=None):
        self.left = position
        self.where = None
        self.seen = []

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.called)
        return self

    def __exit__(self, *error):
        sys.settrace(self.before)

    def called(self, frame, event, argument):
        if frame.f_code.co_name == "_take_mark_over":  # torch's hook, which runs in the middle of a user's override
            return None
        return self.line if frame.f_code.co_filename.startswith(ROOM) else None

    def line(self, frame, event, argument):
        if event == "line" and self.left is None:
            self.seen.append((frame.f_code, frame.f_lineno))
        elif event == "line" and self.where is None:
            self.left -= 1
            if self.left < 0:
                self.where = (Path(frame.f_code.co_filename).name, frame.f_code.co_name, frame.f_lineno)
                raise KeyboardInterrupt("injected")
        return self.line


def body(model):
    torch.rand(3), random.random(), np.random.rand()


def with_block(model, **wishes):
    with evaluating(model, **wishes):
        body(model)


def decorated_function(model, **wishes):
    evaluating(model, **wishes)(body)(model)


def decorated_generator(model, **wishes):
    @evaluating(model, **wishes)
    def generator():
        body(model)
        yield 1
        body(model)

    for _ in generator():
        pass


def nested(model, **wishes):
    with evaluating(model, **wishes):
        with evaluating(model[0]):
            body(model)


def kept(model, **wishes):
    with evaluating(model, keep_training=["2"], **wishes):
        body(model)


# Where an interruption falls before the first instruction that could catch it: the finaliser puts things back, as soon
# as the exception's traceback is let go.
INHERENT = {
    ("switch.py", "__exit__"),
    ("session.py", "__exit__"),
    ("decorated.py", "run"),
}


def let_go_of_locks():
    """A trace function can raise where no signal can: between the body of a `with lock` and its end."""
    for lock in (ledger._ledger.lock, streams._process.lock, backward._lock, stash._lock):
        while lock._is_owned():
            lock.release()


def positions(build, run, wishes):
    """The first and the last time that each line of the room runs, as positions in the order of running."""
    run(build(), **wishes)  # caches filled
    recorder = Interrupter()
    model = build()
    with recorder:
        run(model, **wishes)
    occurrences = {}
    for position, place in enumerate(recorder.seen):
        occurrences.setdefault(place, []).append(position)
    return sorted({p for found in occurrences.values() for p in (found[0], found[-1])})


def sweep(build, run, monkeypatch, **wishes):
    """Interrupt `run` at every line in turn; everything must be as before each time.

    Returns how many interruptions there were, and after which of them things were back only with the exception gone.
    """
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)  # an interruption inside a finaliser
    late, count = set(), 0
    for position in positions(build, run, wishes):
        model = build()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = observed(model)
        interrupter = Interrupter(position)
        at_once = []
        try:
            with interrupter:
                run(model, **wishes)
        except KeyboardInterrupt:
            at_once = differences(before, observed(model))
        let_go_of_locks()
        if interrupter.where is None:  # this run was a few lines shorter: the order of a set differs
            continue
        count += 1
        if at_once:
            late.add(interrupter.where)
        left = differences(before, observed(model))
        assert not left, f"not put back: {left} after an interruption at {interrupter.where}"
        if count % 2:
            continue
        run(model, **wishes)
        left = differences(before, observed(model))
        assert not left, f"a later evaluation is not put back: {left}, after an interruption at {interrupter.where}"
    return count, late


RUNS = {
    "with": (with_block, {}),
    "with, inference mode": (with_block, {"inference_mode": True}),
    "with, gradients": (with_block, {"gradients": True}),
    "decorated function": (decorated_function, {}),
    "decorated generator": (decorated_generator, {}),
    "nested": (nested, {}),
    "kept": (kept, {}),
}


CASES = [(plain_model, name) for name in RUNS] + [
    (merging_model, name) for name in ("with", "with, gradients", "decorated generator", "nested", "kept")
]


@pytest.mark.parametrize(("build", "name"), CASES)
def test_an_interruption_at_any_line_of_enter_and_exit_puts_everything_back(build, name, monkeypatch):
    run, wishes = RUNS[name]
    lines, late = sweep(build, run, monkeypatch, **wishes)
    assert lines > 100
    functions = {(file, function) for file, function, _ in late}
    assert functions <= INHERENT, sorted(late)
    assert len(late) <= 3, sorted(late)


# ---------------------------------------------------------------------------------------------- real signals


@contextlib.contextmanager
def interrupted_after(seconds):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on this system")
def test_real_signals_at_random_moments_put_everything_back(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    models = [merging_model(), plain_model()]
    hits = 0
    for round_ in range(300):
        model = models[round_ % 2]
        before = observed(model)
        try:
            with interrupted_after(random.Random(round_).uniform(2e-5, 3e-3)):
                for _ in range(50):
                    with evaluating(model):
                        pass
        except KeyboardInterrupt:
            hits += 1
        left = differences(before, observed(model))
        assert not left, (round_, left)
    assert hits > 30


# ---------------------------------------------------------------------------------------------- finalisers


def test_a_block_that_nobody_ends_is_ended_by_its_finaliser():
    model = plain_model()
    before = observed(model)
    entry = evaluating(model)
    entry.__enter__()
    assert not model.training
    del entry
    gc.collect()
    assert not differences(before, observed(model))


def test_a_generator_that_is_closed_or_dropped_ends_its_block():
    model = plain_model()
    before = observed(model)

    def generator():
        with evaluating(model):
            yield 1
            yield 2

    closed = generator()
    with pytest.warns(EvalmodeWarning, match="suspended"):
        next(closed)
    assert not model.training
    closed.close()
    assert not differences(before, observed(model))
    dropped = generator()
    with pytest.warns(EvalmodeWarning, match="suspended"):
        next(dropped)
    del dropped
    gc.collect()
    assert not differences(before, observed(model))


def test_a_generator_closed_in_another_thread_puts_back_all_that_it_can():
    import warnings

    model = plain_model()
    before = observed(model)

    def generator():
        with evaluating(model):
            yield 1

    steps = generator()
    with pytest.warns(EvalmodeWarning, match="suspended"):
        next(steps)
    caught = []

    def close():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                steps.close()
            except EvalmodeWarning as warning:
                caught.append(warning)

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    torch.set_grad_enabled(True)  # of the thread it began in: cannot be put back from another, and the warning says so
    assert not differences(before, observed(model))
    assert "another thread" in str(caught[0])


def test_freezing_that_is_interrupted_can_be_repeated():
    model = merging_model()
    weights = [t.clone() for t in model.state_dict().values()]

    class Stop(nn.Linear):
        armed = True

        def train(self, mode=True):
            if self.armed:
                raise KeyboardInterrupt
            return super().train(mode)

    model.append(Stop(2, 2))
    with pytest.raises(KeyboardInterrupt):
        freeze(model)
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(torch.equal(a, b) for a, b in zip(weights, model.state_dict().values(), strict=False))
    assert not any(p.grad is not None or not p.requires_grad for p in model.parameters())
    assert not any({"train", "eval"} & vars(module).keys() for module in model.modules())
    Stop.armed = False
    freeze(model)
    assert not any(m.training for m in model.modules())


def test_a_session_that_was_never_made_is_finalised_in_silence(recwarn):
    session = Session.__new__(Session)
    session.__del__()
    assert session.modes is None
