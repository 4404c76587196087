from __future__ import annotations

import pytest
import torch
from tests.checking.clean_models import CLEAN, make

from evalmode.checking.runner import check
from evalmode.clause import Verdict
from evalmode.observe.fingerprint import fingerprint


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_model_keeps_every_clause_and_is_left_alone(name: str) -> None:
    model, batch = make(name)
    before = fingerprint(model)
    hooks = {path: len(module._forward_hooks) for path, module in model.named_modules()}
    report = check(model, batch)
    assert report.findings == ()
    assert {result.clause: result.verdict for result in report.certificate.clauses if result.verdict != "kept"} == {}
    assert all(result.probes > 0 for result in report.certificate.clauses)
    assert fingerprint(model) == before
    assert not any(module.training for module in model.modules())
    assert hooks == {path: len(module._forward_hooks) for path, module in model.named_modules()}


def test_rounding_between_batch_sizes_is_measured_and_is_no_error() -> None:
    model, batch = make("transformer")
    (result,) = check(model, batch, clauses=["batch-independent"]).certificate.clauses
    assert result.verdict is Verdict.KEPT
    classes = result.measured["size classes"]
    assert sorted(size for members in classes for size in members) == [1, 2, 3, 4, 5, 8, 16]
    with torch.no_grad():
        outputs = {size: model(torch.cat([batch, batch])[:size])[:1] for size in (1, 2, 3, 4, 5, 8, 16)}
    for members in classes:
        assert all(torch.equal(outputs[members[0]], outputs[size]) for size in members)
