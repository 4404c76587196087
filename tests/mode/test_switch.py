"""`evaluating` switches every module, and puts every flag back by value, however the block ends."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from evalmode import evaluating, freeze
from evalmode.errors import ConflictingModesError, EvalmodeWarning, PatternError


def flags(*models):
    return [module.training for model in models for module in model.modules()]


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)))


# ---------------------------------------------------------------------------------------------- flags, by value


def test_everything_is_in_evaluation_inside_and_as_before_afterwards():
    model = network()
    with evaluating(model):
        assert not any(flags(model))
    assert all(flags(model))


def test_parts_that_were_in_evaluation_stay_in_evaluation():
    model = network()
    model[1].eval()
    model[2][0].eval()
    before = flags(model)
    with evaluating(model):
        assert not any(flags(model))
    assert flags(model) == before


def test_a_model_in_evaluation_whose_part_trains():
    model = network().eval()
    model[2][0].train()
    before = flags(model)
    with evaluating(model) as switched:
        assert not any(flags(model))
        assert switched.switched == ("2.0",)
    assert flags(model) == before


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration])
def test_an_exception_in_the_block_passes_and_everything_is_back(kind):
    model = network()
    model[1].eval()
    before = flags(model)
    error = kind("in the block")
    with pytest.raises(kind) as caught, evaluating(model):
        raise error
    assert caught.value is error
    assert flags(model) == before and torch.is_grad_enabled()


def test_return_break_and_continue_leave_the_block_too():
    model = network()

    def returning():
        with evaluating(model):
            return 1

    assert returning() == 1 and all(flags(model))
    for _ in range(2):
        with evaluating(model):
            continue
    assert all(flags(model))
    for _ in range(2):
        with evaluating(model):
            break
    assert all(flags(model))


def test_what_is_made_inside_stays_as_it_was_made():
    model = network()
    with evaluating(model):
        model.add_module("new", nn.Dropout())
        model.add_module("new_in_evaluation", nn.Dropout().eval())
        freeze(model[0])
    assert model.new.training and not model.new_in_evaluation.training
    assert not model[0].training
    assert model[2][0].training


def test_a_new_module_in_evaluation_stays_so_when_its_parent_overrides_train():
    class Recursing(nn.Sequential):
        def train(self, mode=True):
            return super().train(mode)

    model = Recursing(nn.Linear(2, 2))
    with evaluating(model):
        model.add_module("new", nn.Dropout().eval())
    assert model.training and model[0].training
    assert not model.new.training


def test_a_module_removed_inside_gets_its_flag_back():
    model = network()
    removed = model[2]
    with evaluating(model):
        del model[2]
    assert removed.training and removed[0].training and all(flags(model))


def test_the_handle_lists_what_was_switched():
    model = network()
    model[1].eval()
    model.extra = [nn.Dropout()]
    with evaluating(model, keep_training="2") as switched:
        assert switched.models == (model,)
        assert set(switched.switched) == {"", "0", "extra[0]"}
        assert switched.hidden == ("extra[0]",)
        assert set(switched.kept) == {"2", "2.0", "2.1"}
        assert switched.overridden == () and switched.truncated == ()
        assert "3 of 7 modules switched" in repr(switched)
        assert "extra[0]" in repr(switched)
    assert set(switched.switched) == {"", "0", "extra[0]"}  # still readable afterwards


def test_one_evaluating_may_be_entered_again_and_while_it_is_open():
    model = network()
    evaluation = evaluating(model)
    with evaluation, evaluation:
        with evaluation:
            assert not any(flags(model))
        assert not any(flags(model)) and not torch.is_grad_enabled()
    assert all(flags(model)) and torch.is_grad_enabled()
    with evaluation:
        assert not any(flags(model))
    assert all(flags(model))


def test_nothing_is_kept_alive():
    model = network()
    with evaluating(model) as switched:
        pass
    del switched
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# ---------------------------------------------------------------------------------------------- several, and parts


def test_several_models_at_once_and_one_given_twice():
    first, second = network(), network()
    second[0].eval()
    before = flags(first, second)
    with evaluating(first, second, first) as switched:
        assert not any(flags(first, second))
        assert len(switched.switched) == len(set(switched.switched)) == 11
        assert "models[1].1" in switched.switched
    assert flags(first, second) == before


def test_a_part_leaves_the_rest_in_training():
    model = network()
    with evaluating(model[2]):
        assert flags(model) == [True, True, True, False, False, False]
    assert all(flags(model))


def test_a_part_of_a_model_in_flight_stays_until_the_whole_ends_and_the_reverse():
    model = network()
    with evaluating(model):
        with evaluating(model[2]):
            pass
        assert not any(flags(model))
    assert all(flags(model))
    with evaluating(model[2]):
        with evaluating(model):
            assert not any(flags(model))
        assert flags(model) == [True, True, True, False, False, False]
    assert all(flags(model))


# ---------------------------------------------------------------------------------------------- keep_training


@pytest.mark.parametrize(
    "choice",
    [nn.Dropout, "2.0", "*.0", ["2.0"], ("2.?",), [nn.Dropout, "2.1"]],
    ids=["type", "path", "pattern", "list", "tuple", "mixed"],
)
def test_keep_training_by_type_path_and_pattern(choice):
    model = network()
    with evaluating(model, keep_training=choice):
        assert model[2][0].training
        assert not model[1].training and not model.training
    assert all(flags(model))


def test_keep_training_by_module_keeps_all_below_it_as_it_is():
    model = network()
    model[2][1].eval()
    with evaluating(model, keep_training=[model[2]]) as switched:
        assert flags(model) == [False, False, False, True, True, False]
        assert set(switched.kept) == {"2", "2.0", "2.1"}
    assert flags(model) == [True, True, True, True, True, False]


def test_keep_training_may_be_an_iterator_and_is_read_once_for_every_entry():
    model = network()
    evaluation = evaluating(model, keep_training=iter([nn.Dropout]))
    for _ in range(2):
        with evaluation:
            assert model[2][0].training


def test_keep_training_of_a_part_that_is_not_in_training_is_warned():
    model = network().eval()
    with pytest.warns(EvalmodeWarning, match="call train"), evaluating(model, keep_training=nn.Dropout):
        assert not any(flags(model))


@pytest.mark.parametrize("inner_keeps", [True, False])
def test_conflicting_keep_training_is_an_error_and_changes_nothing(inner_keeps):
    model = network()
    outer, inner = ({}, {"keep_training": nn.Dropout}) if inner_keeps else ({"keep_training": nn.Dropout}, {})
    with evaluating(model, **outer):
        inside = flags(model)
        with pytest.raises(ConflictingModesError, match=r"2\.0"), evaluating(model, **inner):
            raise AssertionError("entered")
        assert flags(model) == inside and not torch.is_grad_enabled()
    assert all(flags(model)) and torch.is_grad_enabled()


def test_the_same_keep_training_agrees():
    model = network()
    with evaluating(model, keep_training=nn.Dropout), evaluating(model, keep_training="2.0"):
        assert model[2][0].training and not model[1].training
    assert all(flags(model))


def test_a_conflict_in_a_part_only_is_none_elsewhere():
    model = network()
    with evaluating(model, keep_training=nn.Dropout):
        with evaluating(model[1]):
            pass
        with pytest.raises(ConflictingModesError), evaluating(model[2]):
            raise AssertionError("entered")
    assert all(flags(model))


def test_after_a_conflict_the_parts_can_be_kept_again():
    model = network()
    with evaluating(model), pytest.raises(ConflictingModesError), evaluating(model, keep_training=nn.Dropout):
        pass
    with evaluating(model, keep_training=nn.Dropout):
        assert model[2][0].training
    with evaluating(model):
        assert not model[2][0].training
    assert all(flags(model))


# ---------------------------------------------------------------------------------------------- entering that fails


def test_an_entry_that_fails_leaves_everything_as_it_was():
    model = network()
    states = torch.get_rng_state()
    with pytest.raises(PatternError), evaluating(model, keep_training="nothing.like.it"):
        pass
    assert all(flags(model)) and torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), states)


# ---------------------------------------------------------------------------------------------- a training run


class Randomly(nn.Module):
    """Draws from every stream in its forward pass."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 3), nn.Dropout(0.1)
        )
        self.hidden = [nn.BatchNorm1d(3)]

    def forward(self, inputs):
        return self.hidden[0](self.layers(inputs))


