from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from evalmode.errors import UsageError
from evalmode.measure.metric import Aggregate
from evalmode.optimization.task_data import task_data
from evalmode.optimization.task_margin import (
    LEFT_OUT,
    Answers,
    Figure,
    Refutation,
    decisions_of,
    demand_data,
    samples_needed,
    verify_task,
)
from evalmode.optimization.tolerance import Tolerance

TASK = Tolerance("task")


def decided(total: int, changed: int = 0) -> Answers:
    answers = torch.zeros(total, dtype=torch.long)
    answers[:changed] = 1
    return Answers(answers)


@given(total=st.integers(20, 900), changed=st.integers(0, 20), candidates=st.integers(1, 30))
def test_changed_decisions_are_bounded_exactly_and_for_all_candidates(
    total: int, changed: int, candidates: int
) -> None:
    found = verify_task(decided(total), decided(total, changed), TASK, candidates=candidates)
    bound = beta.ppf(1 - 0.05 / candidates, changed + 1, total - changed) if changed < total else 1.0
    assert found.accepted == (bound <= 0.02)
    assert found.margin == pytest.approx(bound / 0.02)
    assert found.strength == "task-equal"
    assert found.samples == total


@pytest.mark.parametrize("candidates", [1, 10])
def test_the_fewest_samples_that_show_it(candidates: int) -> None:
    needed = samples_needed(TASK, candidates)
    assert verify_task(decided(needed), decided(needed), TASK, candidates=candidates).accepted
    refused = verify_task(decided(needed - 1), decided(needed - 1), TASK, candidates=candidates)
    assert not refused.accepted
    assert f"{needed} samples without a change would do" in refused.reason


def test_the_margin_can_be_set() -> None:
    assert not verify_task(decided(300), decided(300, 9), TASK).accepted
    assert verify_task(decided(300), decided(300, 9), Tolerance("task", decisions=0.1)).accepted


def test_many_decisions_a_sample_count_as_a_share() -> None:
    plain = torch.zeros(400, 10, 10, dtype=torch.long)
    some = plain.clone()
    some[:, 0, 0] = 1  # one of a hundred in every sample
    assert verify_task(Answers(plain), Answers(some), Tolerance("task", decisions=0.03)).accepted
    some[:, :1] = 1  # ten of them
    assert not verify_task(Answers(plain), Answers(some), Tolerance("task", decisions=0.03)).accepted


def proportion(values: np.ndarray, better: bool | None = True) -> Answers:
    return Answers(None, {"accuracy": Figure(values.astype(bool), Aggregate.PROPORTION, better)})


def test_lost_accuracy_is_found_and_gained_accuracy_is_not_held_against_a_candidate() -> None:
    right = np.ones(2000)
    right[:400] = 0
    worse, better = right.copy(), right.copy()
    worse[400:440] = 0
    better[:40] = 1
    assert verify_task(proportion(right), proportion(right), TASK).accepted
    assert not verify_task(proportion(right), proportion(worse), TASK).accepted
    assert verify_task(proportion(right), proportion(better), TASK).accepted
    assert not verify_task(proportion(right, None), proportion(better, None), TASK).accepted
    assert not verify_task(proportion(right, False), proportion(better, False), TASK).accepted


def test_the_bound_of_lost_accuracy_holds_as_often_as_it_says() -> None:
    """Where the true loss is just above the margin, a candidate is accepted at most once in twenty times."""
    stream = np.random.default_rng(0)
    accepted = 0
    for _ in range(200):
        draw = stream.random(1500)
        before, after = draw < 0.9, (draw < 0.88) | (draw > 0.991)
        accepted += verify_task(proportion(before), proportion(after), TASK).accepted
    assert accepted <= 14  # 5 % of 200, and two standard deviations


def figure(values: np.ndarray, aggregate: Aggregate, better: bool | None = False) -> Answers:
    return Answers(None, {"loss": Figure(values, aggregate, better)})


@pytest.mark.parametrize("aggregate", [Aggregate.MEAN, Aggregate.ROOT_MEAN])
def test_a_mean_may_lose_a_share_of_itself(aggregate: Aggregate) -> None:
    values = np.random.default_rng(1).exponential(size=600)
    noisy = values * (1 + 0.001 * np.random.default_rng(2).standard_normal(600))
    assert verify_task(figure(values, aggregate), figure(noisy, aggregate), TASK).accepted
    assert verify_task(figure(values, aggregate), figure(values, aggregate), TASK).accepted
    assert not verify_task(figure(values, aggregate), figure(values * 1.05, aggregate), TASK).accepted
    assert verify_task(figure(values, aggregate), figure(values * 0.9, aggregate), TASK).accepted
    assert not verify_task(figure(values, aggregate, None), figure(values * 0.9, aggregate, None), TASK).accepted


