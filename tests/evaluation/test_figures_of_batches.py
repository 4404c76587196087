"""What is inferred and measured, against figures computed at once from all outputs."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error

import evalmode
from evalmode.errors import BatchError, TaskError, UsageError
from evalmode.predictor.protocol import Predictor

GENERATOR = torch.Generator().manual_seed(11)
SCORES = 2 * torch.randn(50, 5, generator=GENERATOR)
LABELS = torch.randint(0, 5, (50,), generator=GENERATOR)


class Calls(Predictor):
    """A predictor that is a function."""

    signature = certificate = None

    def __init__(self, function):
        self.function = function

    def __call__(self, *args):
        return self.function(*args)

    def predict(self, batch):
        return self.function(batch)


def evaluate_batches(predict, batches, **options):
    """The batches as they are, one after the other."""
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    return evalmode.evaluate(Calls(predict), loader, progress=False, exact=False, **options)


def same(inputs):
    return inputs


def cut(outputs, target, size):
    return list(zip(outputs.split(size), target.split(size), strict=True))


def figures(result):
    return {metric.name: metric.value for metric in result.record.metrics}


def described(result):
    return " | ".join(result.inferred)


def test_classification_agrees_with_scikit_learn():
    result = evaluate_batches(same, cut(SCORES, LABELS, 8))
    values = figures(result)
    probabilities = softmax(SCORES.double().numpy(), axis=1)
    assert list(values) == ["accuracy", "log loss"]
    assert values["accuracy"] == accuracy_score(LABELS, SCORES.argmax(1))
    assert values["log loss"] == pytest.approx(log_loss(LABELS, probabilities, labels=range(5)), rel=1e-7)
    assert (result.record.samples, result.record.batch_size) == (50, 8)
    assert np.array_equal(result.samples.prediction, SCORES.argmax(1))
    assert "metrics: accuracy, log loss" in described(result)
    assert "(inputs, target)" in described(result)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_the_figures_do_not_depend_on_batching_or_order(sizes, shuffle):
    whole = evaluate_batches(same, [(SCORES, LABELS)]).record
    order = torch.tensor(shuffle.sample(range(50), 50))
    starts = [0, *np.cumsum(sizes).tolist()]
    batches = [
        (SCORES[order][a:b], LABELS[order][a:b]) for a, b in zip(starts, [*starts[1:], 50], strict=True) if a < 50
    ]
    batches = [batch for batch in batches if len(batch[0])]
    assert evaluate_batches(same, batches).record.metrics == whole.metrics


@pytest.mark.parametrize("limit", [1, 8, 13, 50, 99])
def test_limit_counts_samples(limit):
    result = evaluate_batches(same, cut(SCORES, LABELS, 8), limit=limit)
    expected = evaluate_batches(same, [(SCORES[:limit], LABELS[:limit])])
    assert result.record.samples == min(limit, 50)
    assert result.record.metrics == expected.record.metrics
    assert np.array_equal(result.samples.prediction, expected.samples.prediction)


def test_limit_reads_no_further_batch():
    class Batches(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield SCORES[:8], LABELS[:8]
            raise RuntimeError("read too far")

    assert evaluate_batches(same, Batches(), limit=8).record.samples == 8


@dataclasses.dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda scores: {"logits": scores, "hidden": scores}, "'logits' of the model's dict"),
        (lambda scores: {"scores": scores, "name": "x"}, "'scores' of the model's dict"),
        (lambda scores: Output(scores.sum(), scores), "'logits' of the model's Output"),
        (lambda scores: (scores, scores.sum()), "first of the model's 2 outputs"),
    ],
)
def test_structured_outputs_are_understood_and_said(wrap, words):
    result = evaluate_batches(wrap, cut(SCORES, LABELS, 8))
    assert figures(result) == figures(evaluate_batches(same, cut(SCORES, LABELS, 8)))
    assert words in described(result)


def test_a_hugging_face_model_is_evaluated_from_its_batches():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config).eval()
    tokens, labels = torch.randint(0, 20, (6, 5)), torch.tensor([0, 1, 2, 0, 1, 2])
    batches = [{"input_ids": tokens[i : i + 4], "labels": labels[i : i + 4]} for i in (0, 4)]
    with torch.no_grad():
        result = evaluate_batches(lambda batch: model(**batch), batches)
        expected = model(tokens).logits.argmax(1)
    assert np.array_equal(result.samples.prediction, expected)
    assert "'logits' of the model's SequenceClassifierOutput" in described(result)
    assert "'labels' of the batch is the target" in described(result)


def test_regression_is_inferred_and_a_column_meets_a_row():
    target = SCORES[:, 0] + 0.5
    result = evaluate_batches(lambda inputs: inputs[:, :1], cut(SCORES, target, 8))
    values = figures(result)
    assert values["mean absolute error"] == pytest.approx(mean_absolute_error(target, SCORES[:, 0]), rel=1e-6)
    assert values["root mean squared error"] == pytest.approx(0.5, rel=1e-6)
    assert "regression" in described(result)


def test_one_logit_per_sample_is_binary():
    result = evaluate_batches(lambda inputs: inputs[:, :1], cut(SCORES, (LABELS > 2).float(), 8))
    expected = F.binary_cross_entropy_with_logits(SCORES[:, 0].double(), (LABELS > 2).double()).item()
    assert figures(result)["binary log loss"] == pytest.approx(expected, rel=1e-12)
    assert np.array_equal(result.samples.prediction, (SCORES[:, 0] > 0).long())


def test_probabilities_get_no_log_loss_unless_told():
    batches = cut(SCORES.softmax(1), LABELS, 8)
    result = evaluate_batches(same, batches)
    assert list(figures(result)) == ["accuracy"]
    assert "look like probabilities" in described(result)
    told = evaluate_batches(same, batches, metrics=["log loss of probabilities"])
    logits = evaluate_batches(same, cut(SCORES, LABELS, 8), metrics=["log loss"])
    assert next(iter(figures(told).values())) == pytest.approx(figures(logits)["log loss"], rel=1e-6)


def test_predictions_that_are_classes_are_the_answers():
    result = evaluate_batches(same, cut(SCORES, LABELS, 8), prediction=lambda outputs: outputs.argmin(1))
    assert figures(result)["accuracy"] == accuracy_score(LABELS, SCORES.argmin(1))
    assert "log loss" in figures(result)
    assert np.array_equal(result.samples.prediction, SCORES.argmin(1))


def test_predictions_that_are_scores_take_the_outputs_place():
    result = evaluate_batches(
        lambda inputs: {"a": inputs, "b": -inputs}, cut(SCORES, LABELS, 8), prediction=lambda outputs: outputs["b"]
    )
    assert figures(result) == figures(evaluate_batches(lambda inputs: -inputs, cut(SCORES, LABELS, 8)))


def test_metrics_of_ones_own():
    def margin(outputs, target):
        return outputs.max(1).values - outputs.gather(1, target[:, None])[:, 0]

    result = evaluate_batches(
        same,
        cut(SCORES, LABELS, 8),
        metrics={"top 2": lambda o, t: (o.topk(2).indices == t[:, None]).any(1), "gap": margin, "right": "accuracy"},
    )
    top, gap, right = result.record.metrics
    assert (top.name, top.method, top.total) == ("top 2", "Clopper-Pearson", 50)
    assert top.count == sum(int(label) in row.topk(2).indices for row, label in zip(SCORES, LABELS, strict=True))
    assert gap.value == pytest.approx(margin(SCORES, LABELS).mean().item(), rel=1e-6)
    assert gap.method == "BCa bootstrap"
    assert right.name == "right"
    assert result.samples.rows["gap"].dtype == np.float64
    assert [
        metric.name for metric in evaluate_batches(same, cut(SCORES, LABELS, 8), metrics=[margin]).record.metrics
    ] == ["margin"]


def test_a_loss_per_batch_is_taken_apart_into_samples():
    by_sample = evaluate_batches(
        same, cut(SCORES, LABELS, 8), metrics=(), loss=lambda o, t: F.cross_entropy(o, t, reduction="none")
    )
    by_batch = evaluate_batches(same, cut(SCORES, LABELS, 8), metrics=(), loss=torch.nn.CrossEntropyLoss())
    assert figures(by_batch)["loss"] == pytest.approx(figures(by_sample)["loss"], rel=1e-6)
    # The mean of batch means would weigh the last two samples as much as eight.
    wrong = np.mean([F.cross_entropy(o, t).item() for o, t in cut(SCORES, LABELS, 8)])
    assert abs(figures(by_batch)["loss"] - wrong) > 1e-4
    assert "called once per sample" in described(by_batch)
    assert "together" not in described(by_batch)
    assert "called once per sample" not in described(by_sample)


@pytest.mark.parametrize("settings", [{"reduction": "sum"}, {"weight": torch.arange(1.0, 1 + SCORES.shape[1]) ** 2}])
def test_a_loss_that_weighs_otherwise_in_a_batch_is_told(settings: dict):
    """A class weight cancels in the mean of one sample: the figure is not the training's loss."""
    loss = torch.nn.CrossEntropyLoss(**settings)
    result = evaluate_batches(same, cut(SCORES, LABELS, 8), metrics=(), loss=loss)
    assert f"and {loss(SCORES[:8], LABELS[:8]).item():.4g} together" in described(result)


