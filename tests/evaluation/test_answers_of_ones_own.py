"""What `prediction`, a loss, masks and groups of the user's own mean for the figures."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, jaccard_score, roc_auc_score
from torch import nn

import evalmode
from evalmode.errors import JournalError, ModelRunError, TaskError
from evalmode.evaluation.comparison import compare
from evalmode.evaluation.labels import each_apart
from evalmode.evaluation.progress import Progress
from evalmode.measure.metric import Aggregate, Metric

GENERATOR = torch.Generator().manual_seed(5)
INPUTS = torch.randn(200, 6, generator=GENERATOR)
LABELS = torch.randint(0, 2, (200,), generator=GENERATOR)


class Same(nn.Module):
    """Gives what it is given."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + 0.0


def figures(found: evalmode.Evaluation) -> dict[str, float | None]:
    return {record.name: record.value for record in found.record.metrics}


def least(outputs: torch.Tensor) -> torch.Tensor:
    return (outputs[:, :2].softmax(1)[:, 1] > 0.3).long()


def test_every_metric_of_decisions_reads_what_prediction_gave() -> None:
    names = ["accuracy", "macro F1", "weighted F1", "micro F1", "binary F1", "balanced accuracy"]
    found = evalmode.evaluate(
        Same(), (INPUTS[:, :2], LABELS), prediction=least, metrics=[*names, "AUROC"], progress=False
    )
    answers, target = least(INPUTS).numpy(), LABELS.numpy()
    assert figures(found) == pytest.approx(
        {
            "accuracy": accuracy_score(target, answers),
            "macro F1": f1_score(target, answers, average="macro"),
            "weighted F1": f1_score(target, answers, average="weighted"),
            "micro F1": f1_score(target, answers, average="micro"),
            "binary F1": f1_score(target, answers),
            "balanced accuracy": balanced_accuracy_score(target, answers),
            "AUROC": roc_auc_score(target, (INPUTS[:, 1] - INPUTS[:, 0]).double().numpy()),
        }
    )


@pytest.mark.parametrize("name", ["binary accuracy", "binary accuracy of probabilities", "binary F1 of probabilities"])
@pytest.mark.parametrize("kind", [torch.bool, torch.int64])
def test_binary_decisions_of_ones_own(name: str, kind: torch.dtype) -> None:
    def prediction(outputs: torch.Tensor) -> torch.Tensor:
        return (outputs.sigmoid().squeeze(1) > 0.3).to(kind)

    found = evalmode.evaluate(Same(), (INPUTS[:, :1], LABELS), prediction=prediction, metrics=[name], progress=False)
    oracle = f1_score if "F1" in name else accuracy_score
    assert figures(found)[name] == pytest.approx(oracle(LABELS.numpy(), prediction(INPUTS[:, :1]).numpy()))


@pytest.mark.parametrize("wrapped", [False, True])
def test_masks_of_classes_that_prediction_gave(wrapped: bool) -> None:
    scores = torch.randn(12, 5, 4, 4, generator=GENERATOR)
    target = torch.randint(0, 5, (12, 4, 4), generator=GENERATOR)

    class Segments(nn.Module):
        def forward(self, inputs: torch.Tensor) -> object:
            return {"out": inputs * 1.0, "aux": inputs * 2.0} if wrapped else inputs * 1.0

    def prediction(outputs: object) -> torch.Tensor:
        return (4 - (outputs["out"] if isinstance(outputs, dict) else outputs).argmax(1)) % 5

    name = "mean IoU of 5 classes" if wrapped else "mean IoU"
    found = evalmode.evaluate(Segments(), (scores, target), prediction=prediction, metrics=[name], progress=False)
    wanted = jaccard_score(target.flatten().numpy(), prediction(scores).flatten().numpy(), average="macro")
    assert figures(found)[name] == pytest.approx(wanted)


def test_torchmetrics_reads_what_prediction_gave_or_scores_where_it_wants_them() -> None:
    found = evalmode.evaluate(
        Same(),
        (INPUTS[:, :2], LABELS),
        prediction=least,
        metrics={
            "theirs": torchmetrics.Accuracy("binary"),
            "ours": "accuracy",
            "ranking": torchmetrics.AUROC("multiclass", num_classes=2),
        },
        progress=False,
    )
    assert figures(found)["theirs"] == pytest.approx(figures(found)["ours"])
    order = (INPUTS[:, 1] - INPUTS[:, 0]).double().numpy()
    assert figures(found)["ranking"] == pytest.approx(roc_auc_score(LABELS.numpy(), order), abs=1e-5)
    assert found["ranking"].method.endswith("of the scores")


