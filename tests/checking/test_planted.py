from __future__ import annotations

import random

import pytest
from tests.checking.clean_models import make
from tests.checking.planted import PLANTED, BuiltDropout, HiddenDropout, Planted, Tiny, ZeroVariance, plant, sites

from evalmode.checking.runner import check


def expected_module(kind: type[Planted], path: str) -> str:
    return path + {HiddenDropout: ".layers[0]", BuiltDropout: ".<Dropout built in forward>"}.get(kind, "")


@pytest.mark.parametrize("name", ["cnn", "bert", "lstm"])
@pytest.mark.parametrize("kind", PLANTED, ids=lambda kind: kind.__name__)
def test_a_planted_defect_is_found_once_with_its_code_module_and_line(kind: type[Planted], name: str) -> None:
    if kind is ZeroVariance and name != "cnn":
        pytest.skip("wraps the input of a model that takes images")
    if kind is Tiny and name == "bert":
        pytest.skip("attention and layer norm cancel a constant shift, so nothing depends")
    model, batch = make(name)
    chooser = random.Random(f"{kind.__name__} {name}")
    path = "features.0" if kind is ZeroVariance else chooser.choice(sites(model, batch))
    plant(model, path, kind)
    report = check(model, batch)
    found = [(finding.code, finding.clause, finding.place.module) for finding in report.findings]
    assert found == [(kind.code, kind.clause, expected_module(kind, path))]
    assert not report.ok
    if kind is not HiddenDropout:
        assert report.findings[0].place.line == kind.line()
        assert report.findings[0].place.source.endswith("# here")
        assert report.findings[0].place.file == __file__.replace("test_planted", "planted")
    assert report.findings[0].fix
    assert report.findings[0].seen
