"""Two models on the same samples: matched by id, tested in pairs, and mirrored when they change places."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from torch import nn

import evalmode
from evalmode.certificate import EvaluationRecord
from evalmode.errors import ComparisonError, UsageError
from evalmode.evaluation.effects import Outcome
from evalmode.evaluation.result import Evaluation
from evalmode.evaluation.samples import Samples
from evalmode.measure.metric import Aggregate, Metric
from evalmode.task import Task


def unread(outputs: Any, target: Any) -> Any:
    raise AssertionError("rows are kept: nothing is measured again")


ACCURACY = Metric("accuracy", unread, Aggregate.PROPORTION, higher_is_better=True)
LOSS = Metric("log loss", unread, Aggregate.MEAN, higher_is_better=False)
OWN = Metric("own", unread, Aggregate.MEAN)


def result(
    rows: dict[Metric, Any], *, ids: Any = None, target: Any = None, subject: str = "", **fields: Any
) -> Evaluation:
    arrays = {metric.name: np.asarray(values) for metric, values in rows.items()}
    count = len(next(iter(arrays.values())))
    samples = Samples(
        np.arange(count) if ids is None else np.asarray(ids),
        arrays,
        target=np.zeros(count, np.int64) if target is None else np.asarray(target),
        columns=fields.pop("columns", {}),
    )
    record = EvaluationRecord(samples=count, batch_size=count, **fields)
    metrics = {metric.name: metric for metric in rows}
    return Evaluation(record=record, samples=samples, metrics=metrics, subject=subject)


def decisions(right: Any, **options: Any) -> Evaluation:
    return result({ACCURACY: np.asarray(right, bool)}, **options)


def losses(values: Any, **options: Any) -> Evaluation:
    return result({LOSS: np.asarray(values, np.float64)}, **options)


def flipping(both: int, first: int, second: int, neither: int) -> tuple[Evaluation, Evaluation]:
    a = [True] * both + [True] * first + [False] * second + [False] * neither
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    return decisions(a), decisions(b)


@pytest.mark.parametrize("table", [(80, 3, 12, 5), (10, 0, 6, 0), (0, 5, 5, 0), (500, 40, 22, 38), (0, 1, 0, 0)])
def test_decisions_get_mcnemars_exact_test(table: tuple[int, int, int, int]) -> None:
    both, first, second, neither = table
    effect = evalmode.compare(*flipping(*table))["accuracy"]
    oracle = mcnemar([[both, first], [second, neither]], exact=True)
    assert effect.p_value == pytest.approx(min(1.0, oracle.pvalue), rel=1e-12)
    assert effect.p_value == pytest.approx(binomtest(first, first + second).pvalue, rel=1e-12)
    assert effect.effect == pytest.approx((second - first) / sum(table), abs=1e-15)
    assert (len(effect.flipped.gained), len(effect.flipped.lost)) == (second, first)
    if effect.low is not None:
        assert effect.low <= effect.effect <= effect.high


def test_models_that_never_disagree_are_a_valid_answer() -> None:
    right = np.arange(50) % 3 > 0
    comparison = evalmode.compare(decisions(right), decisions(right))
    effect = comparison["accuracy"]
    assert effect.p_value == 1.0 and effect.effect == 0.0
    assert effect.outcome is Outcome.NONE and comparison.ok
    assert len(effect.flipped) == 0
    assert "none" in str(comparison) and "NO DIFFERENCE SHOWN" in str(comparison)


def test_equal_losses_are_a_valid_answer() -> None:
    values = np.linspace(0, 1, 40)
    comparison = evalmode.compare(losses(values), losses(values))
    effect = comparison["log loss"]
    assert effect.effect == 0.0 and effect.outcome in {Outcome.NONE, Outcome.UNTESTED} and comparison.ok
    assert "log loss" in str(comparison)


def test_a_clear_difference_is_better_or_worse_by_the_metrics_own_direction() -> None:
    rng = np.random.default_rng(1)
    low = rng.exponential(size=300)
    high = low + 0.2 + 0.1 * rng.standard_normal(300)
    assert evalmode.compare(losses(high), losses(low))["log loss"].outcome is Outcome.BETTER
    worse = evalmode.compare(losses(low), losses(high))
    assert worse["log loss"].outcome is Outcome.WORSE and not worse.ok and worse.worse == worse.effects
    assert worse["log loss"].effect == pytest.approx((high - low).mean())
    assert worse["log loss"].low < 0.2 < worse["log loss"].high


def test_an_own_metric_is_different_until_somebody_says_what_is_better() -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal(200)
    a, b = result({OWN: values}), result({OWN: values + 1 + 0.1 * rng.standard_normal(200)})
    assert evalmode.compare(a, b)["own"].outcome is Outcome.DIFFERENT
    assert evalmode.compare(a, b).ok
    assert evalmode.compare(a, b, higher_is_better=True)["own"].outcome is Outcome.BETTER
    assert not evalmode.compare(a, b, higher_is_better=False).ok


tables = st.tuples(*[st.integers(0, 12)] * 4).filter(lambda table: sum(table) > 1)


@settings(max_examples=25)
@given(table=tables)
def test_changing_places_changes_the_sign_of_decisions(table: tuple[int, int, int, int]) -> None:
    a, b = flipping(*table)
    there, back = evalmode.compare(a, b)["accuracy"], evalmode.compare(b, a)["accuracy"]
    assert_mirrored(there, back)
    assert there.flipped.gained.tolist() == back.flipped.lost.tolist()
    assert there.flipped.lost.tolist() == back.flipped.gained.tolist()


numbers = st.lists(st.tuples(st.floats(-9, 9, width=16), st.floats(-9, 9, width=16)), min_size=2, max_size=12)


@settings(max_examples=15)
@given(pairs=numbers)
def test_changing_places_changes_the_sign_of_figures(pairs: list[tuple[float, float]]) -> None:
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    there = evalmode.compare(losses(first), losses(second))["log loss"]
    back = evalmode.compare(losses(second), losses(first))["log loss"]
    assert_mirrored(there, back)


def assert_mirrored(there: Any, back: Any) -> None:
    assert there.effect == pytest.approx(-back.effect, abs=1e-12)
    assert (there.first_value, there.second_value) == (back.second_value, back.first_value)
    assert (there.p_value is None) == (back.p_value is None)
    if there.p_value is not None:
        assert there.p_value == pytest.approx(back.p_value, abs=1e-9)
    assert (there.low is None) == (back.low is None)
    if there.low is not None:
        assert there.low == pytest.approx(-back.high, abs=1e-9)
        assert there.high == pytest.approx(-back.low, abs=1e-9)
    mirrored = {Outcome.BETTER: Outcome.WORSE, Outcome.WORSE: Outcome.BETTER}
    assert there.outcome is mirrored.get(back.outcome, back.outcome)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 40), text=st.booleans())
def test_samples_are_matched_by_their_ids_in_any_order(seed: int, count: int, text: bool) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(1000)[:count]
    ids = np.array([f"img-{one}" for one in ids]) if text else ids
    right, other, target = rng.random(count) < 0.6, rng.random(count) < 0.6, rng.integers(0, 3, count)
    order = rng.permutation(count)
    straight = evalmode.compare(decisions(right, ids=ids, target=target), decisions(other, ids=ids, target=target))
    shuffled = evalmode.compare(
        decisions(right, ids=ids, target=target), decisions(other[order], ids=ids[order], target=target[order])
    )
    one, two = straight["accuracy"], shuffled["accuracy"]
    assert dataclasses.replace(one, flipped=None) == dataclasses.replace(two, flipped=None)
    assert one.flipped.gained.tolist() == two.flipped.gained.tolist() == ids[other & ~right].tolist()
    assert one.flipped.lost.tolist() == two.flipped.lost.tolist() == ids[right & ~other].tolist()


def test_several_models_and_metrics_are_adjusted_after_holm() -> None:
    rng = np.random.default_rng(3)
    target = rng.integers(0, 3, 200)

    def model(share: float, shift: float, subject: str) -> Evaluation:
        right = rng.random(200) < share
        return result({ACCURACY: right, LOSS: np.abs(rng.standard_normal(200)) + shift}, target=target, subject=subject)

    models = model(0.7, 0, "base"), model(0.75, 0.05, "wide"), model(0.8, 0.3, "deep")
    comparison = evalmode.compare(*models)
    assert comparison.labels == ("base", "wide", "deep")
    assert [(effect.metric, effect.second) for effect in comparison.effects] == [
        ("accuracy", "wide"), ("log loss", "wide"), ("accuracy", "deep"), ("log loss", "deep")
    ]  # fmt: skip
    raw = [effect.p_value for effect in comparison.effects]
    rejected, adjusted, *_ = multipletests(raw, 0.05, "holm")
    assert [effect.adjusted for effect in comparison.effects] == pytest.approx(list(adjusted))
    significant = [effect.outcome in {Outcome.BETTER, Outcome.WORSE} for effect in comparison.effects]
    assert significant == list(rejected)
    assert comparison["log loss", "deep"].second == "deep"
    with pytest.raises(KeyError, match="2 effects"):
        comparison["log loss"]
    assert "Holm over 4 tests" in str(comparison)


def test_a_margin_tells_equivalent_from_not_inferior_and_from_unknown() -> None:
    rng = np.random.default_rng(4)
    base = np.abs(rng.standard_normal(500))
    noise = 0.05 * rng.standard_normal(500)
    same = evalmode.compare(losses(base), losses(base + noise), margin=0.1)["log loss"]
    assert same.equivalent and same.non_inferior and same.margin == 0.1
    better = evalmode.compare(losses(base), losses(base - 0.5 + noise), margin=0.1)["log loss"]
    assert better.non_inferior and not better.equivalent
    worse = evalmode.compare(losses(base), losses(base + 0.5 + noise), margin=0.1)
    assert not worse["log loss"].non_inferior and not worse.ok
    slightly = evalmode.compare(losses(base), losses(base + 0.02 + noise), margin=0.1)
    assert slightly["log loss"].outcome is Outcome.WORSE
    assert slightly["log loss"].non_inferior and slightly.ok, "worse, and shown to be so by less than the margin"
    assert not evalmode.compare(losses(base), losses(base + 0.02 + noise)).ok
    unknown = evalmode.compare(losses(base[:6]), losses(base[:6] + 4 * noise[:6]), margin=0.001)["log loss"]
    assert not unknown.equivalent and not unknown.non_inferior
    for effect, word in ((same, "equivalent"), (better, "not inferior"), (unknown, "neither")):
        shown = evalmode.Comparison(("A", "B"), 5, (dataclasses.replace(effect, first="A", second="B"),))
        assert f"margin 0.1: {word}" in str(shown) or f"margin 0.001: {word}" in str(shown)


@pytest.mark.parametrize("groups", [None, np.arange(20) // 2])
def test_equal_values_of_so_few_samples_show_nothing_of_others(groups: Any) -> None:
    base = np.linspace(0.1, 2.0, 20)
    shown = evalmode.compare(losses(base), losses(base), margin=1e-9, groups=groups)
    same = shown["log loss"]
    assert (same.effect, same.p_value, same.equivalent, same.non_inferior) == (0.0, 1.0, None, None)
    assert "margin 1e-09: not tested" in str(shown) and "the same value on all 20 samples" in same.method
    assert shown.ok
    endless = np.full(20, np.inf)
    assert evalmode.compare(losses(endless), losses(endless), margin=0.1)["log loss"].equivalent is None


def test_a_margin_of_r_squared_is_named_in_plain_letters() -> None:
    from evalmode.measure.r_squared import R_SQUARED

    generator = np.random.default_rng(0)
    rows = np.stack([generator.normal(size=30), generator.normal(size=30)], 1)
    one = result({R_SQUARED: rows})
    for name in ("R2", "r2", "R²"):
        assert evalmode.compare(one, one, margin={name: 0.1}, metric=name)["R²"].margin == 0.1


def test_margins_by_name_and_in_any_spelling() -> None:
    rng = np.random.default_rng(5)
    rows = {ACCURACY: rng.random(60) < 0.5, LOSS: rng.random(60)}
    comparison = evalmode.compare(result(rows), result(rows), margin={"log_loss": 0.5})
    assert comparison["log loss"].margin == 0.5 and comparison["accuracy"].margin is None
    only = evalmode.compare(result(rows), result(rows), metric="Log-Loss")
    assert [effect.metric for effect in only.effects] == ["log loss"]
    both = evalmode.compare(result(rows), result(rows), metric=[LOSS, "accuracy"])
    assert [effect.metric for effect in both.effects] == ["log loss", "accuracy"]


def test_groups_are_resampled_whole() -> None:
    rng = np.random.default_rng(6)
    patient = np.repeat(np.arange(12), 20)
    base = rng.random(240)
    shifted = base + 0.3 * rng.standard_normal(12)[patient]
    columns = {"patient": patient}
    alone = evalmode.compare(losses(base, columns=columns), losses(shifted, columns=columns))["log loss"]
    grouped = evalmode.compare(losses(base, columns=columns), losses(shifted, columns=columns), groups="patient")
    by_array = evalmode.compare(losses(base), losses(shifted), groups=patient)
    wide = grouped["log loss"]
    assert wide.high - wide.low > 2 * (alone.high - alone.low)
    assert (wide.low, wide.high) == (by_array["log loss"].low, by_array["log loss"].high)
    with pytest.raises(ComparisonError, match="no column 'ward'"):
        evalmode.compare(losses(base, columns=columns), losses(shifted, columns=columns), groups="ward")
    with pytest.raises(UsageError, match="groups has shape"):
        evalmode.compare(losses(base), losses(shifted), groups=[1, 2])


A = decisions([True, False, True, True], target=[0, 1, 2, 0])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (decisions([True] * 3), "b has not 1 sample (3) of a"),
        (decisions([True] * 5), "a has not 1 sample (4) of b"),
        (decisions([True] * 4, ids=[0, 1, 7, 8]), "2 samples (2, 3) of a, and a has not 2 samples (7, 8) of b"),
        (decisions([True] * 4, ids=[0, 1, 1, 2]), "b has 1 sample (1) more than once"),
        (decisions([True] * 4, ids=["0", "1", "2", "3"]), "whole numbers in a and text in b"),
        (decisions([True] * 4, target=[0, 1, 2, 2]), "b has other targets than a for 1 sample (3)"),
        (decisions([True] * 4, target=[[0], [1], [2], [0]]), "the targets have shape (4,) in a and (4, 1) in b"),
        (losses([1.0] * 4, target=[0, 1, 2, 0]), "no metric in common: a has 'accuracy'; b has 'log loss'"),
        (Evaluation(record=EvaluationRecord(samples=4, batch_size=4)), "b has kept its figures alone"),
        (
            Evaluation(record=EvaluationRecord(samples=4, batch_size=4), samples=Samples(np.arange(4))),
            "b has kept no metric",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said_with_what_differs_and_the_fix(other: Evaluation, said: str) -> None:
    with pytest.raises(ComparisonError) as caught:
        evalmode.compare(A, other, names=["a", "b"])
    assert said in str(caught.value)
    assert caught.value.fix and caught.value.expected


def test_skipped_samples_are_named_as_the_reason() -> None:
    short = decisions([True] * 3, target=[0, 1, 2], skipped=1)
    with pytest.raises(ComparisonError, match="short has skipped 1 bad sample"):
        evalmode.compare(A, short, names=["whole", "short"])


def test_a_metric_of_another_kind_under_the_same_name_is_refused() -> None:
    number = result({Metric("accuracy", unread, Aggregate.MEAN): np.ones(4)}, target=[0, 1, 2, 0])
    with pytest.raises(ComparisonError, match="accuracy is a proportion in one result and a mean in"):
        evalmode.compare(A, number)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "f1"}, "has kept no metric 'f1'"),
        ({"metric": []}, "no metric is named"),
        ({"metric": 3}, "metric is"),
        ({"margin": 0}, "the margin of accuracy is 0"),
        ({"margin": -0.1}, "-0.1"),
        ({"margin": float("nan")}, "nan"),
        ({"margin": True}, "True"),
        ({"margin": 1}, "no difference of two shares is larger"),
        ({"margin": {"Accuracy": 1.5}}, "the margin of accuracy is 1.5"),
        ({"margin": {"f1": 0.1}}, "margin names 'f1'"),
        ({"confidence": 95}, "confidence is 95"),
        ({"names": ["one"]}, "names is"),
        ({"names": ["one", "one"]}, "names is"),
        ({"batch_size": 3}, "batch_size= beside results"),
    ],
)
def test_misuse_says_what_is_wrong(options: dict[str, Any], said: str) -> None:
    with pytest.raises((UsageError, ComparisonError, TypeError)) as caught:
        evalmode.compare(A, A, **options)
    if not isinstance(caught.value, TypeError):
        assert said in str(caught.value)
    else:
        assert options == {"metric": 3}


@pytest.mark.parametrize("wrong", [3, None, nn.Linear, [1.0]])
def test_something_else_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="compare got"):
        evalmode.compare(A, wrong)


def test_nan_targets_beside_nan_are_the_same() -> None:
    target = [0.5, float("nan"), 1.0]
    one, other = losses([1.0, 2.0, 3.0], target=target), losses([1.5, 2.0, 2.0], target=target)
    assert evalmode.compare(one, other).samples == 3
    with pytest.raises(ComparisonError, match="other targets"):
        evalmode.compare(one, losses([1.0, 2.0, 3.0], target=[0.5, 0.0, 1.0]))


def test_results_without_targets_are_matched_by_id_and_that_is_said() -> None:
    bare = dataclasses.replace(A, samples=dataclasses.replace(A.samples, target=None), subject="bare")
    comparison = evalmode.compare(A, bare)
    assert comparison.notes == ("no targets were kept of bare: the samples were matched by their ids alone",)
    assert "matched by their ids alone" in " ".join(str(comparison).split())


class Scores(nn.Module):
    """Reads the answer off its inputs, with some noise of its own."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.noise * x.roll(1, 1)


