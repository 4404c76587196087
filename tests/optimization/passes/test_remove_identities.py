from __future__ import annotations

import pytest
import torch
from torch import nn

from evalmode.observe.tree import same_bits

NAME = "remove-identities"
SPECIAL = torch.tensor([[0.0, -0.0, float("nan")], [float("inf"), -1.5, 1e-42]])


class Written(nn.Module):
    def __init__(self, forward) -> None:
        super().__init__()
        self._forward = forward
        self.register_buffer("ones", torch.ones(3))

    def forward(self, x):
        return self._forward(self, x)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: (x.cos() * 1).tanh(),
        lambda m, x: (1.0 * x.cos()).tanh(),
        lambda m, x: (x.cos() * m.ones).tanh(),
        lambda m, x: (x.cos() / 1).tanh(),
        lambda m, x: (x.cos() - 0.0).tanh(),
        lambda m, x: (x.cos() - 0).tanh(),
        lambda m, x: (x.cos() + -0.0).tanh(),
        lambda m, x: x.cos().float().to(x.dtype).type_as(x).tanh(),
        lambda m, x: x.cos().contiguous().clone().detach().tanh(),
        lambda m, x: x.cos().reshape(x.shape).view(x.shape).expand(x.shape).tanh(),
        lambda m, x: x.cos()[:].tanh(),
        lambda m, x: x.cos().permute(0, 1).transpose(1, -1).tanh(),
    ],
)
def test_what_changes_no_bit_is_removed(rewrite, forward):
    done = rewrite(NAME, Written(forward), SPECIAL)
    assert done.result.changed >= 1 or len(done.operators) == 2  # tracing may have dropped it already
    assert len(done.operators) == 2
    assert same_bits(done.got, done.expected)


@pytest.mark.parametrize(
    ("forward", "kept"),
    [
        (lambda m, x: (x + 0.0).tanh(), "aten.add.Tensor"),
        (lambda m, x: (x - -0.0).tanh(), "aten.sub.Tensor"),
        (lambda m, x: (0.0 - x).tanh(), "sub"),
        (lambda m, x: (1 / x).tanh(), "reciprocal"),
        (lambda m, x: (x * torch.ones(2, 1, 1)).tanh(), "aten.mul.Tensor"),
        (lambda m, x: (x * torch.ones(3, dtype=torch.float64)).tanh(), "aten.mul.Tensor"),
        (lambda m, x: x.t().contiguous().tanh(), "contiguous"),
        (lambda m, x: x.double().tanh(), "to"),
        (lambda m, x: x[1:].tanh(), "slice"),
        (lambda m, x: x[:, ::2].tanh(), "slice"),
        (lambda m, x: (x * -1).tanh(), "aten.mul.Tensor"),
        (lambda m, x: torch.div(x, 1, rounding_mode="floor").tanh(), "div"),
        (lambda m, x: torch.sub(x, 0.0, alpha=-1).tanh(), "sub"),
    ],
)
def test_what_might_change_a_bit_stays(rewrite, forward, kept):
    done = rewrite(NAME, Written(forward), SPECIAL)
    assert any(kept in name for name in done.operators)
    assert same_bits(done.got, done.expected)


def test_a_sum_with_zero_of_integers_is_removed(rewrite):
    done = rewrite(NAME, Written(lambda m, x: (x + 0 - 0) * 2), torch.arange(3))
    assert done.result.changed == 2
    assert done.got.tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: (x.clone(), x + 1),
        lambda m, x: (x * 1, x + 1),
        lambda m, x: (m.ones * 1, x + 1),
        lambda m, x: ((y := x + 1), y * 1),
        lambda m, x: (x.clone().view(-1), x + 1),
    ],
    ids=["a copied input", "an input", "a constant", "the same output twice", "a view of a copied input"],
)
def test_an_output_never_comes_to_share_memory(rewrite, forward):
    model = Written(forward)
    done = rewrite(NAME, model, SPECIAL)
    first, second = done.graph(SPECIAL)
    assert first.untyped_storage().data_ptr() not in (
        SPECIAL.untyped_storage().data_ptr(),
        model.ones.untyped_storage().data_ptr(),
        second.untyped_storage().data_ptr(),
    )
