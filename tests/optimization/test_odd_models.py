"""Models that `optimize` can only refuse, or has to leave as they are: each is told what about them it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import evalmode
from evalmode.errors import BatchError, OptimizationError, UsageError

BATCH = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALMODE_CACHE", "off")


def optimized(model: nn.Module, batch: Any, **options: Any) -> Any:
    return evalmode.optimize(model, batch, backends=["eager"], budget_s=3, **options)


class Longest(nn.Module):
    """It also says how long the longest text is: every part of the batch holds one of those."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4)

    def forward(self, ids: Tensor) -> dict[str, Any]:
        lengths = (ids != 0).sum(1)
        return {"logits": self.embedding(ids).sum(1), "longest": int(lengths.max())}


class AllFinite(nn.Module):
    """What it says beside its answer is the same for all ordinary data."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"logits": x * 2, "longest": 9 if bool(x.isfinite().all()) else 0}


@pytest.mark.parametrize(
    ("model", "batch"),
    [(Longest(), torch.tensor([[1] * 9, [2] * 9, [3] * 4 + [0] * 5])), (AllFinite(), BATCH)],
    ids=["longest", "finite"],
)
def test_a_number_that_depends_on_the_data_is_named_with_the_way_out(model: nn.Module, batch: Tensor) -> None:
    with pytest.raises(OptimizationError) as caught:
        optimized(model, batch)
    assert "no tensor" in caught.value.got
    assert "at ['longest']" in caught.value.got
    assert "9, which" in str(caught.value.expected)
    assert "a row for each sample" in str(caught.value.fix)
    fast = optimized(model, batch, forward=lambda model, batch: model(batch)["logits"])
    with torch.no_grad():
        torch.testing.assert_close(fast(batch), model(batch)["logits"])


class Above(nn.Module):
    """Large batches get another answer."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 16 else x


@pytest.mark.parametrize("sizes", [(32,), (1, 32)])
def test_a_model_that_answers_batches_of_the_callers_size_otherwise_is_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(OptimizationError, match=r"beside it: output moves by .* in a batch of 32"):
        optimized(Above(), BATCH, batch_sizes=sizes)


def test_the_answer_to_a_sample_alone_stands_above_the_sizes_that_were_tried() -> None:
    fast = optimized(Above(), BATCH)
    many = BATCH.repeat(5, 1)
    assert torch.equal(fast(many), many)


def test_weights_that_are_not_there_yet_are_named() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.LazyLinear(3))
    with pytest.raises(UsageError, match=r"`1\.weight` is not initialised yet(.|\n)*run model\(batch\) once"):
        optimized(model, BATCH)
    assert isinstance(model[1], nn.LazyLinear)
    assert model[1].has_uninitialized_params()
    with pytest.raises(UsageError, match="meta device"):
        optimized(nn.Linear(8, 4, device="meta"), BATCH)


class Counting(nn.Module):
    """It counts its calls in a buffer and an attribute; with `copies` off it runs itself, for want of a copy."""

    def __init__(self, *, copies: bool) -> None:
        super().__init__()
        self.copies, self.calls = copies, 0
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x * 2

    def __deepcopy__(self, memo: dict[int, Any]) -> Counting:
        if not self.copies:
            raise TypeError("it holds a socket")
        other = Counting(copies=True)
        memo[id(self)] = other
        return other


@pytest.mark.parametrize("copies", [True, False])
def test_what_a_model_counts_is_put_back(copies: bool) -> None:
    model = Counting(copies=copies)
    mean = model.mean
    fast = optimized(model, BATCH)
    assert any("it holds a socket" in note for note in fast.certificate.optimization.notes) is not copies
    assert (model.calls, int(model.count), model.training) == (0, 0, True)
    assert model.mean is mean
    assert torch.equal(mean, torch.zeros(8))


class Adding(nn.Module):
    """Two inputs, of which one may be the same for all samples."""

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return x + shift


ARRAY = BATCH.numpy()


@pytest.mark.parametrize(
    ("model", "batch", "told"),
    [
        (Adding(), (BATCH, BATCH[:1]), r"x float32\[6, 8\], shift float32\[1, 8\](.|\n)*shared\.expand"),
        (Adding(), (BATCH[:1], BATCH), r"x float32\[1, 8\], shift float32\[6, 8\]"),
        (Adding(), {"x": BATCH, "shift": BATCH.to_sparse()}, r"sparse_coo at \['shift'\](.|\n)*to_dense\(\)"),
        (nn.Identity(), torch.nested.nested_tensor([BATCH[0], BATCH[1, :3]]), r"nested(.|\n)*to_padded_tensor"),
        (Adding(), {"x": BATCH, "shift": ARRAY}, r"\['shift'\] \(ndarray\)(.|\n)*torch\.from_numpy\(array\)"),
    ],
)
def test_inputs_that_hold_no_samples_or_no_numbers_are_named(model: nn.Module, batch: Any, told: str) -> None:
    with pytest.raises(BatchError, match=told):
        optimized(model, batch)


@pytest.mark.parametrize("array", [ARRAY[::-1], ARRAY.astype(">f4"), ARRAY[:, ::-2]], ids=["back", "swapped", "cut"])
def test_the_way_that_is_told_for_arrays_serves_for_all_of_them(array: Any) -> None:
    tensor = torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
    assert np.array_equal(optimized(nn.Identity(), tensor)(tensor).numpy(), array)


def test_a_mask_with_an_axis_of_its_own_is_answered_as_the_model_does() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return (x * mask[:, 0, :, None]).sum(1)

    x, mask = torch.randn(6, 5, 4), (torch.arange(5) < torch.arange(1, 7)[:, None])[:, None].float()
    fast = optimized(Masked(), {"x": x, "mask": mask})
    torch.testing.assert_close(fast(x=x[:4], mask=mask[:4]), Masked()(x[:4], mask[:4]))
    with pytest.raises(BatchError, match=r"x is float32\[6, 3, 4\]"):
        fast(x=x[:, :3], mask=mask[..., :3])