def task_data(samples: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    target = torch.arange(samples) % 3
    return torch.nn.functional.one_hot(target, 3) + 0.6 * torch.randn(samples, 3, generator=generator), target


def test_models_are_evaluated_on_the_same_data_first(tmp_path: Path) -> None:
    good, bad = Scores(0.0), Scores(0.9)
    comparison = evalmode.compare(good, bad, data=task_data(), names=["good", "bad"], progress=False)
    inputs, target = task_data()
    right = [(model(inputs).argmax(1) == target).numpy() for model in (good, bad)]
    effect = comparison["accuracy"]
    assert effect.effect == pytest.approx(right[1].mean() - right[0].mean())
    assert effect.p_value == pytest.approx(
        binomtest(int((right[1] & ~right[0]).sum()), int((right[0] ^ right[1]).sum())).pvalue
    )
    assert effect.flipped.lost.tolist() == np.flatnonzero(right[0] & ~right[1]).tolist()
    as_task = evalmode.compare(
        Task(model=good, test_data=task_data()), bad, data=Task(model=good, test_data=task_data()), progress=False
    )
    assert as_task["accuracy"].effect == effect.effect
    kept = evalmode.evaluate(good, task_data(), progress=False)
    assert evalmode.compare(kept, bad, data=task_data(), progress=False)["accuracy"].effect == effect.effect


def test_a_model_without_data_is_refused() -> None:
    with pytest.raises(ComparisonError, match="without data"):
        evalmode.compare(Scores(0.0), Scores(0.1))


def test_kept_predictions_give_the_same_comparison(tmp_path: Path) -> None:
    paths = [tmp_path / "old.parquet", tmp_path / "new.parquet"]
    kept = [
        evalmode.evaluate(Scores(noise), task_data(), keep_predictions=path, progress=False)
        for noise, path in zip((0.9, 0.1), paths, strict=True)
    ]
    from_files, in_memory = evalmode.compare(*paths), evalmode.compare(*kept)
    assert from_files.labels == ("old", "new")
    for one, two in zip(from_files.effects, in_memory.effects, strict=True):
        assert (one.metric, one.effect, one.low, one.high, one.p_value) == (
            two.metric, two.effect, two.low, two.high, two.p_value
        )  # fmt: skip
        if one.flipped is not None:
            assert one.flipped.gained.tolist() == two.flipped.gained.tolist()


def test_json_holds_everything() -> None:
    comparison = evalmode.compare(*flipping(20, 2, 9, 1), margin=0.5)
    read = json.loads(comparison.to_json())
    assert read["ok"] is True and read["samples"] == 32
    (effect,) = read["effects"]
    assert effect["flipped"]["gained"] == list(range(22, 31)) and effect["flipped"]["lost"] == [20, 21]
    assert effect["effect"] == comparison["accuracy"].effect
    assert effect["outcome"] == str(comparison["accuracy"].outcome)
    assert effect["p_value"] == pytest.approx(binomtest(9, 11).pvalue)


def test_a_share_of_ones_own_is_judged_by_what_its_author_says() -> None:
    """More errors are not better: a share may count what is wrong."""
    torch.manual_seed(0)
    inputs, weight = torch.randn(300, 4), torch.randn(4, 3)
    target = (inputs @ weight).argmax(1)
    right, wrong = nn.Linear(4, 3, bias=False).eval(), nn.Linear(4, 3).eval()
    with torch.no_grad():
        right.weight.copy_(weight.T)
    metrics = {"error": lambda outputs, target: outputs.argmax(1) != target}
    options: dict[str, Any] = {"data": (inputs, target), "metrics": metrics, "progress": False}
    told = evalmode.compare(right, wrong, higher_is_better=False, **options)
    assert [effect.outcome for effect in told.effects] == [Outcome.WORSE]
    assert not told.ok
    assert "now wrong" in str(told)
    untold = evalmode.compare(right, wrong, **options)
    assert [effect.outcome for effect in untold.effects] == [Outcome.DIFFERENT]
    assert "now true" in str(untold)


def test_a_metric_that_is_asked_for_is_measured_first() -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(60, 4, generator=generator), torch.randint(3, (60,), generator=generator)
    torch.manual_seed(0)
    models = nn.Linear(4, 3), nn.Linear(4, 3)
    found = evalmode.compare(*models, data=data, metric="macro F1", progress=False)
    assert [effect.metric for effect in found.effects] == ["macro F1"]
    first = evalmode.evaluate(models[0], data, metrics=["macro F1"], progress=False)
    assert found.effects[0].first_value == first["macro F1"].value
    task = Task(model=models[0], test_data=lambda: data, metrics=["accuracy"])
    found = evalmode.compare(task, models[1], data=task, metric="log loss", progress=False)
    assert [effect.metric for effect in found.effects] == ["log loss"]


def test_a_metric_of_a_tasks_own_is_left_to_the_task() -> None:
    data = torch.eye(3).repeat(8, 1), torch.arange(24) % 3
    metrics = {"accuracy": lambda outputs, target: outputs.argmax(1) != target}
    task = Task(model=nn.Identity(), test_data=lambda: data, metrics=metrics)
    found = evalmode.compare(task, nn.Identity(), data=task, metric="accuracy", progress=False)
    assert found.effects[0].first_value == 0.0


def test_the_metric_that_is_given_decides_what_is_measured_and_what_is_better() -> None:
    hits = Metric(
        "errors", lambda outputs, target: outputs.argmax(1) != target, Aggregate.PROPORTION, higher_is_better=False
    )
    data = torch.eye(3).repeat(8, 1), torch.arange(24) % 3
    bad = nn.Linear(3, 3)
    nn.init.zeros_(bad.weight), nn.init.zeros_(bad.bias)
    found = evalmode.compare(nn.Identity(), bad, data=data, metric=hits, progress=False)
    assert (found["errors"].outcome, found["errors"].first_value, found.ok) == (Outcome.WORSE, 0.0, False)
    kept = decisions(np.arange(40) % 2 == 0), decisions(np.ones(40, bool))
    named = Metric("accuracy", unread, Aggregate.PROPORTION, higher_is_better=True)
    assert evalmode.compare(*kept, metric=named)["accuracy"].outcome is Outcome.BETTER


@pytest.mark.parametrize(
    "given",
    [
        Metric("accuracy", unread, Aggregate.MEAN, higher_is_better=True),
        Metric("accuracy", unread, Aggregate.PROPORTION, higher_is_better=False),
    ],
)
def test_a_metric_other_than_the_one_that_was_kept_is_refused(given: Metric) -> None:
    kept = decisions(np.arange(40) % 2 == 0), decisions(np.ones(40, bool))
    with pytest.raises(ComparisonError, match=r"that was given is a [\s\S]* the results have kept a proportion"):
        evalmode.compare(*kept, metric=given)


def test_a_direction_other_than_the_metrics_own_is_refused() -> None:
    kept = decisions(np.arange(40) % 2 == 0), decisions(np.ones(40, bool))
    with pytest.raises(UsageError, match="higher_is_better=False for accuracy, of which higher is better"):
        evalmode.compare(*kept, metric="accuracy", higher_is_better=False)
    assert evalmode.compare(*kept, higher_is_better=False)["accuracy"].outcome is Outcome.BETTER


def test_r_squared_is_found_under_the_name_that_keyboards_have() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=draw)
    found = evalmode.compare(
        nn.Linear(4, 1), nn.Linear(4, 1), data=(inputs, inputs.sum(1)), metric="R2", progress=False
    )
    assert [effect.metric for effect in found.effects] == ["R\u00b2"]


class Sure(nn.Module):
    """Probabilities, or none at all for the class of the first sample."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong

    def forward(self, inputs):
        shares = torch.softmax(inputs, 1)
        none = torch.tensor([0.0, 0.5, 0.5])
        return torch.where(inputs[:, :1] == 7, none, shares) if self.wrong else shares


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_loss_that_is_infinite_is_worse_than_one_that_is_not(wrong):
    inputs = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    inputs[0, 0] = 7
    target = torch.arange(100) % 3
    models = [Sure(wrong=number == wrong) for number in (0, 1)]
    found = evalmode.compare(*models, data=(inputs, target), metric="log loss of probabilities", progress=False)
    assert math.isinf(found.effects[0].effect)
    assert found.ok == (wrong == 0)
    assert ("WORSE" in str(found)) == (wrong == 1)
