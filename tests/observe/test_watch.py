from __future__ import annotations

import random
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from evalmode.observe.attribution import ModuleStack, is_user_file
from evalmode.observe.fingerprint import digest_of, environment_record, fingerprint, model_record
from evalmode.observe.host_randomness import find_host_draws
from evalmode.observe.state import read_state
from evalmode.observe.streams import read_streams, seed_streams, stream_differences, write_streams
from evalmode.observe.watch import watch

X = torch.ones(4, 4)


def test_a_random_operator_counts_only_if_it_can_draw() -> None:
    class Quiet(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.dropout(x, 0.0, training=True) + F.dropout(x, 0.5, training=False)
            x = x * torch.empty(4, 1).bernoulli_(1.0)
            rows = x[None, None]
            return F.scaled_dot_product_attention(rows, rows, rows, dropout_p=0.0) + F.rrelu(x, training=False)

    assert watch(lambda: Quiet()(X), Quiet()).draws == []
    lstm = nn.LSTM(4, 4, 2, dropout=0.5)
    assert watch(lambda: lstm.eval()(X), lstm).draws == []
    draws = watch(lambda: lstm.train()(X), lstm).draws
    assert {(draw.function, draw.in_training) for draw in draws} == {("lstm", True)}


def test_hooks_are_gone_afterwards_also_after_an_exception() -> None:
    from torch.nn.modules import module as registry

    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("on purpose")

    model = nn.Sequential(nn.ReLU(), Fails())
    before = (dict(registry._global_forward_hooks), dict(registry._global_forward_pre_hooks))
    try:
        watch(lambda: model(X), model)
    except KeyError:
        assert (dict(registry._global_forward_hooks), dict(registry._global_forward_pre_hooks)) == before
    else:
        raise AssertionError("the model must fail")


def test_a_module_that_catches_its_childs_exception_keeps_the_stack_right() -> None:
    seen: list[str] = []

    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("on purpose")

    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = Fails()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.child(x)
            except KeyError:
                seen.append(stack.top)
                return x

    model = nn.Sequential(Catches(), nn.ReLU())
    model[1].register_forward_pre_hook(lambda *_: seen.append(stack.top))
    with ModuleStack(model) as stack:
        model(X)
    assert seen == ["0", "1"]


def test_the_line_that_moves_a_host_stream_is_found_below_calls_and_tracing_comes_back() -> None:
    def shuffled(values: list[int]) -> list[int]:
        random.shuffle(values)
        return values

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            order = shuffled([0, 1, 2, 3])
            return x[order] * float(np.random.rand())

    model = nn.Sequential(Net())
    tracer = sys.gettrace()
    found = find_host_draws(lambda: model(X), model)
    assert sys.gettrace() is tracer
    assert [(draw.stream, draw.place.source) for draw in found] == [
        ("python", "random.shuffle(values)"),
        ("numpy", "return x[order] * float(np.random.rand())"),
    ]
    assert {draw.place.module for draw in found} == {"0"}


def test_writes_are_seen_with_batch_norms_hidden_ones() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.data += 1
            return self.norm(x)

    model = Net().train()
    names = {name for name, _ in watch(lambda: model(X), model, read_state(model)).writes}
    assert {"count", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"} <= names


def test_graphs_and_leaks_are_seen() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.set_grad_enabled(True)
            return x * nn.Parameter(torch.ones(1))

    model = nn.Sequential(nn.ReLU(), Net())
    with torch.no_grad():
        seen = watch(lambda: model(X), model)
    assert seen.leaking_module == "1"
    assert [event.place.module for event in seen.graphs] == ["1"]
    assert [event.place.source for event in seen.gradient_switches] == ["torch.set_grad_enabled(True)"]


def test_streams_are_seeded_compared_and_put_back() -> None:
    before = read_streams()
    seed_streams(7)
    first = (torch.rand(2).tolist(), random.random(), np.random.rand())
    seed_streams(7)
    assert (torch.rand(2).tolist(), random.random(), np.random.rand()) == first
    assert set(stream_differences(before, read_streams())) == {"torch", "python", "numpy"}
    write_streams(before)
    assert stream_differences(before, read_streams()) == ()


def test_a_fingerprint_follows_bits_names_and_shapes() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    first = fingerprint(model)
    assert fingerprint(model) == first
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nextafter(model[0].weight[0, 0], torch.tensor(9.0))
    assert fingerprint(model) != first
    assert fingerprint(nn.ModuleDict({"0": model[0], "2": model[1]})) != fingerprint(model)
    assert digest_of({"a": torch.zeros(2)}) != digest_of({"b": torch.zeros(2)})
    record = model_record(model)
    assert (record.modules, record.parameters) == (3, 15)
    assert environment_record().cores >= 1


def test_user_files_are_told_from_torch_and_the_standard_library() -> None:
    assert is_user_file(__file__)
    assert not is_user_file(torch.__file__)
    assert not is_user_file(random.__file__)
    assert is_user_file(sys.modules["transformers"].__file__ if "transformers" in sys.modules else np.__file__)
