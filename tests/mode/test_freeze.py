"""`freeze`: evaluation behaviour that survives everything a training run does to a model."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from evalmode import evaluating, freeze, is_frozen, unfreeze


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(4, 4),
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)),
        nn.Linear(6, 2),
    )


def flags(model):
    return [m.training for m in model.modules()]


FROZEN_MIDDLE = [True, True, False, False, False, False, True]


def frozen_network():
    model = network()
    freeze(model[1])
    return model


def assert_middle_is_frozen(model):
    model.eval()
    model.train()
    assert flags(model) == FROZEN_MIDDLE
    assert is_frozen(model[1]) and all(is_frozen(part) for part in model[1])
    assert not is_frozen(model) and not is_frozen(model[0])
    x = torch.randn(5, 4, requires_grad=True)
    middle = [t.clone() for t in model[1].state_dict().values()]
    assert torch.equal(model[1](x), model[1](x))  # no dropout
    model.zero_grad()
    model(x).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(middle, model[1].state_dict().values(), strict=True))
    assert all(p.grad is None and not p.requires_grad for p in model[1].parameters())
    assert x.grad is not None and bool(x.grad.any())  # gradients flow through
    assert all(p.grad is not None for p in (*model[0].parameters(), *model[2].parameters()))


def test_frozen_survives_train_of_any_parent():
    model = frozen_network()
    assert flags(model) == FROZEN_MIDDLE
    assert_middle_is_frozen(model)
    outer = nn.Sequential(nn.Sequential(model))
    outer.train()
    assert flags(model) == FROZEN_MIDDLE
    model[1].train()
    model[1][2].train()
    model[1].train(mode=True)
    assert flags(model) == FROZEN_MIDDLE
    assert model[1].train() is model[1] and model[1].eval() is model[1]


def test_freeze_returns_its_module_and_works_on_a_whole_model():
    model = network()
    assert freeze(model) is model and is_frozen(model)
    model.train()
    assert not any(flags(model))
    assert unfreeze(model) is model and not is_frozen(model)
    assert all(flags(model)) and all(p.requires_grad for p in model.parameters())


def test_frozen_class_and_attributes_stay_what_they_were():
    model = network()
    kinds, keys = [type(m) for m in model.modules()], list(model.state_dict())
    freeze(model[1])
    assert [type(m) for m in model.modules()] == kinds and list(model.state_dict()) == keys
    unfreeze(model[1])
    assert not any({"train", "eval"} & vars(m).keys() for m in model.modules())


# ---------------------------------------------------------------------------------------------- copies


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "pickle protocol 2": lambda m: pickle.loads(pickle.dumps(m, protocol=2)),
    "twice": lambda m: copy.deepcopy(pickle.loads(pickle.dumps(m))),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_are_frozen_and_independent(way):
    model = frozen_network()
    twin = COPIES[way](model)
    assert_middle_is_frozen(twin)
    unfreeze(twin)
    assert all(flags(twin)) and all(p.requires_grad for p in twin.parameters())
    assert_middle_is_frozen(model)
    other = COPIES[way](model)
    unfreeze(model)
    assert_middle_is_frozen(other)


def test_torch_save_of_the_whole_model():
    buffer = io.BytesIO()
    torch.save(frozen_network(), buffer)
    buffer.seek(0)
    assert_middle_is_frozen(torch.load(buffer, weights_only=False))


def test_a_copy_of_a_frozen_part_with_a_gradient_that_has_a_graph():
    model = network()
    with pytest.warns(UserWarning, match="create_graph"):
        model(torch.randn(3, 4)).sum().backward(create_graph=True)
    freeze(model[1])
    assert_middle_is_frozen(copy.deepcopy(model))
    for p in model.parameters():
        p.grad = None


def test_unpickled_in_a_fresh_process_it_is_frozen_there_too_and_through_its_conversions(tmp_path):
    torch.save(frozen_network(), tmp_path / "model.pt")
    code = f"""