def test_a_metric_that_is_not_finite_is_no_metric() -> None:
    values = np.ones(300)
    other = values.copy()
    other[3] = np.nan
    found = verify_task(figure(values, Aggregate.MEAN), figure(other, Aggregate.MEAN), TASK)
    assert not found.accepted
    assert "not finite" in found.reason


def test_decisions_and_metrics_both_have_to_hold() -> None:
    right = np.ones(1000, dtype=bool)
    plain = Answers(torch.zeros(1000).long(), {"accuracy": Figure(right, Aggregate.PROPORTION, True)})
    wrong = right.copy()
    wrong[:30] = False
    other = Answers(torch.zeros(1000).long(), {"accuracy": Figure(wrong, Aggregate.PROPORTION, True)})
    assert verify_task(plain, plain, TASK).accepted
    assert not verify_task(plain, other, TASK).accepted


@pytest.mark.parametrize(
    ("outputs", "shape"),
    [
        (torch.randn(5, 3), (5,)),
        (torch.randn(5, 7, 3), (5, 7)),
        (torch.randn(5, 3, 4, 4), (5, 4, 4)),
        (torch.arange(5), (5,)),
    ],
)
def test_decisions_of_scores(outputs: torch.Tensor, shape: tuple[int, ...]) -> None:
    found = decisions_of(outputs)
    assert found is not None
    assert found.shape == shape


@pytest.mark.parametrize("outputs", [torch.randn(5), torch.randn(5, 1), torch.randn(5, 2, dtype=torch.complex64)])
def test_values_are_no_decisions(outputs: torch.Tensor) -> None:
    assert decisions_of(outputs) is None


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="neither decisions nor a metric"):
        verify_task(Answers(None), Answers(None), TASK)
    with pytest.raises(UsageError, match="different kinds"):
        verify_task(decided(5), Answers(None), TASK)
    with pytest.raises(UsageError, match="shape"):
        verify_task(decided(5), decided(6), TASK)
    with pytest.raises(UsageError, match="without data"):
        demand_data(None)
    demand_data([1])


@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 6, 6), (4, 6, 1)])
def test_one_channel_is_no_decision(shape):
    assert decisions_of(torch.randn(shape)) is None


@pytest.mark.parametrize("samples", [1, 4, 148])
def test_a_figure_that_moves_nowhere_says_nothing_of_few_samples(samples):
    same = Answers(None, {"hit": Figure(np.ones(samples), Aggregate.MEAN, True)})
    found = verify_task(same, same, Tolerance("task"))
    assert not found.accepted
    assert f"moves on none of {samples} samples, of which 149 would tell" in found.reason


def test_a_figure_that_moves_nowhere_is_taken_from_enough_samples():
    same = Answers(None, {"hit": Figure(np.ones(149), Aggregate.MEAN, True)})
    assert verify_task(same, same, Tolerance("task")).accepted


def test_what_does_not_count_dilutes_no_share_of_changed_decisions():
    plain = torch.zeros(400, 10, dtype=torch.int64)
    plain[:, 1:] = LEFT_OUT
    changed = plain.clone()
    changed[:40, 0] = 1
    found = verify_task(Answers(plain), Answers(changed), Tolerance("task"))
    assert not found.accepted
    assert "10 % of decisions change" in found.reason


def test_batches_of_different_lengths_and_ignored_positions_are_compared():
    draw = torch.Generator().manual_seed(0)
    batches = [(torch.randn(200, length, 5, generator=draw), torch.zeros(200, length).long()) for length in (4, 7)]
    batches[1][1][:, 2:] = -100
    data = task_data(batches, None, lambda scores: scores)
    assert data.plain.decisions.shape == (400, 7)
    assert int((data.plain.decisions == LEFT_OUT).sum()) == 200 * 3 + 200 * 5
    assert verify_task(data.plain, data.answers(lambda scores: scores), Tolerance("task")).accepted
    assert not verify_task(data.plain, data.answers(lambda scores: -scores), Tolerance("task")).accepted


