from __future__ import annotations

import functools
import linecache

import pytest
import torch
from tests.zoo.case import Case, run
from tests.zoo.clean import build
from tests.zoo.defects import CONTROLS, KINDS, Planted, Refused, matches, plant
from tests.zoo.faults.fault import FAULTS, MARK
from tests.zoo.oracles import ORACLES, differing, state_of

# Small and quick, and between them every kind of defect finds a place.
HOSTS = ("cnn", "padded_sequences", "vit", "gru", "u_net")

small = functools.cache(build)


def first_host(kind: str, seed: int = 0) -> tuple[Case, Planted]:
    for name in HOSTS:
        case = small(name)
        planted = plant(case, kind, seed)
        if isinstance(planted, Planted):
            return case, planted
    raise AssertionError(f"{kind} finds no place in {', '.join(HOSTS)}")


def test_there_are_enough_kinds_of_defects() -> None:
    assert len(KINDS) >= 30
    assert len(CONTROLS) >= 5
    assert {fault.clause for fault in KINDS.values()} >= {
        "mode-complete",
        "no-randomness",
        "running-statistics",
        "no-state-change",
        "no-gradients",
        "deterministic",
        "batch-independent",
        "finite",
    }


@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_defect_is_at_work_and_its_place_is_true(kind: str) -> None:
    case, planted = first_host(kind)
    assert ORACLES[FAULTS[kind].effect](case, planted.model)
    assert all(MARK in linecache.getline(planted.file, line) for line in planted.lines)
    assert bool(planted.lines) or not planted.line_required
    owner = planted.module_path.split(".planted")[0] if ".planted" in planted.module_path else planted.module_path
    if not owner.startswith("planted"):
        planted.model.get_submodule(owner)
    assert bool(planted.codes) == (kind in KINDS)


@pytest.mark.parametrize(
    "kind", ["additive-noise", "dropout-hidden-in-list", "counter-in-a-buffer", "root-left-in-training"]
)
def test_the_clean_model_stays_clean(kind: str) -> None:
    case = small("cnn")
    before = state_of(case.model)
    planted = plant(case, kind)
    assert isinstance(planted, Planted)
    run(planted.model, case.batch)
    assert differing(before, state_of(case.model)) == []
    assert not any("forward" in vars(module) for module in case.model.modules())


@pytest.mark.parametrize("effect", sorted(set(ORACLES) - {"harmless"}))
@pytest.mark.parametrize("name", ["cnn", "padded_sequences", "vae"])
def test_no_oracle_sees_anything_in_a_clean_model(effect: str, name: str) -> None:
    case = small(name)
    assert not ORACLES[effect](case, case.model)


def test_the_same_seed_gives_the_same_place_and_others_reach_others() -> None:
    case = small("vit")
    places = [plant(case, "additive-noise", seed) for seed in (0, 0, 1, 2, 3, 4, 5)]
    paths = [place.module_path for place in places if isinstance(place, Planted)]
    assert paths[0] == paths[1]
    assert len(set(paths)) > 2
    assert len({path.count(".") for path in paths}) > 1


def test_a_kind_that_suits_no_module_is_refused_with_the_reason() -> None:
    refused = plant(small("gru"), "own-batch-norm-poisoned")
    assert isinstance(refused, Refused)
    assert "no module of gru suits it" in refused.reason


def test_a_place_matches_by_module_and_line() -> None:
    _, planted = first_host("dropout-built-in-forward")
    line = next(iter(planted.lines))
    built = ".".join(part for part in (planted.module_path, "<Dropout built in forward>") if part)
    assert matches(planted, planted.module_path, planted.file, line)
    assert matches(planted, built, planted.file, line)
    assert not matches(planted, planted.module_path, planted.file, line + 1)
    assert not matches(planted, planted.module_path + ".other", planted.file, line)
    assert not matches(planted, planted.module_path, "elsewhere.py", line)


def test_planting_leaves_the_grad_mode_and_the_streams_alone() -> None:
    case = small("cnn")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for kind in ("gradients-left-on", "gradients-leak-out-of-a-generator", "reseeded-noise"):
        assert isinstance(plant(case, kind), Planted)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled()