import torch
from torch import nn
model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
model.train()
assert [m.training for m in model.modules()] == {FROZEN_MIDDLE}
model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
model.train()
assert isinstance(model[1][1], nn.SyncBatchNorm)
assert not model[1][1].training
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracking", [True, False])
def test_sync_batch_norm_conversion_keeps_it_frozen(affine, tracking):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=affine, track_running_stats=tracking))
    freeze(model[1])
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model[1]) is nn.SyncBatchNorm
    model.train()
    if affine or tracking:  # a layer without a single tensor has no state to keep
        assert not model[1].training and is_frozen(model[1])
        unfreeze(model)
        assert model[1].training and all(p.requires_grad for p in model.parameters())


def test_sync_batch_norm_conversion_of_a_frozen_parent_and_of_the_layer_itself():
    model = freeze(network())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.train()
    assert not any(flags(model)) and is_frozen(model)
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(freeze(nn.BatchNorm2d(3)))
    layer.train()
    assert not layer.training and is_frozen(layer)
    unfreeze(layer)
    assert layer.training and layer.weight.requires_grad


def test_unrelated_batch_norms_are_not_frozen_by_a_conversion():
    frozen = freeze(nn.BatchNorm1d(3))
    other = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3)))
    other.train()
    assert other[0].training and not is_frozen(other[0]) and is_frozen(frozen)


def test_compiled_models_keep_it():
    model = frozen_network()
    compiled = torch.compile(model, backend="eager")
    compiled.train()
    assert flags(model) == FROZEN_MIDDLE
    x = torch.randn(3, 4)
    assert torch.equal(compiled(x), model(x))
    middle = torch.compile(freeze(network()), backend="eager")
    middle.train()
    assert is_frozen(middle._orig_mod) and torch.equal(middle(x), middle(x))
    compiled_first = torch.compile(network(), backend="eager")
    freeze(compiled_first)
    compiled_first.train()
    assert not any(m.training for m in compiled_first.modules())
    unfreeze(compiled_first)
    assert all(m.training for m in compiled_first.modules())


# ---------------------------------------------------------------------------------------------- state and optimisers


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_the_state_dict_is_unchanged_and_loading_keeps_it_frozen(assign, strict):
    model, plain = frozen_network(), network()
    assert list(model.state_dict()) == list(plain.state_dict())
    other = {name: torch.randn_like(t) if t.is_floating_point() else t + 5 for name, t in plain.state_dict().items()}
    model.load_state_dict(other, strict=strict, assign=assign)
    assert all(torch.equal(a, other[name]) for name, a in model.state_dict().items())
    model[1][1].running_var.abs_()
    assert_middle_is_frozen(model)
    plain.load_state_dict(model.state_dict(), strict=True)
    unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_optimiser_steps_do_not_move_it(kind):
    model = network()
    wishes = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimiser = kind(model.parameters(), lr=0.1, weight_decay=0.1, **wishes)
    for _ in range(2):
        model(torch.randn(8, 4)).sum().backward()
        optimiser.step()
    freeze(model[1])  # with gradients and momenta in place
    middle = [t.clone() for t in model[1].state_dict().values()]
    rest = model[0].weight.detach().clone()
    for zero in (True, False):
        model(torch.randn(8, 4)).sum().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=zero)
    assert all(torch.equal(a, b) for a, b in zip(middle, model[1].state_dict().values(), strict=True))
    assert not torch.equal(rest, model[0].weight)
    unfreeze(model[1])
    optimiser.zero_grad()
    model(torch.randn(8, 4)).sum().backward()
    optimiser.step()
    assert not torch.equal(middle[0], model[1][0].weight)


def test_unfreeze_gives_back_flags_requires_grad_and_gradients():
    model = network()
    model[1][1].eval()
    model[1][0].bias.requires_grad_(False)
    model(torch.randn(4, 4)).sum().backward()
    grads = [p.grad for p in model.parameters()]
    needed = [p.requires_grad for p in model.parameters()]
    before = flags(model)
    freeze(model)
    assert all(p.grad is None for p in model.parameters())
    unfreeze(model)
    assert flags(model) == before
    assert [p.requires_grad for p in model.parameters()] == needed
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))


