"""An encoder's zeros at padded positions are part of its answer, in whatever way it runs."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import evalmode
from evalmode.observe.tree import same_bits
from evalmode.optimization.encoder_padding import each_sample_alone, write_padding_out
from evalmode.optimization.exporting import program_of
from evalmode.optimization.reference import evaluate_wide

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),  # torch's encoder uses the old layout
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]
LENGTH, WIDTH = 6, 16


class Masked(nn.Module):
    """An encoder under a padding mask, which is given as `kind` says."""

    def __init__(self, kind: str = "bool", *, norm: bool = False, heads: int = 4, **encoder: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, heads, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH) if norm else None, **encoder)
        self.kind = kind

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        padded = mask if self.kind == "bool" else mask == 0
        if self.kind == "float":
            padded = torch.zeros(mask.shape).masked_fill(padded, float("-inf"))
        answer: Tensor = self.encoder(x, src_key_padding_mask=padded)
        return answer


def mask_of(kind: str, lengths: list[int]) -> Tensor:
    padded = torch.arange(LENGTH)[None, :] >= torch.tensor(lengths)[:, None]
    return padded if kind == "bool" else (~padded).long()


def plainly(model: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model.eval()(*inputs)
    return answer


@pytest.mark.parametrize(("kind", "norm"), [("bool", False), ("bool", True), ("whole", False), ("float", True)])
def test_the_graph_gives_what_eager_evaluation_gives_padded_rows_too(kind: str, norm: bool) -> None:
    model = Masked(kind, norm=norm)
    batch = (torch.randn(4, LENGTH, WIDTH), mask_of(kind, [6, 4, 2, 1]))
    exported = program_of(model, batch)
    program = exported.program
    assert program.exported is not None and program.dynamic, program.export_error
    assert program.input_names == ("x", "mask")
    for lengths in ([6, 4, 2, 1], [6] * 4, [1], [3, 3, 5, 5, 6, 2, 1]):
        x, mask = torch.randn(len(lengths), LENGTH, WIDTH), mask_of(kind, lengths)
        expected = plainly(model, x, mask)
        (got,) = program.exported.module(check_guards=False)(x, mask)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)
        padded = torch.arange(LENGTH)[None, :] >= torch.tensor(lengths)[:, None]
        if not norm:  # a norm behind the encoder maps zeros to its bias, which is zero as it is made
            assert not got[padded].any()
        (wide,) = evaluate_wide(program.module, (x, mask))
        torch.testing.assert_close(wide, expected.double(), rtol=1e-5, atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH), min_size=1, max_size=5))
def test_each_sample_gets_what_eager_gives_it_alone(rows: list[list[bool]]) -> None:
    """Padding anywhere: beside others, eager evaluation packs all samples or none."""
    padded = torch.tensor(rows)
    padded[:, 0] &= ~padded.all(1)  # PyTorch fails, or gives NaN, on a sample that is padding throughout
    model = Masked().eval()
    written = write_padding_out(copy.deepcopy(model))
    x = torch.randn(len(rows), LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        alone = torch.cat([model(x[i : i + 1], padded[i : i + 1]) for i in range(len(rows))])
        with each_sample_alone():
            got = written(x, padded)
        assert same_bits(written(x, padded), model(x, padded))
    torch.testing.assert_close(got, alone, rtol=1e-5, atol=2e-6)


def test_left_padding_has_no_zeros_in_eager_and_none_in_the_graph() -> None:
    model = Masked()
    x, mask = torch.randn(3, LENGTH, WIDTH), mask_of("bool", [5, 4, 2]).flip(1)
    program = program_of(model, (x, mask)).program
    assert program.exported is not None, program.export_error
    (got,) = program.exported.module(check_guards=False)(x, mask)
    expected = plainly(model, x, mask)
    assert expected[mask].abs().sum() > 1
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("why", ["odd heads", "asked not to", "a mask of scores"])
def test_an_encoder_that_never_packs_is_as_it_was(why: str) -> None:
    class Scored(Masked):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            scores = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
            answer: Tensor = self.encoder(x, mask=scores, src_key_padding_mask=mask, is_causal=False)
            return answer

    model: nn.Module = Masked(heads=1) if why == "odd heads" else Masked(enable_nested_tensor=False)
    if why == "a mask of scores":
        model = Scored()
    x, mask = torch.randn(3, LENGTH, WIDTH), mask_of("bool", [5, 4, 2])
    program = program_of(model, (x, mask)).program
    assert program.exported is not None, program.export_error
    (got,) = program.exported.module(check_guards=False)(x, mask)
    expected = plainly(model, x, mask)
    assert expected[mask].abs().sum() > 1
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)


def test_the_users_model_is_not_touched() -> None:
    model = Masked()
    program_of(model, (torch.randn(2, LENGTH, WIDTH), mask_of("bool", [5, 4])))
    assert "forward" not in vars(model.encoder)
    assert model.training


def test_a_forward_of_a_subclass_is_left_alone() -> None:
    class Own(nn.TransformerEncoder):
        def forward(self, src: Tensor, *args: object, **named: object) -> Tensor:
            return src * 2

    encoder = Own(nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True), 1).eval()
    write_padding_out(encoder)
    assert torch.equal(encoder(torch.ones(1, 2, WIDTH)), torch.full((1, 2, WIDTH), 2.0))


@pytest.mark.slow
def test_optimize_takes_the_graph_and_keeps_the_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALMODE_CACHE", "off")
    pytest.importorskip("onnxruntime")
    model = Masked()
    x, mask = torch.randn(4, LENGTH, WIDTH), mask_of("bool", [6, 4, 2, 1])
    fast = evalmode.optimize(model, (x, mask), backends=["onnxruntime"], budget_s=4)
    record = fast.certificate.optimization  # type: ignore[union-attr]
    tried = next(plan for plan in record.plans if plan.backend == "onnxruntime")  # type: ignore[union-attr]
    assert tried.outcome in {"chosen", "verified"}, tried.reason
    got = fast(x, mask)
    torch.testing.assert_close(got, plainly(model, x, mask), rtol=1e-5, atol=2e-6)
    for position in range(4):
        assert same_bits(fast(x[position : position + 1], mask[position : position + 1])[0], got[position])
