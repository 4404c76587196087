from __future__ import annotations

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.optimization.gate_models import (
    Block,
    Flat,
    Recurrent,
    Routed,
    coarser,
    convolutional,
    like,
    reference,
    run_of,
)
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from evalmode.optimization.probes import probe_samples
from evalmode.optimization.reference import reference_of
from evalmode.optimization.tolerance import Tolerance
from evalmode.optimization.verification import verify

IMAGES = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(7))


@functools.cache
def convolutional_with_truth():
    model = convolutional()
    return model, reference(model, (IMAGES,), sizes=(1, 2, 8))


@pytest.fixture
def cnn():
    return convolutional_with_truth()


def accepted(flat: Flat, truth, *sizes: int) -> bool:
    found = verify({size: run_of(flat) for size in sizes}, truth)
    assert found.samples == len(truth)
    return found.accepted


def changed(flat: Flat, change) -> Flat:
    """What `flat` gives, changed in place."""

    def altered(*inputs: Tensor):
        outputs = tuple(output.clone() for output in flat(*inputs))
        change(outputs)
        return outputs

    return altered


def folded(model):
    other = copy.deepcopy(model)
    other.first, other.norm = fuse_conv_bn_eval(model.first, model.norm), nn.Identity()
    return other


def channels_last(model):
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return lambda x: other(x.to(memory_format=torch.channels_last))


def in_double(model):
    other = copy.deepcopy(model).double()
    return lambda x: tuple(output.float() for output in other(x.double()))


def stale(model):
    kept = model(IMAGES[:1])[0].detach()
    return lambda x: (kept.expand(len(x), -1).clone(),)