def test_filling_is_no_sample_where_a_loss_is_taken_apart_and_small_losses_are_compared_too():
    calls = []

    def small(outputs, target):
        calls.append(len(outputs))
        return 1e-6 * F.cross_entropy(outputs, target, reduction="sum")

    result = evalmode.evaluate(torch.nn.Identity(), (SCORES[:5], LABELS[:5]), loss=small, metrics=(), progress=False)
    assert calls[:6] == [5, 1, 1, 1, 1, 1]
    assert f"and {small(SCORES[:5], LABELS[:5]).item():.4g} together" in described(result)
    assert "the first 5 samples have" in described(result)


def test_targets_without_a_tensor_suit_metrics_of_ones_own():
    words = [["a", "b"], ["c"]]
    batches = [(SCORES[:2], words[0]), (SCORES[2:3], words[1])]
    result = evaluate_batches(same, batches, metrics={"a": lambda o, t: [word == "a" for word in t]})
    assert (result.record.metrics[0].count, result.record.metrics[0].total) == (1, 3)


def test_without_a_target_there_are_predictions_but_no_figures():
    result = evaluate_batches(
        same, [SCORES[:4], SCORES[4:6]], split=lambda batch: (batch, None), prediction=lambda outputs: outputs.argmax(1)
    )
    assert result.record.metrics == ()
    assert len(result.samples.prediction) == result.record.samples == 6
    assert "no target" in described(result)