def test_a_loss_that_is_the_models_own_number_is_refused() -> None:
    class WithLoss(nn.Module):
        def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": inputs[:, :2], "loss": inputs.mean(), "scale": torch.tensor(3.0)}

    with pytest.raises(TaskError, match="once for a whole batch"):
        evalmode.evaluate(
            WithLoss(), (INPUTS, LABELS), loss=lambda outputs, _: outputs["loss"], metrics=["accuracy"], progress=False
        )
    found = evalmode.evaluate(  # beside it, a loss of each sample is fine
        WithLoss(),
        (INPUTS, LABELS),
        loss=lambda outputs, target: F.cross_entropy(outputs["scale"] * outputs["logits"], target),
        metrics=["accuracy"],
        progress=False,
    )
    assert figures(found)["loss"] == pytest.approx(float(F.cross_entropy(3 * INPUTS[:, :2].double(), LABELS)), abs=1e-6)


def test_a_loss_that_is_taken_apart_reads_each_samples_own_text() -> None:
    texts = ["x" * (place % 7) for place in range(len(INPUTS))]

    def away(outputs: torch.Tensor, target: list[str]) -> torch.Tensor:
        return torch.stack([(row[0] - len(text)).abs() for row, text in zip(outputs, target, strict=False)]).mean()

    found = evalmode.evaluate(
        Same(), (INPUTS, texts), loss=away, metrics={"first": lambda outputs, _: outputs[:, 0]}, progress=False
    )
    lengths = torch.tensor([len(text) for text in texts])
    assert figures(found)["loss"] == pytest.approx(float((INPUTS[:, 0] - lengths).abs().double().mean()), abs=1e-6)