@pytest.mark.parametrize("spoil", [lambda x: -x, lambda x: x * torch.nan, lambda x: x * 1.2, lambda x: x[:, :1]])
def test_outputs_that_decide_nothing_are_compared_too(spoil):
    scores = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    data = task_data((scores, None), None, lambda x: {"logits": x, "boxes": 3 * x})
    near = data.answers(lambda x: {"logits": x, "boxes": (3 * x).bfloat16().float()})
    assert verify_task(data.plain, near, Tolerance("task")).accepted
    found = verify_task(data.plain, data.answers(lambda x: {"logits": x, "boxes": spoil(3 * x)}), Tolerance("task"))
    assert not found.accepted
    assert "boxes" in found.reason


@given(total=st.integers(64, 600), changed=st.integers(0, 30), seen=st.integers(1, 400), candidates=st.integers(1, 12))
def test_what_is_refuted_early_fails_whatever_comes(total: int, changed: int, seen: int, candidates: int) -> None:
    changed, seen = min(changed, total), min(seen, total)
    plain, other = decided(total), decided(total, changed)
    assert plain.decisions is not None and other.decisions is not None
    why = Refutation(plain, TASK, candidates).add(other.decisions[:seen])
    if why:
        assert not verify_task(plain, other, TASK, candidates=candidates).accepted
    elif seen >= changed > 0 and seen < total:  # all changes are seen: the whole says the same
        assert verify_task(plain, other, TASK, candidates=candidates).accepted


def test_a_candidate_that_is_refuted_answers_no_more_of_the_data() -> None:
    scores = torch.randn(1024, 5, generator=torch.Generator().manual_seed(0))
    data = task_data((scores, None), None, lambda x: x)
    calls: list[int] = []

    def wrong(given: torch.Tensor) -> torch.Tensor:
        calls.append(len(given))
        return -given

    found = data.answers(wrong, Refutation(data.plain, TASK, 3).add)
    assert calls == [64]
    verification = verify_task(data.plain, found, TASK, candidates=3)
    assert not verification.accepted
    assert "of the first 64 samples change" in verification.reason
    whole = data.answers(lambda x: x, Refutation(data.plain, TASK).add)
    assert verify_task(data.plain, whole, TASK).accepted


def test_slow_models_answer_as_much_of_the_data_as_time_allows_and_the_bounds_need() -> None:
    scores = torch.randn(2048, 5, generator=torch.Generator().manual_seed(0))
    now = [0.0]

    def slow(given: torch.Tensor) -> torch.Tensor:
        now[0] += len(given) / 10
        return given

    data = task_data((scores, None), None, slow, seconds=20, least=149, clock=lambda: now[0])
    assert data.count == 256  # the first batch that is whole after 20 s, and at least 149
    assert data.plain.decisions is not None and len(data.plain.decisions) == 256
    assert "the first 256 samples" in data.note
    few = task_data((scores, None), None, slow, seconds=0.0, least=149, clock=lambda: now[0])
    assert few.count == 192
    assert task_data((scores, None), None, slow, clock=lambda: now[0]).note == ""


@pytest.mark.parametrize(("changed", "candidates"), [(1, 1), (1, 10), (4, 10)])
def test_who_is_refuted_for_want_of_samples_is_told_how_many_would_do(changed: int, candidates: int) -> None:
    plain, other = decided(290), decided(290, changed)
    assert other.decisions is not None
    why = Refutation(plain, TASK, candidates).add(other.decisions[:280])
    found = re.search(r"; (\d+) samples could show", why)
    if not why:
        assert candidates == 1
        return
    assert found is not None
    enough = int(found[1])
    assert verify_task(decided(enough), decided(enough, changed), TASK, candidates=candidates).accepted
    assert not verify_task(decided(enough - 1), decided(enough - 1, changed), TASK, candidates=candidates).accepted


def test_batch_by_batch_says_what_all_at_once_would() -> None:
    draw = torch.Generator().manual_seed(0)
    plain = torch.zeros(600, 20, dtype=torch.long)
    plain[:, 15:] = LEFT_OUT
    plain[::7] = LEFT_OUT
    other = torch.where(torch.rand(plain.shape, generator=draw) < 0.05, 1, plain).where(plain != LEFT_OUT, plain)
    steps = Refutation(Answers(plain), TASK, 3)
    said = [steps.add(other[start : start + 50]) for start in range(0, 550, 50)]
    assert not said[0] and said[-1]
    assert Refutation(Answers(plain), TASK, 3).add(other[:550]) == said[-1]
    assert not verify_task(Answers(plain), Answers(other), TASK, candidates=3).accepted