def test_nothing_of_the_graph_is_kept():
    leaf = SCORES.clone().requires_grad_()
    result = evaluate_batches(lambda inputs: inputs * leaf[: len(inputs)], cut(SCORES, LABELS, 8), loss=F.cross_entropy)
    assert result.record.samples == 50


def test_predictions_do_not_hold_on_to_the_outputs_memory():
    buffer = torch.empty(8, 5)

    def reusing(inputs):
        buffer[: len(inputs)] = inputs
        return buffer[: len(inputs)]

    result = evaluate_batches(reusing, cut(SCORES, LABELS, 8), prediction=lambda outputs: outputs, metrics="accuracy")
    assert np.array_equal(result.samples.prediction, SCORES)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_outputs_name_the_sample(bad):
    scores = SCORES.clone()
    scores[[20, 22]] = bad
    with pytest.raises(BatchError, match="sample 20: the model's outputs are NaN or Inf"):
        evaluate_batches(same, cut(scores, LABELS, 8))


def test_a_class_ruled_out_by_minus_infinity_is_accepted():
    scores = SCORES.clone()
    scores[torch.arange(50), (LABELS + 1) % 5] = -math.inf
    assert evaluate_batches(same, cut(scores, LABELS, 8)).record.samples == 50


@pytest.mark.parametrize(
    ("predict", "words"),
    [
        (lambda inputs: inputs.sum(), "one number for the whole batch"),
        (lambda inputs: inputs[1:], "49 outputs .* for a batch of 50 samples"),
        (lambda inputs: inputs[:0], "no samples"),
    ],
)
def test_outputs_that_do_not_fit_are_said(predict, words):
    with pytest.raises(BatchError, match=words):
        evaluate_batches(predict, [(SCORES, LABELS)])