def training_run(workers, *, evaluations):
    torch.manual_seed(5)
    inputs, targets = torch.randn(48, 6), torch.randint(0, 3, (48,))
    model = Randomly()
    model.layers[1].eval()  # a frozen batch norm, by hand
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    data = TensorDataset(inputs, targets)
    losses, samples = [], []
    for _ in range(2):
        loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=workers, drop_last=True)
        for step, (batch, target) in enumerate(loader):
            loss = nn.functional.cross_entropy(model(batch), target)
            if evaluations and step % 3 == 1:  # between the forward and the backward pass
                with evaluating(model):
                    samples += [model(batch), torch.rand(2)]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        if evaluations:
            with evaluating(model, keep_training=nn.Dropout):
                for batch, _ in DataLoader(data, batch_size=16, shuffle=True, num_workers=workers):
                    samples.append(model(batch))
    state = [t.clone() for t in (*model.state_dict().values(), *model.hidden[0].state_dict().values())]
    momenta = [optimiser.state[p]["momentum_buffer"] for p in model.parameters()]
    return losses + state + momenta + [torch.get_rng_state(), torch.rand(4)], samples


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_run_with_evaluations_in_it_is_bit_identical_to_one_without(workers):
    plain, _ = training_run(workers, evaluations=False)
    mixed, samples = training_run(workers, evaluations=True)
    assert samples
    assert all(torch.equal(a, b) for a, b in zip(plain, mixed, strict=True))


