"""Modules with a `train()` or `eval()` of their own: called at most once per direction, and their tensors put back."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from evalmode import evaluating
from evalmode.errors import EvalmodeWarning


class LoRA(nn.Linear):
    """As loralib writes it: merged in evaluation, through `.data`; `guarded` by its own `merged` or not."""

    def __init__(self, size=17, rank=3, *, guarded=True):
        super().__init__(size, size)
        self.lora_A = nn.Parameter(torch.randn(rank, size))
        self.lora_B = nn.Parameter(torch.randn(size, rank) * 3.7)
        self.scaling = 1 / 3
        self.guarded = guarded
        self.merged = False
        self.calls = []

    def merge(self):
        if not (self.guarded and self.merged):
            self.weight.data += (self.lora_B @ self.lora_A) * self.scaling
        self.merged = True

    def unmerge(self):
        if not self.guarded or self.merged:
            self.weight.data -= (self.lora_B @ self.lora_A) * self.scaling
        self.merged = False


class LoRATrain(LoRA):
    def train(self, mode=True):
        super().train(mode)
        self.calls.append(("train", mode))
        self.unmerge() if mode else self.merge()
        return self


class LoRABoth(LoRA):
    """train() and eval() both do it, eval() through nn.Linear's eval(), which calls train(False) again."""

    def train(self, mode=True):
        nn.Linear.train(self, mode)
        self.calls.append(("train", mode))
        if mode and self.merged:
            self.unmerge()
        elif not mode and not self.merged:
            self.merge()
        return self

    def eval(self):
        nn.Linear.eval(self)
        self.calls.append(("eval", False))
        if not self.merged:
            self.merge()
        return self


class LoRAEval(LoRA):
    def eval(self):
        super().eval()
        self.calls.append(("eval", False))
        self.merge()
        return self


class LoRACopy(LoRATrain):
    """Merges by writing with copy_ under no_grad, in place of `.data`."""

    def merge(self):
        with torch.no_grad():
            self.weight.copy_(self.weight + (self.lora_B @ self.lora_A) * self.scaling)
        self.merged = True

    def unmerge(self):
        with torch.no_grad():
            self.weight.copy_(self.weight - (self.lora_B @ self.lora_A) * self.scaling)
        self.merged = False


class LoRAReplace(LoRATrain):
    """Merges by giving the parameter another tensor."""

    def merge(self):
        self.weight.data = self.weight.data + (self.lora_B @ self.lora_A).detach() * self.scaling
        self.merged = True

    def unmerge(self):
        self.weight.data = self.weight.data - (self.lora_B @ self.lora_A).detach() * self.scaling
        self.merged = False


class LoRANewParameter(LoRATrain):
    def merge(self):
        self.weight = nn.Parameter(self.weight.detach() + (self.lora_B @ self.lora_A).detach() * self.scaling)
        self.merged = True

    def unmerge(self):
        self.weight = nn.Parameter(self.weight.detach() - (self.lora_B @ self.lora_A).detach() * self.scaling)
        self.merged = False


class LoRAView(LoRATrain):
    """Writes through a view of the weight, as merged QKV layers do."""

    def merge(self):
        self.weight.data[::2] += ((self.lora_B @ self.lora_A) * self.scaling).detach()[::2]
        self.merged = True

    def unmerge(self):
        self.weight.data[::2] -= ((self.lora_B @ self.lora_A) * self.scaling).detach()[::2]
        self.merged = False


class Parent(nn.Module):
    """Overrides train() too, and recurses."""

    def __init__(self, *children):
        super().__init__()
        self.parts = nn.ModuleList(children)
        self.norm = nn.BatchNorm1d(17)
        self.calls = []

    def train(self, mode=True):
        super().train(mode)
        self.calls.append(("train", mode))
        self.norm.eval()
        return self


KINDS = [LoRATrain, LoRABoth, LoRAEval, LoRACopy, LoRAReplace, LoRANewParameter, LoRAView]


def bits(model):
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def same(model, before):
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


class Holding(nn.Module):
    def __init__(self, lora):
        super().__init__()
        self.layers = [lora]