def test_to_another_dtype_and_back():
    model = frozen_network().double().float()
    assert_middle_is_frozen(model)


def test_a_shared_parameter_is_given_back():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    freeze(model["a"])
    assert not model["b"].weight.requires_grad  # documented
    freeze(model["b"])
    unfreeze(model["a"])
    unfreeze(model["b"])
    assert model["a"].weight.requires_grad
    freeze(model)
    unfreeze(model)
    assert model["a"].weight.requires_grad


# ---------------------------------------------------------------------------------------------- parts


def test_part_of_a_frozen_backbone_can_be_unfrozen_and_hears_of_train_and_eval():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2))), nn.Linear(2, 2))
    backbone, layer4 = model[0], model[0][1]
    freeze(backbone)
    unfreeze(layer4)
    assert all(flags(layer4)) and all(p.requires_grad for p in layer4.parameters())
    assert not is_frozen(backbone) and is_frozen(backbone[0])
    model.eval()
    assert not any(flags(model))
    model.train()
    assert flags(model) == [True, False, False, True, True, True, True]
    with evaluating(model):
        assert not any(flags(model))
    assert flags(model) == [True, False, False, True, True, True, True]
    unfreeze(backbone)
    assert all(flags(model)) and all(p.requires_grad for p in model.parameters())


def test_hidden_parts_are_frozen_too():
    model = network()
    model[1].held = [nn.Sequential(nn.Dropout(), nn.Linear(2, 2))]
    freeze(model[1])
    held = model[1].held[0]
    model.train()
    held.train()
    assert not any(flags(held)) and not any(p.requires_grad for p in held.parameters())
    unfreeze(model[1])
    assert all(flags(held)) and all(p.requires_grad for p in held.parameters())


def test_freezing_again_is_idempotent_and_takes_in_what_was_added():
    model = network()
    freeze(model[1])
    freeze(model[1])
    unfreeze(model[1])
    assert all(flags(model)) and not is_frozen(model[1])
    freeze(model[1])
    model[1].append(nn.Dropout())
    assert not is_frozen(model[1])
    freeze(model[1])
    model.train()
    assert not any(flags(model[1])) and is_frozen(model[1])
    unfreeze(model[1])
    assert all(flags(model))


def test_a_part_frozen_before_the_whole_stays_frozen_after_the_whole_is_unfrozen():
    model = network()
    freeze(model[1])
    freeze(model)
    assert is_frozen(model)
    unfreeze(model)
    assert_middle_is_frozen(model)
    unfreeze(model[1])
    assert all(flags(model)) and all(p.requires_grad for p in model.parameters())


def test_unfreezing_what_is_not_frozen_changes_nothing():
    model = network()
    model[1].eval()
    before = flags(model)
    unfreeze(model)
    assert flags(model) == before


def test_cycles():
    model = network()
    model[1].__dict__["parent"] = model[1]
    model[1].everything = [model[1]]
    freeze(model[1])
    model.train()
    assert flags(model) == FROZEN_MIDDLE
    unfreeze(model[1])
    assert all(flags(model))


# ---------------------------------------------------------------------------------------------- with evaluating


def test_frozen_before_inside_and_after_evaluating():
    model = frozen_network()
    with evaluating(model) as switched:
        assert not any(flags(model))
        assert not any(path.startswith("1") for path in switched.switched)
    assert_middle_is_frozen(model)


def test_a_freeze_made_inside_stays():
    model = network()
    with evaluating(model):
        freeze(model[1])
    assert flags(model) == FROZEN_MIDDLE
    assert_middle_is_frozen(model)
    unfreeze(model)
    assert all(flags(model)) and all(p.requires_grad for p in model.parameters())


