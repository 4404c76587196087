from __future__ import annotations

import copy

import pytest
import torch
from tests.zoo.case import Case, map_tensors, run, seeded, take, tensors_of
from tests.zoo.clean import CLEAN, build
from tests.zoo.oracles import companion_effect, differing, draws, graph, nonfinite, state_of, unstable


@pytest.fixture(scope="module", params=CLEAN)
def case(request: pytest.FixtureRequest) -> Case:
    return build(request.param)


def in_double(case: Case) -> Case:
    widen = lambda tensor: tensor.double() if tensor.is_floating_point() else tensor
    model = copy.deepcopy(case.model).double()
    if hasattr(model, "config"):
        model.config._experts_implementation = "eager"  # grouped matrix products have no double precision
    return Case(case.name, model, map_tensors(case.batch, widen))


def test_there_are_enough_kinds_of_models() -> None:
    assert len(CLEAN) >= 18


def test_every_part_is_in_evaluation_mode(case: Case) -> None:
    assert not [path for path, module in case.model.named_modules() if module.training]


def test_nothing_is_drawn_kept_or_built(case: Case) -> None:
    run(case.model, case.batch)  # some models of transformers install hooks of their own on the first pass
    before = state_of(case.model)
    assert not draws(case, case.model)
    assert not unstable(case, case.model)
    assert not graph(case, case.model)
    run(case.model, case.batch)
    assert differing(before, state_of(case.model)) == []


def test_a_sample_depends_on_itself_alone_in_double_precision(case: Case) -> None:
    wide = in_double(case)
    assert companion_effect(wide, wide.model) < 1e-6  # some models cast to single precision inside
    assert companion_effect(case, case.model) < 1e-4


def test_outputs_are_finite_and_differ_between_samples(case: Case) -> None:
    broken = Case(case.name, torch.nn.Identity(), case.batch)
    assert not nonfinite(broken, case.model)
    outputs = run(case.model, case.batch)
    first, second = (tensors_of(take(outputs, [sample], case.samples)) for sample in (0, 1))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_statistics_of_batch_norms_have_seen_data(case: Case) -> None:
    norms = [m for m in case.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(norm.num_batches_tracked > 0 and bool((norm.running_var > 0).all()) for norm in norms)
    assert not any(torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean)) for norm in norms)


def test_building_is_repeatable_and_leaves_the_streams_alone() -> None:
    seeded(3)
    before = torch.get_rng_state()
    first, second, other = build("mlp"), build("mlp"), build("mlp", seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert differing(state_of(first.model), state_of(second.model)) == []
    assert differing(state_of(first.model), state_of(other.model)) != []