@pytest.mark.parametrize("metrics", [None, ["mean IoU"], {"overlap": "Dice"}])
def test_a_mask_of_0_and_255_is_no_mask_of_classes(metrics: list[str] | None) -> None:
    scores = torch.randn(6, 2, 4, 4, generator=GENERATOR)
    mask = torch.randint(0, 2, (6, 4, 4), generator=GENERATOR, dtype=torch.uint8) * 255
    with pytest.raises(TaskError, match="mask // 255"):
        evalmode.evaluate(Same(), (scores, mask), metrics=metrics, progress=False)
    evalmode.evaluate(Same(), (scores, mask // 255), metrics=metrics, progress=False)


def test_masks_of_0_and_255_are_told_where_the_first_samples_have_no_foreground() -> None:
    scores = torch.randn(300, 2, 64, 64, generator=GENERATOR)
    mask = torch.zeros(300, 64, 64, dtype=torch.uint8)
    mask[-1] = 255
    with pytest.raises(TaskError, match="mask // 255"):
        evalmode.evaluate(Same(), (scores, mask), metrics=["mean IoU"], progress=False)
    mask[0, 0] = 1  # then they are classes, and 255 a place that does not count
    found = evalmode.evaluate(Same(), (scores, mask), metrics=["mean IoU"], progress=False)
    assert found.record.samples == 300


def test_targets_with_an_axis_of_one_are_masks_too() -> None:
    scores = torch.randn(6, 3, 4, 4, generator=GENERATOR)
    mask = torch.zeros(6, 1, 4, 4, dtype=torch.long)
    mask[0] = 255
    found = evalmode.evaluate(Same(), (scores, mask), metrics=["mean IoU"], progress=False)  # of three classes
    answers = scores[1:].argmax(1).flatten().numpy()
    wanted = jaccard_score(mask[1:].flatten().numpy(), answers, average="macro")
    assert figures(found)["mean IoU"] == pytest.approx(wanted)


def test_places_that_do_not_count_are_told() -> None:
    scores = torch.randn(6, 3, 4, 4, generator=GENERATOR)
    mask = torch.randint(0, 3, (6, 4, 4), generator=GENERATOR)
    mask[0, 0] = 255
    found = evalmode.evaluate(Same(), (scores, mask), progress=False)
    assert any("places whose target is 255 do not count" in line for line in found.inferred)


def test_a_journal_tells_one_series_from_another(tmp_path: object) -> None:
    path = f"{tmp_path}/journal.sqlite"
    options = {"metrics": ["accuracy"], "journal": path, "progress": False}
    data = (INPUTS[:, :2], LABELS)
    first = pd.Series(np.arange(200) // 4)
    evalmode.evaluate(Same(), data, groups=first, **options)
    evalmode.evaluate(Same(), data, groups=first.copy(), **options)
    with pytest.raises(JournalError, match="groups"):
        evalmode.evaluate(Same(), data, groups=pd.Series(np.arange(200) // 5), **options)


def test_samples_without_a_group_are_each_their_own() -> None:
    groups = np.repeat(np.arange(20.0), 10)
    groups[100:] = np.nan
    alone = groups.copy()
    alone[100:] = 1000 + np.arange(100)
    data, options = (INPUTS[:, :2], LABELS), {"metrics": ["accuracy"], "progress": False}
    found = evalmode.evaluate(Same(), data, groups=groups, **options)
    wanted = evalmode.evaluate(Same(), data, groups=alone, **options)
    assert found.record.metrics[0] == wanted.record.metrics[0]
    assert any("100 samples have none" in note for note in found.record.notes)
    assert each_apart(np.array([1, 2]))[1] == 0


def test_proportions_of_groups_stay_within_their_range_too() -> None:
    right = torch.eye(2)[torch.zeros(60_000, dtype=torch.long)]
    target = torch.zeros(60_000, dtype=torch.long)
    target[0] = 1
    found = evalmode.evaluate(
        Same(), (right, target), metrics=["accuracy"], groups=np.arange(60_000) // 2, progress=False
    )
    low, high = found.record.metrics[0].low, found.record.metrics[0].high
    assert low is not None and high is not None and 0 < low < high <= 1


def test_progress_shows_the_root_and_not_the_square() -> None:
    seen: list[Progress] = []
    evalmode.evaluate(
        Same(), (torch.zeros(50, 1), torch.full((50, 1), 10.0)), metrics="root mean squared error", progress=seen.append
    )
    assert seen[-1].value == pytest.approx(10.0)


def test_outputs_of_another_width_from_execution_to_execution_are_told() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(6, 60_000)
            self.calls = 0

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            width = 2 + int((inputs[:, 0] > 1).sum())
            return self.wide(inputs)[:, :width]

    inputs = INPUTS.clone()
    inputs[:32, 0] = 0.0
    inputs[32:, 0] = 2.0
    with pytest.raises(ModelRunError, match=r"rows of shape \(\d+,\) in one execution and"):
        evalmode.evaluate(
            Decoder(), (inputs, LABELS), metrics={"first": lambda outputs, _: outputs[:, 0]}, progress=False
        )


def test_no_interval_leaves_the_range_of_its_figure() -> None:
    generator = np.random.default_rng(0)
    scores = np.concatenate([generator.uniform(-2, -1, 20_000), generator.uniform(1, 2, 20_000)])
    target = np.repeat([0, 1], 20_000)
    scores[-1] = -1.5
    found = evalmode.evaluate(
        Same(), (torch.tensor(scores)[:, None], torch.tensor(target)), metrics="AUROC", progress=False
    )
    (record,) = found.record.metrics
    assert record.value == pytest.approx(roc_auc_score(target, scores))
    assert record.low is not None and record.high is not None
    assert 0 < record.low < record.value < record.high <= 1
    assert math.isfinite(record.low)


class Spread:
    """A figure of all samples that no catalog knows: the largest value minus the smallest."""

    def figure(self, rows: np.ndarray) -> float:
        return float(rows[:, 0].max() - rows[:, 0].min())

    def resampled(self, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.array([np.ptp(rows[weight > 0, 0]) for weight in weights])

    def trials(self, rows: np.ndarray) -> tuple[int, ...]:
        return ()


def test_files_are_compared_by_a_metric_of_ones_own_that_is_given(tmp_path: object) -> None:
    spread = Metric("spread", lambda outputs, _: outputs[:, :1].double(), Aggregate.STATISTIC, True, Spread())
    for name, scale in (("a", 1.0), ("b", 2.0)):
        evalmode.evaluate(
            Same(),
            (scale * INPUTS, LABELS),
            metrics=[spread],
            keep_predictions=f"{tmp_path}/{name}.parquet",
            progress=False,
        )
    found = compare(f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet", metric=spread)
    assert found["spread"].second_value == pytest.approx(2 * found["spread"].first_value)
    with pytest.raises(evalmode.errors.ComparisonError, match="give the metric itself"):
        compare(f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet", metric="spread")


def test_models_are_compared_by_whole_groups_of_a_column() -> None:
    data = {"inputs": INPUTS[:, :2], "target": LABELS, "patient": torch.arange(200) // 10}

    def split(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return batch["inputs"], batch["target"]

    found = compare(Same(), nn.Softmax(1), data=data, split=split, groups="patient", metric="log loss", progress=False)
    assert "20 groups" in found["log loss"].method


def test_slices_without_scipy_are_not_tested_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalmode.evaluation.slices.has_scipy", lambda: False)
    found = evalmode.evaluate(
        Same(), (INPUTS[:, :2], LABELS), metrics=["accuracy"], slices={"half": np.arange(200) % 2}, progress=False
    )
    assert all("not tested: pip install 'evalmode[evaluate]'" in part.note for part in found.record.slices)


def test_a_loss_that_refuses_nan_is_taken_apart() -> None:
    class Shares(nn.Module):
        def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"probs": inputs[:, 0].sigmoid(), "temperature": torch.tensor(2.0)}

    found = evalmode.evaluate(
        Shares(),
        (INPUTS, LABELS.float()),
        loss=lambda outputs, target: F.binary_cross_entropy(outputs["probs"], target),
        metrics={"share": lambda outputs, _: outputs["probs"]},
        progress=False,
    )
    wanted = F.binary_cross_entropy(INPUTS[:, 0].sigmoid(), LABELS.float())
    assert figures(found)["loss"] == pytest.approx(float(wanted), abs=1e-5)
