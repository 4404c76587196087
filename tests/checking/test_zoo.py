"""`check` on clean models of many kinds, on controls that only look like defects, and on planted defects."""

from __future__ import annotations

import functools
import random

import pytest
import torch
from tests.zoo.case import Case
from tests.zoo.clean import CLEAN, build
from tests.zoo.defects import CONTROLS, KINDS, Planted, matches, plant
from tests.zoo.oracles import differing, state_of

import evalmode
from evalmode.checking.catalog import CLAUSE_FILES
from evalmode.finding import Severity

HOSTS = ("cnn", "padded_sequences", "vit", "gru", "u_net")

NOT_YET: dict[str, str] = {}  # kinds that are not found yet, and why

small = functools.cache(build)


def on_some_host(kind: str) -> tuple[Case, Planted]:
    """The kind planted into the first model that it suits, in an order of its own."""
    for name in random.Random(kind).sample(HOSTS, len(HOSTS)):
        planted = plant(small(name), kind)
        if isinstance(planted, Planted):
            return small(name), planted
    raise AssertionError(f"{kind} finds no place")


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_model_has_no_finding_and_is_left_as_it_was(name: str) -> None:
    case = small(name)
    before, stream = state_of(case.model), torch.get_rng_state()
    report = evalmode.check(case.model, case.batch, **case.options)
    assert [str(finding) for finding in report.findings if finding.severity is Severity.ERROR] == []
    assert report.ok
    assert differing(before, state_of(case.model)) == []
    assert torch.equal(stream, torch.get_rng_state())


@pytest.mark.parametrize("kind", CONTROLS)
def test_what_only_looks_like_a_defect_has_no_finding(kind: str) -> None:
    case, planted = on_some_host(kind)
    report = evalmode.check(planted.model, case.batch)
    assert [str(finding) for finding in report.findings if finding.severity is Severity.ERROR] == []


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.xfail(reason=NOT_YET[kind], raises=AssertionError))
        if kind in NOT_YET
        else kind
        for kind, fault in KINDS.items()
        if fault.clause in CLAUSE_FILES
    ],
)
def test_a_planted_defect_is_found_at_its_place_and_the_model_left_as_it_was(kind: str) -> None:
    case, planted = on_some_host(kind)
    before = state_of(planted.model)
    findings = [item for item in evalmode.check(planted.model, case.batch).findings if item.severity is Severity.ERROR]
    right = [item for item in findings if item.code in planted.codes]
    assert right, f"{kind}: wanted {sorted(planted.codes)} at {planted.module_path}, got {findings}"
    places = [item.place for item in right]
    assert any(matches(planted, place.module, place.file, place.line) for place in places), places
    assert {item.code for item in findings} <= planted.codes | planted.also
    assert differing(before, state_of(planted.model)) == []
