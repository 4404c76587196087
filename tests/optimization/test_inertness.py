from __future__ import annotations

import pytest
import torch
from tests.optimization.gate_models import Block
from torch import Tensor, nn

from evalmode.errors import UsageError
from evalmode.optimization.inertness import padding_is_inert

NAMES = ("input_ids", "attention_mask")


def inputs(padding: int = 0) -> tuple[Tensor, Tensor]:
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[1, 5:] = 0
    ids = torch.randint(1, 30, (3, 8), generator=torch.Generator().manual_seed(1)).masked_fill(mask == 0, padding)
    return ids, mask


class Pooled(nn.Module):
    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.block, self.masked = Block(vocabulary=30), masked

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        (hidden,) = self.block(ids, mask if self.masked else None)
        weight = mask[..., None].to(hidden.dtype)
        return ((hidden * weight).sum(1) / weight.sum(1),)


@pytest.mark.parametrize("padding", [0, 7])
def test_attention_under_its_mask_does_not_see_padding(padding: int) -> None:
    torch.manual_seed(0)
    found = padding_is_inert(Block(vocabulary=30).eval(), inputs(padding), NAMES, (0, 0), mask="attention_mask")
    assert found.inert, found.reason
    assert [(item.name, item.axis, item.value) for item in found.inputs] == [
        ("input_ids", 1, padding),
        ("attention_mask", 1, 0),
    ]
    assert found.outputs == ((0, 1),)
    assert not found.before
    assert found.lengths == (1, 4, 7)
    assert found.gap < 1e-12


def test_pooled_outputs_are_not_cut() -> None:
    torch.manual_seed(0)
    found = padding_is_inert(Pooled(masked=True).eval(), inputs(), NAMES, (0, 0), mask="attention_mask")
    assert found.inert
    assert found.outputs == ()


def test_attention_without_its_mask_sees_padding() -> None:
    torch.manual_seed(0)
    found = padding_is_inert(Pooled(masked=False).eval(), inputs(), NAMES, (0, 0), mask="attention_mask")
    assert not found.inert
    assert "moves by" in found.reason


def recurrent(*, bidirectional: bool):
    torch.manual_seed(0)
    layer = nn.LSTM(4, 5, batch_first=True, bidirectional=bidirectional).eval()
    return lambda x, mask: (layer(x * mask[..., None].to(x.dtype))[0],)


def test_a_bidirectional_lstm_moves_where_a_forward_one_does_not() -> None:
    values = (torch.randn(3, 8, 4), inputs()[1])
    kept, moved = (
        padding_is_inert(recurrent(bidirectional=both), values, ("x", "mask"), (0, 0), mask="mask")
        for both in (False, True)
    )
    assert kept.inert, kept.reason
    assert not moved.inert


def test_padding_on_the_left_is_seen_and_kept_there() -> None:
    ids, mask = (tensor.flip(1) for tensor in inputs())
    torch.manual_seed(0)
    found = padding_is_inert(Block(vocabulary=30).eval(), (ids, mask), NAMES, (0, 0), mask="attention_mask")
    assert found.inert
    assert found.before


def test_a_mask_that_says_padding_by_one() -> None:
    torch.manual_seed(0)
    block = Block(vocabulary=30).eval()
    ids, mask = inputs()
    found = padding_is_inert(
        lambda ids, padding: block(ids, ~padding),
        (ids, mask == 0),
        ("ids", "padding_mask"),
        (0, 0),
        mask="padding_mask",
    )
    assert found.inert, found.reason
    assert found.inputs[1].value == 1


def test_a_model_that_knows_one_length_alone_is_undecided() -> None:
    def fixed(x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return (x.view(len(x), 32),)

    found = padding_is_inert(fixed, (torch.randn(2, 8, 4), torch.ones(2, 8)), ("x", "mask"), (0, 0), mask="mask")
    assert not found.inert
    assert found.reason.startswith("undecided")


@pytest.mark.parametrize("mask", [torch.ones(3), torch.rand(3, 8), torch.ones(3, 8, 8)])
def test_something_else_than_a_mask_is_refused(mask: Tensor) -> None:
    with pytest.raises(UsageError, match="zeros and ones of shape"):
        padding_is_inert(lambda *x: x, (torch.randn(3, 8), mask), ("x", "mask"), (0, 0), mask="mask")


def test_an_unknown_mask_is_refused() -> None:
    with pytest.raises(UsageError, match="one of x"):
        padding_is_inert(lambda x: (x,), (torch.randn(3, 8),), ("x",), (0,), mask="padding")
