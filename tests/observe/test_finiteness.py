from __future__ import annotations

import torch
from torch import nn

from evalmode.observe.finiteness import first_non_finite


def operator(run: object) -> str | None:
    found = first_non_finite(run, None)  # type: ignore[arg-type]
    return found.operator.removeprefix("aten.").partition(".")[0] if found is not None else None


X = torch.tensor([0.0, 1.0, 4.0])


def test_a_loss_that_is_thrown_away_is_not_blamed() -> None:
    def run() -> torch.Tensor:
        kept = torch.where(X > 0, X.log(), X)
        return kept / (X - X)

    assert operator(run) == "div"
    assert operator(lambda: torch.where(X > 0, X.log(), X)) is None


def test_an_infinity_behind_a_nan_is_blamed_unless_it_was_asked_for() -> None:
    assert operator(lambda: X.log() - X.log()) == "log"
    masked = lambda: X.masked_fill(X > -1, float("-inf")).softmax(0)
    assert operator(masked) == "_softmax"


def test_a_write_in_place_through_a_view_is_followed() -> None:
    def run() -> torch.Tensor:
        y = X.clone()
        y[1:].sub_(5).sqrt_()
        return y * 2

    assert operator(run) == "sqrt_"


def test_the_module_is_named() -> None:
    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sub(2).sqrt()

    model = nn.Sequential(nn.Identity(), Root())
    found = first_non_finite(lambda: model(X), model)
    assert found is not None
    assert found.place.module == "1"
    assert "sqrt" in found.place.source