@pytest.mark.parametrize(
    ("outputs", "target", "words"),
    [
        (torch.rand(4, 1), torch.tensor([0, 1, 1, 0]), "probability or a logit"),
        (torch.randn(4, 3), torch.zeros(4, 3), "several labels"),
        (torch.randn(4, 3, 8, 8), torch.zeros(4, 8, 7, dtype=torch.long), "no named metric"),
        (torch.randn(4, 3), torch.randn(4), "no named metric"),
        ({"a": torch.randn(4, 3), "b": torch.randn(4, 3)}, torch.zeros(4), "cannot tell which tensor"),
        (torch.randn(4, 3), ["a", "b", "c", "d"], "the target is no tensor"),
        (torch.arange(4), torch.randn(4), "whole numbers as outputs"),
    ],
)
def test_what_cannot_be_inferred_is_an_error_that_shows_what_to_write(outputs, target, words):
    with pytest.raises(TaskError, match=words) as caught:
        evaluate_batches(lambda inputs: outputs, [(torch.zeros(4), target)])
    assert "metrics = " in caught.value.fix or "def prediction" in caught.value.fix


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (F.cross_entropy, r"gave float32\[\] for a batch of 50"),
        (lambda o, t: o, r"gave float32\[50, 5\]"),
        (lambda o, t: None, "gave None"),
    ],
)
def test_a_metric_gives_one_value_per_sample(metric, words):
    with pytest.raises(TaskError, match=words):
        evaluate_batches(same, [(SCORES, LABELS)], metrics=[metric])


def test_a_metric_that_is_nan_names_the_sample():
    with pytest.raises(BatchError, match="sample 9: the metric 'm' is NaN"):
        evaluate_batches(
            same,
            cut(SCORES, LABELS, 8),
            metrics={"m": lambda o, t: torch.where(o[:, 0] == SCORES[9, 0], math.nan, 1.0)},
        )


@pytest.mark.parametrize("metrics", [3, [None], ["no such"], ["accuracy", "accuracy"], {"a": 1}])
def test_metrics_that_are_none(metrics):
    with pytest.raises(TaskError):
        evaluate_batches(same, [(SCORES, LABELS)], metrics=metrics)


def test_two_figures_of_one_name_are_refused():
    with pytest.raises(TaskError, match="'loss'"):
        evaluate_batches(same, [(SCORES, LABELS)], metrics={"loss": "log loss"}, loss=F.cross_entropy)


@pytest.mark.parametrize("loss", [3, torch.nn.CrossEntropyLoss])
def test_a_loss_is_a_function(loss):
    with pytest.raises(TaskError, match="loss is"):
        evaluate_batches(same, [(SCORES, LABELS)], loss=loss)


def test_no_batches_are_an_error():
    with pytest.raises(TaskError, match="no samples"):
        evaluate_batches(same, [])


def test_a_prediction_that_is_no_tensor_is_an_error():
    with pytest.raises(TaskError, match="prediction"):
        evaluate_batches(same, [(SCORES, LABELS)], prediction=lambda outputs: "cat")


@pytest.mark.parametrize("wrong", [{"confidence": 95}, {"confidence": 0}, {"limit": 0}])
def test_wrong_numbers(wrong):
    with pytest.raises(UsageError):
        evaluate_batches(same, [(SCORES, LABELS)], **wrong)


def test_what_the_loader_leaves_out_is_said():
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(SCORES, LABELS), batch_size=16, shuffle=True, drop_last=True
    )
    result = evalmode.evaluate(Calls(same), loader, exact=False, progress=False)
    assert result.record.samples == 48
    assert not result.record.exact
    assert any("2 samples are left out" in note for note in result.record.notes)
    assert any("shuffles" in note for note in result.record.notes)