NESTINGS = {
    "alone": lambda lora: lora,
    "in a plain parent": nn.Sequential,
    "in an overriding parent": Parent,
    "in two overriding parents": lambda lora: Parent(Parent(lora)),
    "in a list": Holding,
}


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_merged_inside_and_the_weights_have_their_bits_back(kind, guarded, nesting):
    lora = kind(guarded=guarded)
    original, before = lora.weight, bits(lora)
    model = NESTINGS[nesting](lora)
    for module in model.modules():
        if isinstance(module, Parent):
            module.norm.eval()
    inputs = torch.randn(5, 17)
    merged = nn.functional.linear(
        inputs.double(), lora.weight.double() + (lora.lora_B @ lora.lora_A).double() / 3, lora.bias.double()
    )
    if kind is LoRAView:
        merged = None
    for _ in range(3):
        lora.calls.clear()
        with evaluating(model) as switched:
            assert len(switched.overridden) >= 1
            assert lora.merged and not lora.training
            if merged is not None:  # merged once, not twice
                torch.testing.assert_close(lora(inputs).double(), merged, rtol=1e-4, atol=1e-4)
            assert not torch.equal(lora.weight, before["weight"])
        assert lora.weight is original
        assert same(lora, before)
        assert lora.training
        assert len(lora.calls) == len(set(lora.calls))
        if kind is not LoRAEval:
            assert not lora.merged
            assert [call for call in lora.calls if call[1]] == [("train", True)]
        else:
            lora.merged = False  # it has no train() to hear of the way back


def test_weights_by_hand_would_not_have_their_bits_back():
    lora = LoRATrain()
    before = bits(lora)
    for _ in range(3):
        lora.eval()
        lora.train()
    assert not same(lora, before)  # the oracle: without a copy, the test above would fail


def test_an_override_is_not_called_if_its_flag_does_not_change():
    lora = LoRABoth().eval()
    lora.calls.clear()
    before = bits(lora)
    model = Parent(lora, LoRATrain().eval())
    with evaluating(model):
        pass
    assert lora.calls == [] and model.parts[1].calls == [("train", False)]  # the one call is its own .eval() above
    assert model.calls == [("train", False), ("train", True)]
    assert lora.merged and not lora.training and same(lora, before)
    with evaluating(model.eval()):
        pass
    assert model.calls.count(("train", True)) == 1


def test_a_childs_eval_is_called_although_the_parents_eval_never_calls_it():
    child = LoRAEval()
    by_hand = nn.Sequential(child)
    by_hand.eval()
    assert child.calls == []
    by_hand.train()
    with evaluating(by_hand):
        assert child.calls == [("eval", False)]


def test_a_parent_that_forgets_to_recurse():
    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.child = nn.Sequential(nn.Dropout(), LoRATrain())

        def train(self, mode=True):
            self.training = mode
            return self

    model = Forgetful()
    with evaluating(model):
        assert not any(m.training for m in model.modules())
        assert model.child[1].merged
    assert all(m.training for m in model.modules()) and not model.child[1].merged


def test_a_module_whose_train_does_nothing_is_switched_all_the_same():
    # a known idiom: encoder.train = disabled_train, an unbound function on the instance
    def disabled_train(mode=True):
        return None

    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    model[0].train = disabled_train
    with evaluating(model):
        assert not model[0].training
    assert model[0].training and model[0].train is disabled_train


def test_an_override_that_keeps_a_part_in_evaluation():
    class FrozenNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.drop = nn.Dropout()
            self.train()

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

    model = FrozenNorm()
    assert [m.training for m in model.modules()] == [True, False, True]
    with evaluating(model):
        pass
    assert [m.training for m in model.modules()] == [True, False, True]
    model.norm.train()  # the user's own doing, against the override: by value
    with evaluating(model):
        pass
    assert [m.training for m in model.modules()] == [True, True, True]


def test_an_override_on_the_way_out_does_not_touch_parts_that_were_in_evaluation():
    lora = LoRATrain()
    other = nn.Dropout().eval()
    model = Parent(lora, other)
    model.norm.train()
    with evaluating(model):
        pass
    assert not other.training and model.norm.training


# ---------------------------------------------------------------------------------------------- in flight together


def test_nested_entries_call_the_override_once_and_the_last_restores():
    lora = LoRATrain()
    before = bits(lora)
    model = Parent(lora)
    with evaluating(model):
        with evaluating(lora), evaluating(model):
            pass
        assert lora.calls == [("train", False)] and lora.merged
    assert lora.calls == [("train", False), ("train", True)] and same(lora, before)


def test_the_inner_part_outlives_the_whole():
    lora = LoRATrain()
    before = bits(lora)
    model = Parent(lora)
    outer, inner = evaluating(model), evaluating(lora)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert model.training and not lora.training and lora.merged
    assert lora.calls == [("train", False)]
    inner.__exit__(None, None, None)
    assert lora.training and not lora.merged and same(lora, before)