def test_the_evaluations_in_a_training_run_are_reproducible():
    _, first = training_run(0, evaluations=True)
    _, second = training_run(0, evaluations=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---------------------------------------------------------------------------------------------- any tree


class Holder(nn.Module):
    """A module that holds others in every way there is."""

    def __init__(self):
        super().__init__()
        self.inside = []


def hold_in(holder, module, way):
    holder.inside.append(module) if way == "list" else None
    name = f"held{len(holder.__dict__) + len(holder._modules)}"
    values = {
        "registered": module,
        "tuple": (1, (module,)),
        "set": {module},
        "frozenset": frozenset((module, 2)),
        "dict": {"key": [module]},
        "key": {module: 1},
        "deep": [{"a": ({"b": [module]},)}],
    }
    if way == "attribute":
        holder.__dict__[name] = module
    elif way != "list":
        setattr(holder, name, values[way])


WAYS = ["registered", "list", "tuple", "set", "frozenset", "dict", "key", "deep", "attribute"]


class CountingHolder(Holder):
    def __init__(self):
        super().__init__()
        self.calls = []

    def train(self, mode=True):
        self.calls.append(("train", mode, self.training))
        return super().train(mode)


class CountingBoth(CountingHolder):
    def eval(self):
        self.calls.append(("eval", False, self.training))
        return super().eval()


class CountingEval(Holder):
    def __init__(self):
        super().__init__()
        self.calls = []

    def eval(self):
        self.calls.append(("eval", False, self.training))
        return super().eval()


KINDS = [Holder, Holder, CountingHolder, CountingBoth, CountingEval]


@st.composite
def forests(draw):
    """Modules held by one another in any way, cycles and shared ones included; the first reaches all of them."""
    modules = [KINDS[draw(st.integers(0, 4))]() for _ in range(draw(st.integers(1, 9)))]
    for number, module in enumerate(modules[1:], start=1):
        hold_in(modules[draw(st.integers(0, number - 1))], module, draw(st.sampled_from(WAYS)))
    for _ in range(draw(st.integers(0, 4))):  # shared and cyclic
        ends = draw(st.tuples(st.sampled_from(modules), st.sampled_from(modules)))
        way = draw(
            st.sampled_from(["list", "tuple", "dict", "attribute"])
        )  # torch's train() recurses for ever in cycles
        hold_in(*ends, way)
    for module in modules:
        module.training = draw(st.booleans())
    return modules


@given(modules=forests(), raising=st.sampled_from([None, ValueError, KeyboardInterrupt]))
def test_any_tree_is_switched_whole_and_put_back_by_value(modules, raising):
    before = [module.training for module in modules]
    for module in modules:
        if hasattr(module, "calls"):
            module.calls.clear()
    expectation = pytest.raises(raising) if raising else contextlib.nullcontext()
    with expectation, evaluating(modules[0]) as switched:
        assert not any(module.training for module in modules)
        assert len(switched.switched) == sum(before)
        if raising:
            raise raising
    assert [module.training for module in modules] == before
    assert torch.is_grad_enabled()
    for module, training in zip(modules, before, strict=True):
        calls = getattr(module, "calls", [])
        assert "train" not in vars(module) and "eval" not in vars(module)
        ways_in = [name for name, mode, _ in calls if not mode]
        ways_out = [name for name, mode, _ in calls if mode]
        if not training:
            assert calls == []
        else:
            assert len(ways_in) == len(set(ways_in)) and ways_out.count("train") <= 1
            own = {name for name in ("train", "eval") if name in type(module).__dict__}
            if own or isinstance(module, CountingBoth):
                expected = {CountingHolder: ["train"], CountingBoth: ["eval", "train"], CountingEval: ["eval"]}
                assert sorted(ways_in) == expected[type(module)]
                assert ways_out == ([] if type(module) is CountingEval else ["train"])


@given(data=st.data(), count=st.integers(2, 6))
def test_entries_that_end_in_any_order_restore_with_the_last(data, count):
    model = network()
    for module in model.modules():
        module.training = data.draw(st.booleans())
    parts = list(model.modules())
    before = flags(model)
    open_entries = []
    todo = [data.draw(st.sampled_from(parts)) for _ in range(count)]
    while todo or open_entries:
        if todo and (not open_entries or data.draw(st.booleans())):
            part = todo.pop()
            entry = evaluating(part)
            entry.__enter__()
            open_entries.append((entry, part))
        else:
            entry, _ = open_entries.pop(data.draw(st.integers(0, len(open_entries) - 1)))
            entry.__exit__(None, None, None)
        covered = {id(module) for _, part in open_entries for module in part.modules()}
        assert [m.training for m in parts] == [
            flag and id(m) not in covered for m, flag in zip(parts, before, strict=True)
        ]
        assert torch.is_grad_enabled() is not bool(open_entries)
    assert flags(model) == before


def test_a_copy_made_inside_is_in_evaluation_and_has_no_trace_of_the_switch():
    model = network()
    with evaluating(model):
        twin = copy.deepcopy(model)
    assert not any(flags(twin)) and all(flags(model))
    with evaluating(twin):
        pass
    assert not any(flags(twin))