RIGHT = {
    "the model itself": lambda model: model,
    "folded batch norm": folded,
    "channels last": channels_last,
    "fp64 inside": in_double,
    "one sample at a time": lambda model: lambda x: (torch.cat([model(row)[0] for row in x.split(1)]),),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_rewrite_that_only_rounds_otherwise_is_accepted(cnn, name: str) -> None:
    model, truth = cnn
    with torch.no_grad():
        found = verify({size: run_of(RIGHT[name](model)) for size in (1, 3, 8)}, truth)
    assert found.accepted, found.reason
    assert found.ratio < 3
    assert found.margin < 0.7
    assert "the error of plain fp32" in found.reason


def without_bias(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.bias[3] = 0
    return other


def batch_norm_twice(model):
    other = folded(model)
    other.norm = model.norm
    return other


def low_precision(model):
    other = copy.deepcopy(model).bfloat16()
    return lambda x: tuple(output.float() for output in other(x.bfloat16()))


def put(row, value):
    def change(outputs):
        outputs[0][row] += value

    return change


def repeat_first(outputs):
    outputs[0][-1] = outputs[0][0]


WRONG = {
    "bounded activation": lambda model: like(model, activation=nn.ReLU6),
    "other epsilon": lambda model: like(model, eps=1e-3),
    "slightly other epsilon": lambda model: like(model, eps=2e-5),
    "bf16": low_precision,
    "tf32": lambda model: coarser(model, 10),
    "a missing bias": without_bias,
    "batch norm twice": batch_norm_twice,
    "wrong at the first position": lambda model: changed(model, put(0, 1e-4)),
    "wrong at the last position": lambda model: changed(model, put(-1, 1e-4)),
    "last row repeats the first": lambda model: changed(model, repeat_first),
    "no output": lambda model: lambda x: (),
    "another type": lambda model: lambda x: (model(x)[0].double(),),
    "another shape": lambda model: lambda x: (model(x)[0][:, :-1],),
    "a stale answer": stale,
    "it fails": lambda model: lambda x: (x @ x,),
    "zero for NaN": lambda model: lambda x: (model(x)[0].nan_to_num(0.0),),
    "NaN dropped inside": lambda model: lambda x: model(x.nan_to_num(0.0, torch.inf, -torch.inf)),
    "outputs clamped": lambda model: lambda x: (model(x)[0].clamp(-65504, 65504),),
    "negative inputs dropped": lambda model: lambda x: model(x.relu()),
    "NaN leaks": lambda model: lambda x: (model(x)[0] + 0 * x.sum(),),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_pass_or_back_end_is_rejected(cnn, name: str) -> None:
    model, truth = cnn
    found = verify({size: run_of(WRONG[name](model)) for size in (3, 8)}, truth)
    assert not found.accepted
    assert "\n" not in found.reason


@pytest.mark.parametrize("position", range(8))
def test_a_fault_at_any_single_position_is_found(cnn, position: int) -> None:
    model, truth = cnn
    assert not accepted(changed(model, put(position, 1e-4)), truth, 8)


def test_a_fault_in_non_finite_inputs_alone_is_told_apart(cnn) -> None:
    model, truth = cnn
    assert verify({4: run_of(lambda x: (model(x)[0].nan_to_num(0.0),))}, truth).only_non_finite
    assert not verify({4: run_of(like(model, eps=1e-3))}, truth).only_non_finite
    assert not verify({4: run_of(WRONG["NaN leaks"](model))}, truth).only_non_finite


def test_the_reason_says_where_and_by_how_much(cnn) -> None:
    model, truth = cnn
    found = verify({8: run_of(changed(model, put(5, 1e-2)))}, truth)
    assert "position 5 of 8" in found.reason
    assert "what is allowed" in found.reason
    assert found.output == "output 0"
    assert found.margin > 100


def test_a_wider_tolerance_accepts_what_a_narrow_one_rejects(cnn) -> None:
    model, truth = cnn
    runs = {4: run_of(coarser(model, 14))}
    assert not verify(runs, truth).accepted
    assert verify(runs, truth, Tolerance(multiple=3000)).accepted


@given(
    size=st.sampled_from([-1e-4, -1e-2, 1e-4, 0.1]), channel=st.integers(0, 9), layer=st.sampled_from(["head", "norm"])
)
@settings(max_examples=15)
def test_a_change_of_any_one_parameter_is_found(size: float, channel: int, layer: str) -> None:
    model, truth = convolutional_with_truth()
    other = copy.deepcopy(model)
    with torch.no_grad():
        getattr(other, layer).bias[channel % 8] += size
        moved = float((other(IMAGES)[0] - model(IMAGES)[0]).abs().max()) > 2e-5
    assert not moved or not accepted(other, truth, 4)


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(1)
    model = Block().eval()
    return model, reference(model, (torch.randn(4, 9, 24),))


def test_attention_may_be_computed_otherwise(block) -> None:
    model, truth = block
    assert accepted(like(model, fused=False), truth, 1, 8)


@pytest.mark.parametrize("fault", [{"approximate": "tanh"}, {"eps": 1e-3}, {"eps": 1e-6}])
def test_another_activation_or_epsilon_in_a_transformer_is_found(block, fault) -> None:
    model, truth = block
    assert not accepted(like(model, **fault), truth, 4)


def test_token_ids_and_masks_are_varied() -> None:
    torch.manual_seed(2)
    model = Block(vocabulary=40).eval()
    ids, mask = torch.randint(0, 40, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    truth = reference(model, (ids, mask), names=("input_ids", "attention_mask"))
    assert accepted(like(model, vocabulary=40, fused=False), truth, 2, 5)
    assert not accepted(lambda ids, mask: model(ids), truth, 4)  # the example's mask, all ones, baked in
    assert not accepted(like(model, vocabulary=40, approximate="tanh"), truth, 4)


def test_outputs_with_samples_along_other_axes() -> None:
    torch.manual_seed(3)
    model = Recurrent().eval()
    truth = reference(model, (torch.randn(3, 10, 6),), output_axes=(0, 1, 1))
    assert accepted(model, truth, 1, 4)
    assert not accepted(lambda x: tuple(model(x)[place] for place in (0, 2, 1)), truth, 4)
    assert not accepted(coarser(model, 10), truth, 4)

    def last_layer(outputs):
        outputs[2][-1, -1] += 1e-4

    assert not accepted(changed(model, last_layer), truth, 4)


def test_whole_numbers_are_equal() -> None:
    torch.manual_seed(4)
    model = Routed().eval()
    truth = reference(model, (torch.randn(4, 5, 16),), output_axes=(0, 0))
    assert accepted(model, truth, 4)

    def one_off(outputs):
        outputs[1][-1, 2] ^= 1

    assert not accepted(changed(model, one_off), truth, 4)
    assert not accepted(lambda x: (model(x)[0], model(x)[1].int()), truth, 4)


def test_samples_near_a_tie_are_counted_apart_and_loosen_nothing_else() -> None:
    torch.manual_seed(5)
    model = Routed(ties=True).eval()
    truth = reference(model, (torch.randn(4, 3, 16),), output_axes=(0, 0), sizes=(1, 2, 4, 8))
    wide = copy.deepcopy(model).double()

    def in_fp64(x: Tensor):
        values, chosen = wide(x.double())
        return values.float(), chosen

    found = verify({4: run_of(in_fp64)}, truth)
    assert found.accepted, found.reason
    assert found.discontinuous > 0
    assert any("compared by share" in note for note in found.notes)
    assert not accepted(like(model, approximate="tanh"), truth, 4)
    assert not accepted(lambda x: (model(x)[0], (model(x)[1] + 1) % 4), truth, 4)


@pytest.mark.parametrize("seed", [8, 12, 13, 21])
def test_a_tie_that_only_the_candidate_has_shown_is_looked_at_again(seed: int) -> None:
    torch.manual_seed(seed)
    model = Routed(ties=True).eval()
    truth = reference(model, (torch.randn(4, 6, 16),), output_axes=(0, 0), sizes=(1, 2, 8))

    def in_halves(x: Tensor):
        """The router's product in another order of summation."""
        first, second = model.router.weight.split(8, 1)
        weight, chosen = (x[..., :8] @ first.T + x[..., 8:] @ second.T + model.router.bias).softmax(-1).max(-1)
        everyone = torch.stack([expert(x) for expert in model.experts], -2)
        picked = everyone.gather(-2, chosen[..., None, None].expand(*chosen.shape, 1, 16)).squeeze(-2)
        return nn.functional.gelu(picked) * weight[..., None], chosen

    found = verify({3: run_of(in_halves), 4: run_of(in_halves)}, truth)
    assert found.accepted, found.reason

    def one_sample_routed_elsewhere(x: Tensor):
        values, chosen = in_halves(x)
        return values.roll(1, 1), chosen

    assert not accepted(one_sample_routed_elsewhere, truth, 3)


def test_without_floor_and_multiple_an_exact_candidate_still_passes() -> None:
    truth = reference(lambda x: (x * 2,), (torch.randn(4, 5),))
    assert verify({4: run_of(lambda x: (x + x,))}, truth, Tolerance(multiple=1, floor=0)).accepted
    assert not verify({4: run_of(lambda x: (x * 2.00001,))}, truth, Tolerance(multiple=1, floor=0)).accepted


def test_small_values_beside_large_ones_are_judged_by_themselves() -> None:
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(6))

    def model(x: Tensor):
        return (torch.cat([1e6 * (x @ weight), (x @ weight.T).tanh()], -1),)

    def lossy(x: Tensor):
        return (torch.cat([1e6 * (x @ weight), (x @ weight.T).tanh() + 1e-3], -1),)

    truth = reference(model, (torch.randn(6, 8),))
    assert accepted(model, truth, 4)
    assert not accepted(lossy, truth, 4)


def test_an_input_that_belongs_to_no_sample_may_not_be_baked_in() -> None:
    table = torch.randn(5)
    truth = reference(lambda x, t: (x * t,), (torch.randn(4, 5), table), axes=(0, None))
    assert accepted(lambda x, t: (t * x,), truth, 4)
    assert not accepted(lambda x, t: (x * table,), truth, 4)


def test_an_output_that_belongs_to_no_sample() -> None:
    table = torch.randn(5)
    truth = reference(lambda x: (x + table, table * 2), (torch.randn(4, 5),), output_axes=(0, None))
    assert accepted(lambda x: (table + x, table + table), truth, 4)
    assert not accepted(lambda x: (table + x, table * 2.001), truth, 4)


def test_an_output_that_changes_with_the_batch_is_refused() -> None:
    def model(x: Tensor):
        return x * 2, x.mean()

    truth = reference(model, (torch.randn(4, 5),), output_axes=(0, None))
    assert truth.moving == ("output 1",)
    assert "belongs to no sample" in verify({4: run_of(model)}, truth).reason


def test_inputs_without_any_samples() -> None:
    truth = reference(lambda x: (x @ x,), (torch.randn(4, 4),), axes=(None,), output_axes=(None,))
    assert accepted(lambda x: ((x.mT @ x.mT).mT,), truth, 1)
    assert not accepted(lambda x: ((x @ x).bfloat16().float(),), truth, 1)


def test_complex_and_half_outputs() -> None:
    truth = reference(lambda x: (torch.fft.fft(x), x.half()), (torch.randn(4, 8),), output_axes=(0, 0))
    assert accepted(lambda x: (torch.fft.fft(x.double()).to(torch.complex64), x.half()), truth, 4)
    assert not accepted(lambda x: (torch.fft.fft(x).conj_physical(), x.half()), truth, 4)
    assert not accepted(lambda x: (torch.fft.fft(x), x.half() + 0.1), truth, 4)


def test_empty_outputs_and_booleans() -> None:
    truth = reference(lambda x: (x[:, :0], x > 0), (torch.randn(4, 8),), output_axes=(0, 0))
    assert accepted(lambda x: (x[:, :0], x > 0), truth, 4)
    assert not accepted(lambda x: (x[:, :0], x >= 0), truth, 4)  # only zeros show it


def test_without_fp64_plain_runs_are_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    from evalmode.observe.wide import WideUnsupportedError
    from evalmode.optimization import reference as module

    def refuse(*_, **__):
        raise WideUnsupportedError("own::kernel")

    monkeypatch.setattr(module, "evaluate_wide", refuse)
    model = convolutional()
    truth = reference(model, (IMAGES,))
    assert not truth.exact
    found = verify({8: run_of(folded(model))}, truth)
    assert found.accepted, found.reason
    assert any("own::kernel" in note for note in found.notes)
    assert not accepted(like(model, eps=1e-3), truth, 8)


def test_slow_fp64_takes_fewer_samples_but_every_edge(cnn) -> None:
    model, _ = cnn
    parts = probe_samples((IMAGES,), (0,), ("x",))
    truth = reference_of(model, parts, (0,), seconds=0.0)
    kinds = truth.parts[0].kinds
    assert sum(kind in {"given", "random", "mixed", "shuffled"} for kind in kinds) == 4
    assert set(kinds) >= {kind for kind in parts[0].kinds if kind not in {"given", "random", "mixed", "shuffled"}}
    assert any("were evaluated" in note for note in truth.notes)
    assert not accepted(like(model, eps=1e-3), truth, 4)
    assert accepted(folded(model), truth, 4)


def test_a_plan_is_verified_at_the_sizes_of_callers(cnn) -> None:
    """A plan that runs executions of four, and forgets to cut the padding of the last one off."""
    model, truth = cnn

    def plan(x: Tensor, *, cuts: bool):
        rows = len(x)
        filled = torch.cat([x, x[: -rows % 4]]) if rows >= 4 else x.repeat(4, 1, 1, 1)[:4]
        outputs = torch.cat([model(part)[0] for part in filled.split(4)])
        return (outputs[:rows] if cuts else outputs[-rows:],)

    assert accepted(lambda x: plan(x, cuts=True), truth, 1, 6, 8)
    assert not accepted(lambda x: plan(x, cuts=False), truth, 6)


def test_the_given_model_and_the_streams_stay_as_they_are() -> None:
    model = convolutional()
    before = copy.deepcopy(model.state_dict())
    stream = torch.get_rng_state()
    truth = reference(model, (IMAGES,))
    verify({4: run_of(model)}, truth)
    assert torch.equal(stream, torch.get_rng_state())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_a_tie_in_one_output_pardons_no_other_one() -> None:
    class Dense(nn.Module):
        """Scores of many pixels, and the class of each: among so many, some are near a tie."""

        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Conv2d(1, 2, 3, padding=1)
            with torch.no_grad():
                self.scores.weight[1] = self.scores.weight[0] * (1 + 1e-6 * torch.randn(1, 3, 3))
                self.scores.bias[1] = self.scores.bias[0]

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            scores = self.scores(x)
            return scores, scores.argmax(1)

    torch.manual_seed(0)
    model = Dense().eval()
    truth = reference(model, (torch.randn(8, 1, 24, 24),), output_axes=(0, 0), sizes=(1, 2, 8))

    def wrong_for_large_inputs(x: Tensor):
        scores, chosen = model(x)
        large = x.abs().amax((1, 2, 3), keepdim=True) > 20
        return torch.where(large, 1.5 * scores, scores), torch.where(large[:, 0], 1 - chosen, chosen)

    assert accepted(model, truth, 4)
    assert not accepted(wrong_for_large_inputs, truth, 4)