def test_an_unfreeze_made_inside_is_in_training_afterwards():
    model = frozen_network()
    with evaluating(model):
        unfreeze(model[1])
        assert not any(flags(model))
    assert all(flags(model))
    assert all(p.requires_grad for p in model.parameters())


def test_freeze_and_unfreeze_inside_and_overlapping():
    model = network()
    with evaluating(model), evaluating(model[1]):
        freeze(model[1])
        unfreeze(model[1])
        assert not any(flags(model))
    assert all(flags(model))
    with evaluating(model):
        with evaluating(model[1]):
            freeze(model)
        unfreeze(model[1])
        assert not any(flags(model))
    assert flags(model) == [False, False, True, True, True, True, False]
    unfreeze(model)
    assert all(flags(model))


class Merging(nn.Linear):
    def __init__(self):
        super().__init__(9, 9)
        self.delta = nn.Parameter(torch.randn(9, 9) * 3)
        self.merged, self.calls = False, []

    def train(self, mode=True):
        super().train(mode)
        self.calls.append(mode)
        if mode is self.merged:
            self.weight.data += self.delta.data * (1 if not mode else -1)
            self.merged = not mode
        return self


def test_freezing_calls_overrides_once_and_unfreezing_calls_them_back():
    model = nn.Sequential(Merging(), nn.Dropout())
    freeze(model)
    assert model[0].merged and model[0].calls == [False]
    model.train()
    assert model[0].merged and model[0].calls == [False]
    with evaluating(model):
        assert model[0].merged
    assert model[0].calls == [False] and model[0].merged
    unfreeze(model)
    assert model[0].calls == [False, True] and not model[0].merged


def test_an_override_frozen_inside_is_called_again_by_a_later_evaluation():
    model = nn.Sequential(Merging(), nn.Dropout())
    with evaluating(model):
        freeze(model[0])
        assert model[0].merged
    assert model[0].merged
    unfreeze(model[0])
    assert not model[0].merged and model[0].training
    before = model[0].weight.detach().clone()
    with evaluating(model):
        assert model[0].merged
    assert not model[0].merged and torch.equal(model[0].weight, before)


def test_an_override_frozen_and_unfrozen_inside_has_its_bits_back():
    model = nn.Sequential(Merging(), nn.Dropout())
    before = model[0].weight.detach().clone()
    with evaluating(model):
        freeze(model[0])
        unfreeze(model[0])
    assert model[0].training and not model[0].merged and torch.equal(model[0].weight, before)


@given(data=st.data())
def test_any_sequence_of_freezing_and_unfreezing(data):
    """Against a model of the rule: a part is frozen while any freeze that covers it has not been taken back."""
    model = network()
    parts = list(model.modules())
    for p in parts:
        p.training = data.draw(st.booleans())
    before = flags(model)
    for _ in range(data.draw(st.integers(1, 6))):
        part = data.draw(st.sampled_from(parts))
        freeze(part)
        assert is_frozen(part)
        model.train(data.draw(st.booleans()))
        assert not any(flags(part))
        for p, flag in zip(parts, before, strict=True):
            if not is_frozen(p) and not vars(p).get("train"):
                p.training = flag
    for _ in range(8):
        unfreeze(model)
    assert not any(vars(p).get("train") for p in parts)
    assert flags(model) == before
    assert all(p.requires_grad for p in model.parameters())


def test_a_shallow_copy_is_frozen_and_unfrozen_apart_from_the_original():
    original = freeze(nn.BatchNorm1d(4))
    other = copy.copy(original)
    assert is_frozen(other)
    unfreeze(other)
    assert other.training
    assert is_frozen(original)
    assert not original.training
    assert unfreeze(original).training


def test_a_frozen_scripted_module_stands_in_the_way_of_nothing_else():
    scripted = freeze(torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
    other = nn.SyncBatchNorm.convert_sync_batchnorm(freeze(nn.Sequential(nn.BatchNorm1d(3))))
    assert is_frozen(other)
    unfreeze(scripted)
    assert scripted.training
