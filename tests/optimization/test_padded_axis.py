"""A plan answers shorter inputs where fp64 shows that padding takes no part, and refuses them where it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.optimization.gate_models import Block
from tests.zoo.transformers_models import bert, llama
from torch import Tensor, nn

import evalmode
from evalmode.errors import BatchError
from evalmode.observe.fingerprint import fingerprint
from evalmode.observe.tree import same_bits
from evalmode.optimization import exporting
from evalmode.optimization.padded_axis import padded_axis
from evalmode.optimization.subject import Subject
from evalmode.optimization.tracing import Stopped
from evalmode.predictor.plan import AxisPadding, PaddedAxis

SAMPLES, LENGTH, WORDS = 4, 8, 30


def found(model: nn.Module, batch: Any, seconds: float = 60) -> tuple[PaddedAxis | None, str]:
    with pytest.MonkeyPatch.context() as patch:  # a graph is not what is tested here, and takes most of the time
        patch.setattr(exporting, "exported_graph", lambda *args, **options: Stopped("left out"))
        exported = exporting.program_of(model, batch)
    subject = Subject(exported, (SAMPLES,), fingerprint(model))
    axis, notes = padded_axis(subject, seconds)
    return axis, "; ".join(notes)


def tokens(*, before: bool = False, pad: int = 0) -> dict[str, Tensor]:
    mask = (torch.arange(LENGTH) < torch.tensor([8, 5, 2, 7])[:, None]).long()
    ids = torch.randint(1, WORDS, (SAMPLES, LENGTH)).masked_fill(mask == 0, pad)
    return {"ids": ids.flip(1) if before else ids, "attention_mask": mask.flip(1) if before else mask}


class Attends(nn.Module):
    """Attention under a mask; absolute positions where asked, one answer a sample where asked."""

    def __init__(self, *, positions: bool = False, pooled: bool = False, blind: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block, self.blind, self.pooled = Block(vocabulary=WORDS), blind, pooled
        self.table = nn.Embedding(LENGTH, 24) if positions else None

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        (hidden,) = self.block(ids, None if self.blind else attention_mask)
        if self.table is not None:
            hidden = hidden + self.table(torch.arange(ids.shape[1]))
        weight = attention_mask[..., None].to(hidden.dtype)
        answer: Tensor = (hidden * weight).sum(1) / weight.sum(1) if self.pooled else hidden
        return answer


class Recurrent(nn.Module):
    def __init__(self, *, both: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.LSTM(4, 5, batch_first=True, bidirectional=both)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x * mask[..., None].to(x.dtype))[0]
        return outputs


def test_attention_under_its_mask_is_filled_up() -> None:
    axis, note = found(Attends(), tokens(pad=3))
    assert axis == PaddedAxis(1, LENGTH, (AxisPadding(0, 1, 3), AxisPadding(1, 1, 0)), (AxisPadding(0, 1),))
    assert (
        note == "shorter inputs are filled up under attention_mask: padding is inert in fp64, tried at lengths 1, 4, 7"
    )
    pooled, _ = found(Attends(pooled=True), tokens())
    assert pooled is not None and pooled.outputs == ()


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_masks_of_any_dtype_in_a_mapping_or_a_tuple(dtype: torch.dtype, as_tuple: bool) -> None:
    batch = tokens()
    batch["attention_mask"] = batch["attention_mask"].to(dtype)
    axis, _ = found(Attends(pooled=True), tuple(batch.values()) if as_tuple else batch)
    assert axis is not None and axis.mask == 1
    assert isinstance(axis.inputs[1].value, {torch.bool: bool, torch.int32: int}.get(dtype, float))


def test_a_mask_that_says_padding_by_one_is_filled_with_ones() -> None:
    class Padding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Attends()

        def forward(self, ids: Tensor, key_padding_mask: Tensor) -> Tensor:
            answer: Tensor = self.inner(ids, ~key_padding_mask)
            return answer

    batch = tokens()
    axis, note = found(Padding(), (batch["ids"], batch["attention_mask"] == 0))
    assert axis is not None, note
    assert axis.inputs[1].value is True


@pytest.mark.parametrize("lengths", [[2, 1, 2, 1], [8, 1, 1, 1]])
def test_mostly_padding_is_still_padding(lengths: list[int]) -> None:
    mask = (torch.arange(LENGTH) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, WORDS, (SAMPLES, LENGTH)) * mask
    axis, note = found(Attends(), {"ids": ids, "attention_mask": mask})
    assert axis is not None, note
    assert (axis.inputs[1].value, axis.before) == (0, False)


def test_left_padding_stays_on_the_left_where_positions_are_relative() -> None:
    axis, note = found(Attends(), tokens(before=True))
    assert axis is not None, note
    assert axis.before
    axis, note = found(Attends(positions=True), tokens(before=True))
    assert axis is None
    assert "inputs of other lengths are refused: under attention_mask, output 0 moves by" in note
    axis, _ = found(Attends(positions=True), tokens())
    assert axis is not None and not axis.before


def test_a_bidirectional_lstm_is_not_filled_up_and_a_forward_one_is() -> None:
    batch = (torch.randn(SAMPLES, LENGTH, 4), tokens()["attention_mask"])
    axis, note = found(Recurrent(both=True), batch)
    assert axis is None
    assert "moves by" in note
    axis, note = found(Recurrent(both=False), batch)
    assert axis is not None, note


def test_attention_that_ignores_its_mask_is_not_filled_up() -> None:
    axis, note = found(Attends(blind=True), tokens())
    assert axis is None
    assert "moves by" in note


@pytest.mark.parametrize("kind", ["another name", "fractions", "three axes", "one position"])
def test_only_a_declared_mask_counts(kind: str) -> None:
    class Weighs(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x * mask.to(x.dtype).reshape(mask.shape[0], -1)[:, : x.shape[1]]

    class Named(nn.Module):
        def forward(self, x: Tensor, keep: Tensor) -> Tensor:
            return x * keep

    x, mask = torch.randn(3, LENGTH), torch.ones(3, LENGTH)
    given = {
        "another name": (Named(), (x, mask)),
        "fractions": (Weighs(), (x, torch.full_like(mask, 0.5))),
        "three axes": (Weighs(), (x, mask[:, None])),
        "one position": (Weighs(), (x[:, :1], mask[:, :1])),
    }
    assert found(*given[kind]) == (None, "")


def test_without_time_for_the_test_lengths_are_exact() -> None:
    axis, note = found(Attends(), tokens(), seconds=1e-9)
    assert axis is None
    assert note == "inputs of other lengths are refused: there was no time to test padding under attention_mask"


def plainly(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model.eval()(**batch)
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("before", [False, True])
def test_optimize_answers_every_shorter_length_as_the_model_does(
    before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("EVALMODE_CACHE", "off")
    model, whole = Attends(), tokens(before=before)
    fast = evalmode.optimize(model, whole, backends=["onnxruntime"], budget_s=3)
    assert str(fast.signature) == f"mapping(ids: int64[*, <={LENGTH}], attention_mask: int64[*, <={LENGTH}])"
    for length in range(1, LENGTH + 1):
        batch = {"ids": torch.randint(1, WORDS, (6, length)), "attention_mask": torch.ones(6, length, dtype=torch.long)}
        if length > 1:
            batch["attention_mask"][1::2, 0 if before else -1] = 0
        got, expected = fast(**batch), plainly(model, batch)
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        for position in (0, 5):  # the same bits beside other samples
            alone = fast(**{name: tensor[position : position + 1] for name, tensor in batch.items()})
            assert same_bits(alone[0], got[position])
    for length in (0, LENGTH + 1):
        shape = (2, length)
        with pytest.raises(BatchError, match=r"at least one position|at most 8"):
            fast(ids=torch.ones(shape, dtype=torch.long), attention_mask=torch.ones(shape, dtype=torch.long))
    assert fast(ids=torch.ones(0, 3, dtype=torch.long), attention_mask=torch.ones(0, 3, dtype=torch.long)).shape == (
        0,
        3,
        24,
    )
    if fast.executors[0].payload() is not None:
        again = evalmode.load(fast.save(tmp_path / "model.evalmode"))
        assert again.plan.padded == fast.plan.padded
        short = {"ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
        assert same_bits(again(**short), fast(**short))


def test_other_lengths_are_refused_with_the_shape_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALMODE_CACHE", "off")
    fast = evalmode.optimize(Attends(blind=True), tokens(), backends=["eager"], budget_s=3)
    assert any("inputs of other lengths are refused" in note for note in fast.certificate.optimization.notes)  # type: ignore[union-attr]
    short = torch.ones(2, 5, dtype=torch.long)
    with pytest.raises(BatchError, match=r"int64\[2, 5\](.|\n)*int64\[any, 8\]"):
        fast(ids=short, attention_mask=short)


@pytest.mark.slow
def test_bert_and_llama_of_transformers() -> None:
    for make, before, expected in ((bert, False, True), (bert, True, False), (llama, True, True)):
        torch.manual_seed(0)
        model, batch = make(SAMPLES)
        length = batch["input_ids"].shape[1]
        mask = (torch.arange(length) < torch.tensor([length, 5, 2, 7])[:, None]).long()
        ids = torch.randint(3, 20, (SAMPLES, length)) * mask
        given = {"input_ids": ids, "attention_mask": mask}
        if before:
            given = {name: tensor.flip(1) for name, tensor in given.items()}
        model.config.use_cache = False
        axis, note = found(model.eval(), given)
        assert (axis is not None) == expected, note
        if axis is not None:
            assert axis.before == before
