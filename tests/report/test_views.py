"""What the page's rows and plots are made of, against brute force and numpy."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalmode.certificate import (
    CalibrationBin,
    Certificate,
    ClauseResult,
    ConfusionRecord,
    Environment,
    EvaluationRecord,
    MetricRecord,
    ModelRecord,
    OptimizationRecord,
    PlanRecord,
    SliceRecord,
)
from evalmode.clause import Verdict
from evalmode.report.batch_sizes import batch_sizes
from evalmode.report.confusions import confusions
from evalmode.report.contract import headline
from evalmode.report.evaluations import ImageBudget, evaluated, gap_of_bins
from evalmode.report.page import report_html
from evalmode.report.plans import plan_view
from evalmode.report.plots import log_ticks, pareto_svg, reliability_svg
from evalmode.report.wording import factor, figure, shown
from evalmode.terminal import certificate_text
from evalmode.terminal.model_card import card_text


def certificate_of(clause: ClauseResult) -> Certificate:
    machine = Environment(evalmode="", python="", torch="", device="", processor="", cores=1, threads=1, platform="")
    model = ModelRecord(name="Net", modules=1, parameters=1, bytes=4, fingerprint="")
    return Certificate(created="", subject="", model=model, environment=machine, clauses=(clause,))


@given(st.dictionaries(st.integers(1, 64), st.integers(0, 5), min_size=1, max_size=12))
def test_two_sizes_agree_on_the_page_exactly_where_their_class_is_the_same(home):
    classes = [[size for size in sorted(home) if home[size] == name] for name in sorted(set(home.values()))]
    gaps = [[10.0 ** -(3 + one + other) for other in range(one)] for one in range(len(classes))]
    measured = {"size classes": classes, "largest difference": 1e-3, "differences between classes": gaps}
    sizes = batch_sizes(
        certificate_of(ClauseResult(clause="batch-independent", verdict=Verdict.KEPT, measured=measured))
    )
    assert sizes.sizes == tuple(sorted(home))
    place = {size: position for position, members in enumerate(classes) for size in members}
    for one, row in zip(sizes.sizes, sizes.rows, strict=True):
        for other, cell in zip(sizes.sizes, row, strict=True):
            assert (cell.text == "=") is (home[one] == home[other])
            assert cell.words.startswith(f"{one} and {other}: ")
            if cell.text != "=":
                high, low = sorted((place[one], place[other]), reverse=True)
                assert float(cell.text) == pytest.approx(gaps[high][low])


def test_sizes_that_a_model_measures_are_drawn():
    import torch
    from torch import nn

    import evalmode

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    found = evalmode.check(model, torch.randn(8, 64), clauses=["batch-independent"]).certificate
    measured = found.clauses[0].measured
    classes, gaps = measured["size classes"], measured["differences between classes"]
    assert [len(row) for row in gaps] == list(range(len(classes)))
    assert all(gap > 0 for row in gaps for gap in row)
    assert max((gap for row in gaps for gap in row), default=0.0) <= measured["largest difference"]
    assert batch_sizes(found).sizes == tuple(sorted(size for members in classes for size in members))


counts = st.integers(1, 40).flatmap(
    lambda size: st.lists(st.lists(st.integers(0, 30), min_size=size, max_size=size), min_size=size, max_size=size)
)


@settings(max_examples=30)
@given(counts)
def test_a_confusion_matrix_loses_no_sample(rows):
    table = np.array(rows)
    labels = tuple(f"c{index}" for index in range(len(rows)))
    view = confusions(ConfusionRecord(labels=labels, counts=tuple(map(tuple, rows))))
    cells = np.array([[int(cell.text.replace(",", "")) for cell in row.cells] for row in view.rows])
    assert cells.sum() == table.sum()
    assert f"{table.sum() - table.trace():,} of" in view.sentence
    own = [index for index, label in enumerate(view.labels) if label in labels]
    chosen = [labels.index(view.labels[index]) for index in own]
    assert (cells[np.ix_(own, own)] == table[np.ix_(chosen, chosen)]).all()
    assert (cells[own].sum(1) == table[chosen].sum(1)).all()
    assert (cells[:, own].sum(0) == table[:, chosen].sum(0)).all()
    if len(rows) <= 24:
        assert view.labels == labels
    words = [cell.words for row in view.rows for cell in row.cells]
    assert sum(int(said.split(": ")[1].split(" ")[0].replace(",", "")) for said in words if said) == table.sum()
    errors = table.sum(1) + table.sum(0) - 2 * table.diagonal()
    assert min(errors[chosen]) >= max((errors[index] for index in range(len(rows)) if index not in chosen), default=0)
    wrong = sorted(table[one, other] for one in range(len(rows)) for other in range(len(rows)) if one != other)[::-1]
    assert [int(item[2].replace(",", "")) for item in view.frequent] == [int(item) for item in wrong if item > 0][:12]


@pytest.mark.parametrize("rows", [(), ((1,),), ((1, 2), (3,)), ((1, 2, 3), (1, 2, 3))])
def test_a_matrix_that_is_no_square_of_its_labels_is_not_drawn(rows):
    assert confusions(ConfusionRecord(labels=("a", "b"), counts=rows)) is None


@given(st.lists(st.tuples(st.integers(0, 99), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=15))
def test_the_gap_of_bins_is_the_weighted_mean_that_numpy_gives(found):
    bins = [CalibrationBin(low=0, high=1, count=count, confidence=sure, accuracy=right) for count, sure, right in found]
    weights, sure, right = np.array(found).T
    if weights.sum() == 0:
        assert gap_of_bins(bins) is None
    else:
        assert gap_of_bins(bins) == pytest.approx(np.average(np.abs(right - sure), weights=weights))


outcomes = st.sampled_from(["verified", "rejected", "unstable", "failed", "not tried"])
figures = st.one_of(st.none(), st.floats(1e-3, 1e4))


def record_of(plans: list[PlanRecord]) -> OptimizationRecord:
    return OptimizationRecord(
        tolerance="fp32", objective="latency", batch_sizes=(), execution_sizes=(), stable=True, plans=tuple(plans)
    )


@given(st.lists(st.tuples(outcomes, figures, figures), max_size=12))
def test_the_front_is_every_accepted_plan_that_none_beats(tried):
    plain = PlanRecord(name="plain", outcome="plain", speedup=1.0, error=1.0)
    others = [
        PlanRecord(name=f"p{index}", outcome=outcome, speedup=speedup, error=error)
        for index, (outcome, speedup, error) in enumerate(tried)
    ]
    view = plan_view(record_of([plain, *others]))
    able = [
        plan
        for plan in (plain, *others)
        if plan.outcome in {"plain", "verified"} and plan.speedup is not None and plan.error is not None
    ]

    def beaten(plan):
        return any(
            1 / other.speedup <= 1 / plan.speedup
            and other.error <= plan.error
            and (1 / other.speedup, other.error) != (1 / plan.speedup, plan.error)
            for other in able
        )

    expected = {(1 / plan.speedup, plan.error) for plan in able if not beaten(plan)}
    assert {(point.time, point.error) for point in view.frontier} == expected
    assert [row.position for row in view.rows] == list(range(1, len(others) + 2))
    assert [row.position for row in view.rows if row.drawn] == [point.position for point in view.points]


def places(svg: str) -> dict[str, tuple[float, float]]:
    """Where each point lies in the drawing, by its words."""
    found = {}
    for element in ET.fromstring(svg).iter():
        if "point" in (element.get("class") or "").split():
            across, down = re.fullmatch(r"translate\(([-0-9.e]+),([-0-9.e]+)\)", element.get("transform")).groups()
            assert element.get("tabindex") == "0"
            found[element.get("aria-label")] = (float(across), float(down))
    return found


def test_points_lie_where_their_figures_say():
    figures = [("plain", 1.0, 1.0), ("verified", 2.0, 0.5), ("verified", 4.0, 2.0), ("verified", 8.0, 4.0)]
    plans = [PlanRecord(name=f"p{index}", outcome=w, speedup=s, error=e) for index, (w, s, e) in enumerate(figures)]
    found = places(pareto_svg(plan_view(record_of(plans)), "plans"))
    across = [
        place[0]
        for speed in ("1.0×", "2.0×", "4.0×", "8.0×")
        for words, place in found.items()
        if f"; {speed} as" in words
    ]
    steps = -np.diff(across)
    assert steps == pytest.approx([steps[0]] * 3)  # halving the time is one step of a logarithmic axis
    down = {words.split("; ")[3]: place[1] for words, place in found.items()}
    step = down["1.0× its error"] - down["2.0× its error"]
    assert step > 0
    assert down["0.50× its error"] - down["1.0× its error"] == pytest.approx(step)
    assert down["2.0× its error"] - down["4.0× its error"] == pytest.approx(step)


def test_an_error_far_off_or_of_nothing_stands_at_the_edge_and_says_so():
    figures = [("plain", 1.0, 1.0), ("verified", 2.0, 0.0), ("rejected", 4.0, 1e9)]
    plans = [PlanRecord(name=f"p{index}", outcome=w, speedup=s, error=e) for index, (w, s, e) in enumerate(figures)]
    svg = pareto_svg(plan_view(record_of(plans)), "plans")
    found = {words.split("; ")[3]: place[1] for words, place in places(svg).items()}
    assert found["1.0e+09× its error"] < found["1.0× its error"] < found["0× its error"]
    assert "↑ 1.0e+09×" in "".join(ET.fromstring(svg).itertext())


def test_one_plan_makes_no_plot():
    assert pareto_svg(plan_view(record_of([PlanRecord(name="p", outcome="plain", speedup=1.0, error=1.0)])), "") == ""
    assert reliability_svg((), "") == ""
    assert plan_view(record_of([])).rows == ()


def test_bins_lie_where_their_figures_say():
    bins = [
        CalibrationBin(low=a / 10, high=a / 10 + 0.1, count=5, confidence=a / 10, accuracy=1 - a / 10)
        for a in (1, 3, 5, 9)
    ]
    found = list(places(reliability_svg(bins, "bins")).values())
    across, down = np.array(found).T
    assert np.corrcoef(across, [0.1, 0.3, 0.5, 0.9])[0, 1] == pytest.approx(1)
    assert np.corrcoef(down, [0.1, 0.3, 0.5, 0.9])[0, 1] == pytest.approx(1)


def test_a_bin_has_the_interval_of_its_samples_and_no_line_leads_to_it():
    from scipy.stats import binomtest

    bins = [
        CalibrationBin(low=0.2, high=0.3, count=1, confidence=0.25, accuracy=0.0),
        CalibrationBin(low=0.8, high=0.9, count=400, confidence=0.85, accuracy=0.8),
    ]
    svg = reliability_svg(bins, "bins")
    ideal, *more = re.findall(r'<g class="mark-line', svg)
    assert ideal and not more
    tall = [abs(float(found)) for found in re.findall(r'<line [^>]*x2="0" y2="([-.0-9]+)" stroke="var\(--accent', svg)]
    wanted = [np.ptp(binomtest(right, count).proportion_ci(0.95, "exact")) for right, count in ((0, 1), (320, 400))]
    assert np.divide(tall, tall[0]) == pytest.approx(np.divide(wanted, wanted[0]), rel=1e-6)
    assert "95 % interval 0.0 to 97.5%" in svg


@given(st.floats(1e-9, 1e9), st.floats(1.5, 1e15))
def test_ticks_lie_inside_and_are_few(low, ratio):
    ticks = log_ticks(low, low * ratio)
    assert len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert all(low <= tick <= low * ratio for tick in ticks)
    assert all(tick == float(f"{tick:.1e}") for tick in ticks)
    assert len(ticks) >= 3
    assert 1.0 in ticks or not low <= 1 <= low * ratio
    near = min(math.log(after / before) for before, after in itertools.pairwise(ticks))
    assert near >= 0.13 * math.log(ratio)


@given(st.text(max_size=2_000))
def test_any_text_is_shown_short_and_in_utf_8(text):
    found = shown(text)
    found.encode("utf-8")
    assert len(found) <= 400
    assert all(char.isprintable() or char == "\n" for char in found)


def test_long_names_keep_their_ends():
    name = "start" + "x" * 10_000 + "end"
    assert shown(name).startswith("start")
    assert shown(name).endswith("end")


@pytest.mark.parametrize(
    ("value", "text"), [(float("nan"), "not a number"), (float("inf"), "infinite"), (None, "–"), (0.0, "0×")]
)
def test_factors_that_are_no_measurement(value, text):
    assert factor(value) == text


def test_an_interval_that_is_missing_on_one_side_is_left_out():
    metric = MetricRecord(name="loss", value=0.5, low=0.1, high=None)
    assert figure(metric).interval == ""
    assert figure(metric).value == "0.5"


def test_images_are_taken_while_there_is_room():
    budget = ImageBudget(10)
    assert [budget.spend(6), budget.spend(6), budget.spend(4), budget.spend(1)] == [True, False, True, False]


SIZES = {"size classes": [[1], [2, 3]], "largest difference": 1e-3, "differences between classes": [[], [1e-3]]}


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (Verdict.KEPT, "which is rounding, not dependence"),
        (Verdict.UNDECIDED, "it is undecided whether that is rounding"),
        (Verdict.BROKEN, "depends on its companions"),
    ],
)
def test_sizes_that_differ_are_called_rounding_only_where_that_was_shown(verdict, words):
    found = batch_sizes(certificate_of(ClauseResult(clause="batch-independent", verdict=verdict, measured=SIZES)))
    assert words in found.sentence


def test_one_size_has_nothing_to_be_compared_with():
    measured = {"size classes": [[8]], "largest difference": 0.0, "differences between classes": [[]]}
    clause = ClauseResult(clause="batch-independent", verdict=Verdict.KEPT, measured=measured)
    assert "nothing to compare" in batch_sizes(certificate_of(clause)).sentence


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        ([Verdict.KEPT, Verdict.UNDECIDED], "kept"),
        ([Verdict.UNDECIDED, Verdict.ALLOWED], "undecided"),
        ([Verdict.ALLOWED, Verdict.NOT_TESTED], "allowed"),
        ([Verdict.NOT_TESTED], "not tested"),
        ([Verdict.KEPT, Verdict.BROKEN], "broken"),
        ([], "not tested"),
    ],
)
def test_the_verdict_on_the_whole_is_the_same_everywhere(verdicts, word):
    clauses = tuple(ClauseResult(clause=f"clause {place}", verdict=verdict) for place, verdict in enumerate(verdicts))
    certificate = msgspec.structs.replace(
        certificate_of(ClauseResult(clause="x", verdict=Verdict.KEPT)), clauses=clauses
    )
    assert str(certificate.verdict) == word
    assert headline(certificate).word == word
    closing = certificate_text(certificate, width=80, color=False).splitlines()
    assert any(line.startswith(word.upper()) for line in closing)
    shown_card = card_text(certificate, ())
    assert f"**{word}**" in shown_card if word != "not tested" else "not tested" in shown_card


def slices_of(parts: list[list[MetricRecord]], whole: list[MetricRecord], budget: int = 400):
    record = EvaluationRecord(
        samples=100,
        batch_size=1,
        metrics=tuple(whole),
        slices=tuple(
            SliceRecord(by="part", name=str(place), samples=10, metrics=tuple(metrics))
            for place, metrics in enumerate(parts)
        ),
    )
    return evaluated(record, ImageBudget(10, budget)).slices


def accuracy(value: float) -> MetricRecord:
    return MetricRecord(name="accuracy", value=value, low=value - 0.07, high=value + 0.07, count=5, total=10)


def test_the_whole_lies_where_it_is_beside_slices_that_are_all_worse():
    found = slices_of([[accuracy(0.52)]], [accuracy(0.84)])
    bar = found.first[0].bar
    assert bar.low < bar.value < bar.high < bar.reference
    assert found.scale == "45 to 84 %"


def test_a_slice_that_lacks_the_first_metric_changes_no_unit():
    auroc = MetricRecord(name="AUROC", value=0.61, low=0.5, high=0.7)
    found = slices_of([[auroc], [accuracy(0.5)]], [auroc])
    assert found.scale == "0.5 to 0.7"


def test_many_evaluations_share_the_rows_of_slices():
    budget = ImageBudget(10, 500)
    record = EvaluationRecord(
        samples=100,
        batch_size=1,
        metrics=(accuracy(0.5),),
        slices=tuple(
            SliceRecord(by="part", name=str(place), samples=10, metrics=(accuracy(0.5),)) for place in range(400)
        ),
    )
    shown_rows = [
        len(found.slices.first) + len(found.slices.rest) for found in (evaluated(record, budget) for _ in range(4))
    ]
    assert sum(shown_rows) <= 500 + 2 * 12
    assert shown_rows[0] == 400


def test_figures_of_another_model_do_not_stand_beside_the_verdict():
    import dataclasses

    @dataclasses.dataclass
    class Given:
        record: EvaluationRecord
        model: ModelRecord | None
        subject: str = "other.py"
        environment: Environment | None = None

    mine = certificate_of(ClauseResult(clause="finite", verdict=Verdict.KEPT))
    mine = msgspec.structs.replace(mine, model=msgspec.structs.replace(mine.model, fingerprint="a" * 64))
    record = EvaluationRecord(samples=10, batch_size=1, metrics=(accuracy(0.5),))
    other = Given(record, msgspec.structs.replace(mine.model, fingerprint="b" * 64))
    same = Given(record, mine.model)
    facts = r'<dl class="facts"'
    with_other, with_same = report_html(mine, [other]), report_html(mine, [same])
    assert "Of other weights" in with_other
    head = with_other.split("Contract")[0]
    assert "50.0" not in head
    assert "50.0" in with_same.split("Contract")[0]
    assert facts not in head or "accuracy" not in head


def test_a_page_of_evaluations_alone_has_their_machine():
    import dataclasses

    @dataclasses.dataclass
    class Given:
        record: EvaluationRecord
        model: ModelRecord
        environment: Environment
        subject: str = "task.py"

    certificate = certificate_of(ClauseResult(clause="finite", verdict=Verdict.KEPT))
    machine = msgspec.structs.replace(certificate.environment, processor="Babbage 1", torch="2.13.0")
    record = EvaluationRecord(samples=10, batch_size=1, metrics=(accuracy(0.5),))
    page = report_html(None, [Given(record, certificate.model, machine)])
    assert "Babbage 1" in page
    assert "Environment" in page


def test_an_optimization_without_plans_is_said_in_the_terminal_and_the_card():
    certificate = certificate_of(ClauseResult(clause="finite", verdict=Verdict.KEPT))
    certificate = msgspec.structs.replace(certificate, optimization=record_of([]))
    assert "no plan was tried" in certificate_text(certificate, width=80, color=False)
    assert "Speed" not in card_text(certificate, ())