def test_the_inner_whole_outlives_the_part():
    lora = LoRATrain()
    before = bits(lora)
    model = Parent(lora)
    part, whole = evaluating(lora), evaluating(model)
    part.__enter__()
    whole.__enter__()
    part.__exit__(None, None, None)
    assert lora.merged and not lora.training and lora.calls == [("train", False)]
    whole.__exit__(None, None, None)
    assert lora.calls == [("train", False), ("train", True)] and same(lora, before) and model.training


def test_kept_in_training_is_not_called_and_keeps_its_weights():
    lora = LoRATrain()
    before = bits(lora)
    model = Parent(lora, nn.Dropout())
    with evaluating(model, keep_training=[LoRA]):
        assert lora.training and not lora.merged and same(lora, before)
        assert not model.parts[1].training
    assert lora.calls == [] and lora.training


# ---------------------------------------------------------------------------------------------- weights changed inside


def test_weights_loaded_inside_are_not_undone():
    lora = LoRATrain()
    loaded = {name: torch.randn_like(t) for name, t in lora.state_dict().items()}
    with pytest.warns(EvalmodeWarning, match="changed them again inside"), evaluating(lora):
        lora.load_state_dict(loaded)
    assert torch.equal(lora.bias, loaded["bias"])
    assert lora.training and not lora.merged


def test_that_warning_as_an_error_leaves_nothing_undone():
    changed, other = LoRATrain(), LoRATrain()
    before = bits(other)
    model = nn.Sequential(changed, other, nn.Dropout())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(EvalmodeWarning), evaluating(model):
            with torch.no_grad():
                changed.weight.add_(1)
    assert all(m.training for m in model.modules()) and torch.is_grad_enabled()
    assert same(other, before) and not other.merged
    with evaluating(model):
        assert other.merged and not other.training
    assert same(other, before)


def test_what_the_block_changes_elsewhere_stays():
    lora = LoRATrain()
    model = nn.Sequential(lora, nn.Linear(2, 2))
    before = bits(lora)
    with evaluating(model):
        model[1].weight.fill_(3.0)
    assert bool((model[1].weight == 3).all()) and same(lora, before)


# ---------------------------------------------------------------------------------------------- overrides that raise


class Raising(nn.Linear):
    def __init__(self, when, kind):
        super().__init__(3, 3)
        self.when, self.kind, self.armed = when, kind, True
        self.calls = []

    def train(self, mode=True):
        self.calls.append(mode)
        with torch.no_grad():
            self.weight += 0.1 if mode else -0.1
        if mode is self.when and self.armed:
            raise self.kind("in an override")
        return super().train(mode)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_override_that_raises_on_the_way_in(kind):
    raising, lora, after = Raising(False, kind), LoRATrain(), LoRATrain()
    model = Parent(lora, raising, nn.Dropout(), after, nn.Dropout().eval())
    before, flags = bits(model), [m.training for m in model.modules()]
    with pytest.raises(kind, match="in an override"), evaluating(model):
        raise AssertionError("entered")
    assert [m.training for m in model.modules()] == flags
    assert same(model, before) and torch.is_grad_enabled()
    assert not lora.merged and not after.merged
    assert not any({"train", "eval"} & vars(m).keys() for m in model.modules())
    raising.armed = False
    with evaluating(model):
        assert lora.merged
    assert same(model, before)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_override_that_raises_on_the_way_out(kind):
    raising, lora, after = Raising(True, kind), LoRATrain(), LoRATrain()
    model = Parent(lora, raising, nn.Dropout(), after, nn.Dropout().eval())
    before, flags = bits(model), [m.training for m in model.modules()]
    with pytest.raises(kind, match="in an override"), evaluating(model):
        pass
    assert [m.training for m in model.modules()] == flags
    assert same(model, before) and torch.is_grad_enabled()
    assert not lora.merged and not after.merged
    assert raising.calls == [False, True]


