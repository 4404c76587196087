"""What registration missed is found: plain containers, attributes, cycles, and a stated limit."""

from __future__ import annotations

import collections
import dataclasses
import functools
import types
import unittest.mock
import weakref
from typing import NamedTuple

import pytest
import torch
from torch import nn

from evalmode import evaluating
from evalmode.mode import discover as discover_module
from evalmode.mode.discover import CONTAINER_LIMIT, discover


class Net(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        self.first = nn.Linear(2, 2)
        for name, value in attributes.items():
            if isinstance(value, nn.Module):
                self.__dict__[name] = value
            else:
                setattr(self, name, value)


class Plain:
    def __init__(self, content):
        self.content = content


class Slotted:
    __slots__ = ("content",)

    def __init__(self, content):
        self.content = content


@dataclasses.dataclass
class Record:
    content: object


class Pair(NamedTuple):
    a: object
    b: object


HOLDERS = {
    "list": lambda m: [m],
    "tuple": lambda m: (m,),
    "tuple beside numbers": lambda m: (1, 2.0, m),
    "set": lambda m: {m},
    "frozenset": lambda m: frozenset({m}),
    "dict": lambda m: {"a": m},
    "dict key": lambda m: {m: "a"},
    "ordered dict": lambda m: collections.OrderedDict(a=m),
    "default dict": lambda m: collections.defaultdict(list, a=[m]),
    "deque": lambda m: collections.deque([m]),
    "named tuple": lambda m: Pair(1, m),
    "user dict": lambda m: collections.UserDict(a=m),
    "user list": lambda m: collections.UserList([m]),
    "nested": lambda m: [[{"a": ({"b": [m]},)}]],
    "object": Plain,
    "object in an object": lambda m: Plain(Plain(m)),
    "slots": Slotted,
    "dataclass": Record,
    "namespace": lambda m: types.SimpleNamespace(a=m),
    "partial": lambda m: functools.partial(print, m),
    "bound method": lambda m: m.forward,
    "closure": lambda m: lambda x: m(x) + 1,
    "attribute": lambda m: m,
    "list subclass": lambda m: type("Layers", (list,), {})([m]),
}


@pytest.mark.parametrize("way", HOLDERS)
def test_a_module_that_registration_missed_is_switched_and_put_back(way):
    missed = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    missed[1].eval()
    net = Net(held=HOLDERS[way](missed))
    assert missed not in net.modules()
    with evaluating(net) as switched:
        assert not missed.training and not missed[0].training
        assert len(switched.hidden) == 3
        assert all(path.startswith("held") for path in switched.hidden)
    assert missed.training and missed[0].training and not missed[1].training


def test_a_module_that_is_an_attribute_of_the_class_is_switched():
    drop, listed = nn.Dropout(), nn.Dropout()

    class Careless(nn.Module):
        dropout = drop
        layers = [listed]

        def forward(self, inputs):
            return self.layers[0](self.dropout(inputs))

    class Child(Careless):
        pass

    for kind in (Careless, Child):
        net = kind()
        with evaluating(net) as switched:
            assert not drop.training and not listed.training
            assert torch.equal(net(torch.ones(64)), torch.ones(64))
            assert set(switched.hidden) == {"dropout", "layers[0]"}
        assert drop.training and listed.training


def test_an_instance_attribute_hides_the_one_of_its_class():
    hidden_by_instance = nn.Dropout()

    class Net(nn.Module):
        dropout = hidden_by_instance

        def __init__(self):
            super().__init__()
            self.__dict__["dropout"] = nn.Dropout()

    net = Net()
    with evaluating(net):
        assert not net.dropout.training
    assert net.dropout.training


def test_attributes_set_before_the_module_is_initialised_are_searched():
    class Early(nn.Module):
        def __init__(self):
            object.__setattr__(self, "early", [nn.Dropout()])
            super().__init__()

    net = Early()
    with evaluating(net):
        assert not net.early[0].training
    assert net.early[0].training


def test_cycles_and_shared_modules_are_met_once():
    shared = nn.Dropout()
    net = Net(a=[shared], b={"x": shared}, c=(shared, shared))
    net.me = [net]
    loop = []
    loop.append(loop)
    net.loop = loop
    net.first.__dict__["parent"] = net
    net.again = shared
    found = discover(net)
    assert len(found.modules) == 3
    with evaluating(net) as switched:
        assert len(switched.switched) == 3
    assert shared.training and net.training


def test_registered_paths_are_those_of_named_modules():
    model = nn.TransformerEncoderLayer(4, 2)
    found = discover(model)
    paths = found.paths()
    assert {paths[id(module)] for module in found.modules} == {name for name, _ in model.named_modules()}
    assert found.modules == list(model.modules())


def test_a_long_container_is_searched_to_the_stated_size_and_the_handle_says_so():
    missed = nn.Dropout()
    beyond = nn.Dropout()
    net = Net(layers=[missed, *range(CONTAINER_LIMIT - 1), beyond])
    with evaluating(net) as switched:
        assert not missed.training
        assert beyond.training
        (said,) = switched.truncated
        assert said == f"layers: {CONTAINER_LIMIT:,} of {CONTAINER_LIMIT + 1:,} items searched"
        assert "layers" in repr(switched)
    assert missed.training


@pytest.mark.parametrize("kind", [set, dict.fromkeys, collections.deque, tuple])
def test_other_long_containers_are_said_to_be_truncated_too(kind):
    net = Net(layers=kind([f"x{n}" for n in range(CONTAINER_LIMIT + 5)] + [nn.Dropout()]))
    with evaluating(net) as switched:
        assert len(switched.truncated) == 1


def test_a_container_of_exactly_the_stated_size_is_searched_whole():
    last = nn.Dropout()
    net = Net(layers=[*range(CONTAINER_LIMIT - 1), last])
    with evaluating(net) as switched:
        assert not last.training and switched.truncated == ()


def test_a_tree_far_deeper_than_the_recursion_limit():
    deep = nn.Dropout()
    nested = [deep]
    for _ in range(5_000):
        nested = [nested]
    net = Net(nested=nested)
    with evaluating(net):
        assert not deep.training
    assert deep.training


@pytest.mark.parametrize(
    "value",
    [
        unittest.mock.MagicMock(spec=nn.Module),
        unittest.mock.MagicMock(),
        nn.Dropout,
        torch.nn.functional.dropout,
        iter([1]),
        {"a": 1},
        object(),
        nn.Parameter(torch.ones(1)).__class__,
        (x for x in ()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_attributes_that_are_no_modules_are_left_alone(value):
    net = Net(value=[value])
    with evaluating(net):
        assert not net.first.training
    assert net.first.training


def test_a_weak_reference_does_not_make_a_module_a_part():
    parent = nn.Sequential(Net())
    parent[0].parents = [weakref.proxy(parent), weakref.ref(parent)]
    with evaluating(parent[0]):
        assert not parent[0].training and parent.training
    assert parent[0].training


def test_searching_runs_no_code_of_the_user():
    class Touchy:
        @property
        def surprise(self):
            raise AssertionError("a property was read")

        def __getattr__(self, name):
            raise AssertionError(f"{name} was asked for")

        def __eq__(self, other):
            raise AssertionError("compared")

        def __hash__(self):
            raise AssertionError("hashed")

        def __bool__(self):
            raise AssertionError("truth was asked for")

    touchy = Touchy()
    touchy.__dict__["layers"] = [nn.Dropout()]
    net = Net(touchy=[touchy])
    with evaluating(net):
        assert not touchy.__dict__["layers"][0].training


def test_a_hidden_module_that_was_never_initialised_is_passed_over():
    class Unborn(nn.Module):
        def __init__(self):
            pass

    net = Net(unborn=[Unborn()])
    with evaluating(net):
        assert not net.first.training
    assert net.first.training


def test_none_children_and_lazy_modules():
    net = Net()
    net.register_module("nothing", None)
    net.lazy = nn.LazyLinear(3)
    with evaluating(net):
        assert not net.lazy.training
        net.lazy(torch.ones(1, 2))  # turns into a plain Linear inside
    assert net.lazy.training and type(net.lazy) is nn.Linear


def test_the_total_limit_ends_the_search_and_is_said(monkeypatch):
    monkeypatch.setattr(discover_module, "TOTAL_LIMIT", 50)
    net = nn.Module()
    net.first = [object()] * 40
    net.second = [*[object()] * 40, nn.Dropout()]
    found = discover(net)
    assert [cut.label for cut in found.truncated] == [".second"]
    assert len(found.modules) == 1
