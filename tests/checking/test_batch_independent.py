"""What `batch-independent` and `finite` say about models made for one trait each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from evalmode.certificate import ClauseResult
from evalmode.checking.batch_probes import Probes
from evalmode.checking.batch_sizes import size_classes, sizes_to_try
from evalmode.checking.mending import mended
from evalmode.checking.runner import CheckReport, check
from evalmode.checking.subject import Subject
from evalmode.clause import Verdict

BATCH = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
CLAUSES = ["mode-complete", "batch-independent"]


def result(report: CheckReport, clause: str = "batch-independent") -> ClauseResult:
    return next(item for item in report.certificate.clauses if item.clause == clause)


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.abs().amax() + 1)


class Centred(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


class HiddenNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = [nn.BatchNorm1d(6)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norms[0](x)


@pytest.mark.parametrize("first", [HiddenNorm, Scaled, nn.Identity])
def test_causes_in_different_modules_are_found_in_one_check(first: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), first(), nn.Linear(6, 6), Centred(), nn.Linear(6, 3)).eval()
    found = check(model, BATCH, clauses=CLAUSES).findings
    expected = {HiddenNorm: [("EM103", "1.norms[0]")], Scaled: [("EM171", "1")], nn.Identity: []}[first]
    assert [(finding.code, finding.place.module) for finding in found] == [*expected, ("EM171", "3")]
    assert "forward" not in model[1].__dict__


def test_a_mended_model_sees_one_sample_at_a_time_and_is_put_back() -> None:
    model = nn.Sequential(Centred(), nn.BatchNorm1d(4))
    with torch.no_grad():
        with mended(model, ["0"]):
            outputs = model(BATCH)
        assert torch.allclose(outputs, torch.zeros(8, 4))
        assert model[1].training
        assert torch.equal(model[0](BATCH), BATCH - BATCH.mean(0))


class Detector(nn.Module):
    """Gives a dict of as many boxes as score above a threshold for each image of a list."""

    def __init__(self, *, mixes: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 5, 3)
        self.mixes = mixes

    def forward(self, images: list[torch.Tensor]) -> dict[str, Any]:
        maps = self.backbone(torch.stack(images))
        if self.mixes:
            maps = maps / maps.abs().amax()
        rows = maps.flatten(2).transpose(1, 2)
        kept = [(one, one[:, 4] > 0.2) for one in rows]
        return {"detections": [{"boxes": one[keep, :4], "scores": one[keep, 4]} for one, keep in kept]}


def test_detections_are_compared_sample_by_sample() -> None:
    images = list(torch.randn(5, 3, 9, 9, generator=torch.Generator().manual_seed(0)))
    clean = check(Detector(mixes=False).eval(), images)
    assert clean.ok
    assert result(clean).verdict is Verdict.KEPT
    found = check(Detector(mixes=True).eval(), images, clauses=CLAUSES).findings
    assert [finding.code for finding in found] == ["EM171"]
    assert "amax" in found[0].place.source


class Pooled(nn.Module):
    """Padded tokens, pooled with or without regard to the mask."""

    def __init__(self, *, careful: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 6)
        self.head = nn.Linear(6, 3)
        self.careful = careful

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.embedding(ids)
        if not self.careful:
            return self.head(states.mean(1))
        weights = attention_mask[..., None].float()
        return self.head((states * weights).sum(1) / weights.sum(1).clamp(min=1))


def padded(longest: int = 9) -> dict[str, torch.Tensor]:
    mask = (torch.arange(9) < longest - torch.arange(6)[:, None] % 4).long()
    return {
        "ids": torch.randint(1, 20, (6, 9), generator=torch.Generator().manual_seed(1)) * mask,
        "attention_mask": mask,
    }


@pytest.mark.parametrize("longest", [9, 7])
def test_padding_that_reaches_an_answer_is_found_at_its_line(longest: int) -> None:
    assert check(Pooled(careful=True).eval(), padded(longest)).ok
    found = check(Pooled(careful=False).eval(), padded(longest)).findings
    assert [finding.code for finding in found] == ["EM174"]
    assert found[0].place.source == "return self.head(states.mean(1))"


def test_a_winner_of_the_batch_is_no_rounding() -> None:
    class Winner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding = nn.Embedding(20, 6)
            self.norm = nn.LayerNorm(6)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.embedding(ids))
            winner = x.flatten(1).sum(1).argmax()  # sums of a layer norm cancel: rounding decides
            return x * torch.ones(len(x), 1, 1).index_fill(0, winner, 2.0)

    ids = torch.randint(0, 20, (6, 5), generator=torch.Generator().manual_seed(1))
    found = check(Winner().eval(), ids, clauses=CLAUSES).findings
    assert found
    assert all(finding.clause == "batch-independent" for finding in found)


def test_rounding_between_sizes_names_its_first_module() -> None:
    class Rounds(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 + 2e-7 * (len(x) > 3)) if x.dtype is torch.float32 else x

    model = nn.Sequential(nn.Identity(), Rounds()).eval()
    answer = result(check(model, BATCH, clauses=CLAUSES))
    assert answer.verdict is Verdict.KEPT
    assert answer.measured["size classes"] == [[1, 2, 3], [4, 5, 8, 16]]
    assert answer.notes[0].startswith("rounding: sizes 1-3 | 4-16 differ by up to")
    assert "first in module 1" in answer.notes[0]


def test_sizes_grow_with_the_given_batch_and_the_strength_of_probes() -> None:
    assert max(sizes_to_try("default", 2)) == 16
    assert max(sizes_to_try("default", 16)) == 32
    assert sizes_to_try("thorough", 1) == tuple(range(1, 33))


def test_a_sample_masked_throughout_is_an_edge_input() -> None:
    class Careless(Pooled):
        def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            weights = attention_mask[..., None].float()
            return self.head((self.embedding(ids) * weights).sum(1) / weights.sum(1))

    for probes in ("fast", "default"):
        found = check(Careless(careful=True).eval(), padded(), probes=probes, clauses=["finite"]).findings  # type: ignore[arg-type]
        assert [finding.code for finding in found] == ["EM191"]
        assert "masked throughout" in found[0].seen
    assert check(Pooled(careful=True).eval(), padded(), clauses=["finite"]).ok


def test_fast_probes_still_name_the_edge() -> None:
    class Inverse(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / x.norm(dim=1, keepdim=True)

    found = check(Inverse().eval(), BATCH, probes="fast", clauses=["finite"]).findings
    assert [finding.code for finding in found] == ["EM191"]
    assert found[0].seen.startswith("zeros")


class ByRemainder(nn.Module):
    """For some samples the answer goes by the remainder of the batch's size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torn = (x[:, 0] > 0) * (len(x) % 3 - 1) * 1e-3
        return torch.stack([torch.zeros(len(x)), torn], 1)


def test_answers_are_counted_by_sample_not_by_comparison() -> None:
    subject = Subject(ByRemainder().eval(), BATCH.roll(1, 0))
    probes = Probes(subject, 8)
    sizes = (1, 2, 3, 4, 5, 8, 16)
    assert all(probes.runs_at(size) for size in sizes)
    measured = size_classes(probes, sizes)
    assert measured["size classes"] == [[1, 4, 16], [2, 5, 8], [3]]
    assert measured["answers compared"] == 8
    assert measured["answers that change"] == int((BATCH[:, 0] > 0).sum())


def test_a_sample_that_lies_twice_in_the_reference_is_counted_once() -> None:
    subject = Subject(ByRemainder().eval(), BATCH[1:4])
    probes = Probes(subject, 4)
    sizes = (1, 2, 3, 5)
    assert all(probes.runs_at(size) for size in sizes)
    measured = size_classes(probes, sizes)
    assert measured["answers compared"] == 3
    assert measured["answers that change"] == int((BATCH[1:4, 0] > 0).sum())