def test_kept_parts_come_back_when_an_override_fails_after_recursing():
    class Late(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            if not mode:
                raise ValueError("late")
            return self

    model = Late(nn.Dropout(), nn.Linear(2, 2), nn.Dropout().eval())
    before = [m.training for m in model.modules()]
    with pytest.raises(ValueError, match="late"), evaluating(model, keep_training="0"):
        pass
    assert [m.training for m in model.modules()] == before


def test_the_block_s_own_error_is_the_context_of_an_override_s():
    model = Raising(True, ValueError)
    with pytest.raises(ValueError, match="in an override") as caught, evaluating(model):
        raise KeyError("block")
    assert isinstance(caught.value.__context__, KeyError)


def test_an_override_that_evaluates_another_model_itself():
    helper = nn.Dropout()

    class Calibrating(nn.Linear):
        def train(self, mode=True):
            with evaluating(helper):
                assert not helper.training
            return super().train(mode)

    model = nn.Sequential(Calibrating(2, 2), LoRATrain())
    before = bits(model)
    with evaluating(model):
        assert not model[0].training and helper.training
    assert model[0].training and helper.training and same(model, before)


def test_an_override_that_evaluates_its_own_child():
    class Calibrating(nn.Sequential):
        def train(self, mode=True):
            with evaluating(self[0]):
                pass
            return super().train(mode)

    model = Calibrating(LoRATrain(), nn.Dropout())
    before = bits(model)
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    assert all(m.training for m in model.modules()) and same(model, before)
    assert not any({"train", "eval"} & vars(m).keys() for m in model.modules())


def test_an_override_with_read_only_flag_is_an_error_that_says_so():
    class ReadOnly(nn.Module):
        @property
        def training(self):
            return True

        @training.setter
        def training(self, value):
            if "ready" in self.__dict__:
                raise AttributeError("read-only")

    model = nn.Sequential(nn.Dropout(), ReadOnly())
    model[1].__dict__["ready"] = True
    with pytest.raises(RuntimeError, match="cannot be set"), evaluating(model):
        pass
    assert model[0].training and model.training and torch.is_grad_enabled()


def test_a_training_property_is_written_through():
    class Forwarding(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Dropout()

        @property
        def training(self):
            return self.__dict__["_modules"]["inner"].training if self.__dict__.get("_modules") else True

        @training.setter
        def training(self, value):
            if self.__dict__.get("_modules"):
                self.inner.training = value

    model = Forwarding()
    with evaluating(model):
        assert not model.training and not model.inner.training
    assert model.training and model.inner.training


class HalfWay(LoRATrain):
    """Interrupted between the weights and its own note of them."""

    stop: bool | None = None

    def merge(self):
        self.weight.data += (self.lora_B @ self.lora_A) * self.scaling
        if self.stop is False:
            raise KeyboardInterrupt
        self.merged = True

    def unmerge(self):
        if self.merged:
            self.weight.data -= (self.lora_B @ self.lora_A) * self.scaling
            if self.stop is True:
                raise KeyboardInterrupt
        self.merged = False


@pytest.mark.parametrize("stop", [False, True])
def test_an_override_interrupted_half_way_is_put_back_with_what_it_notes_of_itself(stop):
    model = Parent(HalfWay(), LoRATrain())
    before = bits(model)
    model.parts[0].stop = stop
    with pytest.raises(KeyboardInterrupt), evaluating(model):
        pass
    assert same(model, before) and not model.parts[0].merged and not model.parts[1].merged
    model.parts[0].stop = None
    with evaluating(model):
        assert model.parts[0].merged and not torch.equal(model.parts[0].weight, before["parts.0.weight"])
    assert same(model, before)


@given(data=st.data(), seed=st.integers(0, 2**16))
def test_any_nest_of_adapters_has_its_bits_back(data, seed):
    torch.manual_seed(seed)
    leaves = [
        data.draw(st.sampled_from([LoRATrain, LoRABoth, LoRACopy, LoRAReplace, LoRAView]))(
            4, 2, guarded=data.draw(st.booleans())
        )
        for _ in range(data.draw(st.integers(1, 4)))
    ]
    model: nn.Module = nn.Sequential(*leaves)
    for _ in range(data.draw(st.integers(0, 3))):
        model = data.draw(st.sampled_from([Parent, nn.Sequential]))(model)
    for module in model.modules():
        if data.draw(st.integers(0, 3)) == 0 and not isinstance(module, LoRA):
            module.training = False
    before, flags = bits(model), [m.training for m in model.modules()]
    for _ in range(2):
        try:
            with evaluating(model):
                assert all(leaf.merged for leaf in leaves)
                if data.draw(st.booleans()):
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        assert same(model, before)
        assert [m.training for m in model.modules()] == flags
        assert not any(leaf.merged for leaf in leaves)
