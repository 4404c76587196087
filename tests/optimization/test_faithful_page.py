from __future__ import annotations

from typing import Any

import pytest
import torch

from evalmode.checking.catalog import page_for
from evalmode.clause import CLAUSES
from evalmode.optimization.probes import probe_samples
from evalmode.optimization.reference import reference_of
from evalmode.optimization.verification import verify


def test_the_clause_has_a_page() -> None:
    page = page_for("faithful")
    assert page is not None
    assert page.title == f"faithful: {CLAUSES['faithful'].promise}"


@pytest.mark.parametrize(("heading", "accepted"), [("Example", False), ("Use instead", True)])
def test_its_example_is_rejected_and_what_to_use_instead_is_not(heading: str, accepted: bool) -> None:
    page = page_for("faithful")
    assert page is not None
    scope: dict[str, Any] = {}
    exec(compile(page.code_block(heading), "<page>", "exec"), scope)
    model, candidate = scope["model"], scope["candidate"]
    truth = reference_of(lambda x: (model(x),), probe_samples((scope["batch"],), (0,), ("x",)), (0,))
    with torch.no_grad():
        found = verify({4: lambda chunks: [(candidate(chunk[0]),) for chunk in chunks]}, truth)
    assert found.accepted is accepted
