from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._higher_order_ops import while_loop
from torch.utils.checkpoint import checkpoint

from evalmode.checking.runner import check
from evalmode.observe.wide import wide

BATCH = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, act: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self, x)


def branch(self: Any, x: torch.Tensor, inside: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return torch.cond(self.count < 1e9, inside, lambda y: y * 1, (x,))


def loop(self: Any, x: torch.Tensor, inside: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, inside(y)), (torch.tensor(0), x))[1]


def saving(self: Any, x: torch.Tensor, inside: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return checkpoint(inside, x, use_reentrant=False)


def each(self: Any, x: torch.Tensor, inside: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return torch.vmap(inside, randomness="different")(x)


@pytest.mark.parametrize("around", [branch, loop, saving, each])
@pytest.mark.parametrize("code", ["", "EM122"])
def test_what_happens_inside_is_seen(around: Callable[..., torch.Tensor], code: str) -> None:
    def act(self: Any, x: torch.Tensor) -> torch.Tensor:
        return around(self, x, (lambda y: F.dropout(y, 0.5)) if code else self.layer)

    assert [finding.code for finding in check(Net(act).eval(), BATCH).findings] == [code] * bool(code)


def test_a_write_in_a_branch_has_its_line() -> None:
    def act(self: Any, x: torch.Tensor) -> torch.Tensor:
        def inside(y: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return y * 2

        return branch(self, x, inside)

    (finding,) = check(Net(act).eval(), BATCH).findings
    assert (finding.code, finding.place.source) == ("EM152", "self.count.add_(1)")


def test_wide_evaluation_reaches_into_branches_and_loops() -> None:
    model = Net(lambda self, x: loop(self, branch(self, x, self.layer), self.layer)).eval()
    with torch.no_grad():
        with wide(), torch.compiler.set_stance("force_eager"):
            outputs = model(BATCH)
        expected = model.double()(BATCH.double())
    assert outputs.dtype == torch.float64
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
