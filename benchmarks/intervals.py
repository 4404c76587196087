"""Do the intervals hold as often as they say, and the comparisons find what is there and nothing else?

Test sets are drawn from populations whose figure is known, and counted is how often a 95 % interval holds it. Clopper-
Pearson has to hold at least 95 %, up to the noise of the simulation; the others 93 to 97 % for 200 samples and more
with light tails; where tails are heavy, samples few, or a figure biased, the table says how it is. Comparisons are
simulated with no difference (how often is one found?) and with one (how often is it found?).

The intervals are made as always, but of 999 resamples instead of 9,999: a tenth of the time, and a little noise more.

    python benchmarks/intervals.py
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import scipy.integrate
import scipy.stats
from numpy.typing import NDArray

import evalmode
from evalmode.errors import UndefinedFigureError
from evalmode.measure import bootstrap, intervals
from evalmode.measure.catalog import METRICS
from evalmode.measure.metric import Metric
from evalmode.measure.paired import paired
from evalmode.measure.summary import metric_record

RESULTS = Path(__file__).parent / "results" / "intervals.md"
RESAMPLES, LIBRARY_RESAMPLES = 999, intervals.RESAMPLES
LARGE = 1_000_000
"""Samples from which a population's figure is taken where no formula gives it."""

Rows = NDArray[Any]
Draw = Callable[[np.random.Generator, int], tuple[Rows, Rows | None]]
"""`(generator, samples) -> rows of a metric, and the cluster of each or None`."""


@dataclass(frozen=True)
class Population:
    """Where test sets come from. `truth` is its figure, or None to take it from many samples; `held` are the bounds
    that coverage must lie in for the sizes of at least `light` samples, None where the table only reports."""

    name: str
    metric: str
    draw: Draw
    truth: float | None = None
    sizes: tuple[int, ...] = (50, 200, 1000)
    light: int | None = 200


def classes(generator: np.random.Generator, size: int, share: float, right: float) -> tuple[Rows, None]:
    """Target and answer: class 1 with probability `share`, each answered right with probability `right`."""
    target = generator.random(size) < share
    answer = np.where(generator.random(size) < right, target, ~target)
    return np.stack([target, answer], axis=1).astype(float), None


def scores(generator: np.random.Generator, size: int, share: float, shift: float) -> tuple[Rows, None]:
    """A score and 1 for positives, whose scores are higher by `shift` standard deviations."""
    positive = generator.random(size) < share
    return np.stack([generator.normal(size=size) + shift * positive, positive], axis=1), None


def confident(generator: np.random.Generator, size: int, bent: float) -> tuple[Rows, None]:
    """A probability of class 1 and what happened; with `bent` of 0 the probabilities are right."""
    share = generator.beta(1.0, 1.0, size)
    true = np.clip(share + bent * (0.5 - share), 0, 1)
    return np.stack([share, generator.random(size) < true], axis=1).astype(float), None


def regression(generator: np.random.Generator, size: int) -> tuple[Rows, None]:
    target = generator.normal(size=size)
    return np.stack([(0.5 * generator.normal(size=size)) ** 2, target], axis=1), None


def masks(generator: np.random.Generator, size: int) -> tuple[Rows, None]:
    """Intersections and unions of two classes in images of 100 places."""
    area = generator.binomial(100, generator.beta(2, 5, size))
    hit = generator.binomial(area, generator.beta(8, 2, size))
    alarm = generator.binomial(100 - area, 0.03)
    return np.stack([100 - area - alarm, hit, 100 - hit, area + alarm], axis=1).astype(float), None


def tokens(generator: np.random.Generator, size: int) -> tuple[Rows, None]:
    """Summed loss and number of tokens of sequences with a difficulty of their own."""
    length = generator.integers(5, 60, size)
    return np.stack([length * generator.gamma(8, 0.25, size), length], axis=1).astype(float), None


def grouped(generator: np.random.Generator, size: int, proportion: bool) -> tuple[Rows, Rows]:
    """Samples in groups of five that share half of their variance."""
    group = np.arange(size) // 5
    own = generator.normal(size=size // 5 + 1)[group] + generator.normal(size=size)
    return (own < 1.0 if proportion else 10 + own), group  # errors are not below 0


def coverage_populations() -> list[Population]:
    normal = scipy.stats.norm
    return [
        Population("right with 90 %", "accuracy", lambda g, n: (g.random(n) < 0.9, None), 0.9),
        Population("right with 99 %", "accuracy", lambda g, n: (g.random(n) < 0.99, None), 0.99),
        Population("normal", "mean absolute error", lambda g, n: (5 + g.normal(size=n), None), 5.0),
        Population("exponential", "log loss", lambda g, n: (g.exponential(size=n), None), 1.0),
        Population(
            "lognormal, sigma 1: heavy tail",
            "log loss",
            lambda g, n: (g.lognormal(0, 1, n), None),
            np.exp(0.5),
            light=None,
        ),
        Population("squared normal errors", "root mean squared error", lambda g, n: (g.normal(size=n) ** 2, None), 1.0),
        Population("correlated", "R²", regression, 0.75),
        Population("half positive", "AUROC", partial(scores, share=0.5, shift=1.0), float(normal.cdf(1 / np.sqrt(2)))),
        Population("10 % positive", "AUROC", partial(scores, share=0.1, shift=1.0), float(normal.cdf(1 / np.sqrt(2)))),
        Population("half positive", "average precision", partial(scores, share=0.5, shift=1.0)),
        Population("balanced, right with 85 %", "macro F1", partial(classes, share=0.5, right=0.85), 0.85),
        Population("30 % positive", "binary F1", partial(classes, share=0.3, right=0.85)),
        Population("20 % positive", "balanced accuracy", partial(classes, share=0.2, right=0.85), 0.85),
        Population("images of two classes", "mean IoU", masks),
        Population("images of two classes", "Dice", dice),
        Population("sequences", "token loss", tokens, 2.0),
        Population("sequences", "perplexity", tokens, float(np.exp(2.0))),
        Population("probabilities", "binary Brier score", brier, 1 / 6),
        Population("far from calibrated", "binary ECE", partial(confident, bent=0.8), light=None),
        Population("calibrated: biased", "binary ECE", partial(confident, bent=0.0), 0.0, light=None),
        Population("groups of 5", "mean absolute error", partial(grouped, proportion=False), 10.0, sizes=(200, 1000)),
        Population(
            "groups of 5",
            "accuracy",
            partial(grouped, proportion=True),
            float(normal.cdf(np.sqrt(0.5))),
            sizes=(200, 1000),
        ),
    ]


def dice(generator: np.random.Generator, size: int) -> tuple[Rows, None]:
    """Doubled intersections and summed areas of the same images."""
    rows, _ = masks(generator, size)
    return np.concatenate([2 * rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1), None


def brier(generator: np.random.Generator, size: int) -> tuple[Rows, None]:
    rows, _ = confident(generator, size, bent=0.0)
    return (rows[:, 0] - rows[:, 1]) ** 2, None


@dataclass(frozen=True)
class Covered:
    """How often intervals held the truth, lay wholly below or above it, or were not given."""

    population: Population
    size: int
    rounds: int
    held: int
    below: int
    above: int
    absent: int
    width: float
    method: str

    @property
    def share(self) -> float:
        return self.held / max(1, self.rounds - self.absent)

    @property
    def demanded(self) -> str:
        if self.method == "Clopper-Pearson":
            return "at least 95 %"
        light = self.population.light
        return "93 to 97 %" if light is not None and self.size >= light else ""

    @property
    def ok(self) -> bool:
        noise = 3 * np.sqrt(0.95 * 0.05 / self.rounds)
        if self.demanded == "at least 95 %":
            return bool(self.share >= 0.95 - noise)
        return not self.demanded or 0.93 <= self.share <= 0.97


def covered(index: int, size: int, rounds: int) -> dict[str, Any]:
    """The coverage of one population at one size, as the fields of `Covered`."""
    population = coverage_populations()[index]
    metric = METRICS[population.metric]
    truth = population.truth
    if truth is None:
        truth = metric.figure(population.draw(np.random.default_rng(99), LARGE)[0])
    counts = {"held": 0, "below": 0, "above": 0, "absent": 0}
    widths: list[float] = []
    methods: dict[str, int] = {}
    for turn in range(rounds):
        rows, clusters = population.draw(np.random.default_rng((1, turn)), size)
        try:
            record = metric_record(metric, rows, clusters=clusters)
        except UndefinedFigureError:  # a test set without one of the classes
            counts["absent"] += 1
            continue
        methods[record.method] = methods.get(record.method, 0) + 1
        if record.low is None or record.high is None:
            counts["absent"] += 1
            continue
        widths.append(record.high - record.low)
        counts["below" if record.high < truth else "above" if record.low > truth else "held"] += 1
    method = max(methods, key=methods.__getitem__)
    return {"size": size, "rounds": rounds, "width": float(np.mean(widths)), "method": method, **counts}


@dataclass(frozen=True)
class Contest:
    """Two results on the same samples, with and without a difference of `effect` in the figure."""

    name: str
    metric: str
    draw: Callable[[np.random.Generator, int, bool], tuple[Rows, Rows, Rows | None]]
    margin: float


def right_and_wrong(generator: np.random.Generator, size: int, differ: bool) -> tuple[Rows, Rows, None]:
    """8 % of the answers differ between two models that are right with 85 %; with a difference, b gains 4 points."""
    a = generator.random(size) < 0.85
    gained, lost = (0.06, 0.02) if differ else (0.04, 0.04)
    b = np.where(a, generator.random(size) >= lost / 0.85, generator.random(size) < gained / 0.15)
    return a, b, None


def losses(generator: np.random.Generator, size: int, differ: bool) -> tuple[Rows, Rows, None]:
    """Losses that share most of what makes a sample hard; with a difference, b loses 0.05 less."""
    hard = generator.exponential(size=size)
    a, b = (hard + generator.exponential(0.3, size) for _ in range(2))
    return a, b - 0.05 * differ, None


def rankings(generator: np.random.Generator, size: int, differ: bool) -> tuple[Rows, Rows, None]:
    """Scores that share half of their noise; with a difference, b parts the classes by a third more."""
    positive = generator.random(size) < 0.4
    shared = generator.normal(size=size)
    a, b = (
        np.stack([shift * positive + (shared + generator.normal(size=size)) / np.sqrt(2), positive], axis=1)
        for shift in (1.0, 1.33 if differ else 1.0)
    )
    return a, b, None


def answers(generator: np.random.Generator, size: int, differ: bool) -> tuple[Rows, Rows, None]:
    target = generator.integers(0, 3, size)
    easy = generator.random(size) < 0.7
    a, b = (
        np.stack([target, np.where(easy | (generator.random(size) < hit), target, (target + 1) % 3)], axis=1)
        for hit in (0.4, 0.6 if differ else 0.4)
    )
    return a.astype(float), b.astype(float), None


def losses_in_groups(generator: np.random.Generator, size: int, differ: bool) -> tuple[Rows, Rows, Rows]:
    """Differences that groups of five share half of; with a difference, b loses 0.15 less."""
    group = np.arange(size) // 5
    a = generator.exponential(size=size)
    shared = generator.normal(size=size // 5 + 1)[group]
    return a, a + 0.5 * (shared + generator.normal(size=size)) - 0.15 * differ, group


def contests() -> list[Contest]:
    return [
        Contest("decisions (McNemar, exact)", "accuracy", right_and_wrong, 0.04),
        Contest("losses (paired bootstrap)", "log loss", losses, 0.05),
        Contest("rankings (paired bootstrap)", "AUROC", rankings, 0.07),
        Contest("classes (paired bootstrap)", "macro F1", answers, 0.06),
        Contest("losses in groups (cluster bootstrap)", "log loss", losses_in_groups, 0.15),
    ]


@dataclass(frozen=True)
class Contested:
    """How often a difference was found where there is none and where there is one, whether the interval of no
    difference held 0, and how often equivalence was claimed without and with a difference as large as the margin."""

    contest: Contest
    size: int
    rounds: int
    false: int
    found: int
    held: int
    equal: int
    false_equal: int


def contested(index: int, size: int, rounds: int) -> dict[str, Any]:
    """How one contest ends at one size, as the fields of `Contested`."""
    contest = contests()[index]
    metric: Metric = METRICS[contest.metric]
    counts = dict.fromkeys(("false", "found", "held", "equal", "false_equal"), 0)
    for turn in range(rounds):
        a, b, clusters = contest.draw(np.random.default_rng((2, turn)), size, False)
        none = paired(metric, a, b, margin=contest.margin, clusters=clusters)
        a, b, clusters = contest.draw(np.random.default_rng((3, turn)), size, True)
        some = paired(metric, a, b, margin=contest.margin, clusters=clusters)
        counts["false"] += none.p_value is not None and none.p_value < 0.05
        counts["found"] += some.p_value is not None and some.p_value < 0.05
        counts["held"] += none.low is not None and none.high is not None and none.low <= 0 <= none.high
        counts["equal"] += none.equivalent is True
        counts["false_equal"] += some.equivalent is True
    return {"size": size, "rounds": rounds, **counts}


def fewer_resamples() -> None:
    for module, name in ((intervals, "RESAMPLES"), (bootstrap, "RESAMPLES"), (bootstrap, "FEWEST_RESAMPLES")):
        setattr(module, name, RESAMPLES)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def rounds_of(population: Population, rounds: int) -> int:
    """More where an interval is a formula."""
    if population.metric == "accuracy" and "groups" not in population.name:
        return 5 * rounds
    return rounds


def table(rounds: int, workers: int) -> str:
    started = time.perf_counter()
    populations, pairs = coverage_populations(), contests()
    with concurrent.futures.ProcessPoolExecutor(workers, initializer=fewer_resamples) as pool:
        covers = [
            (population, pool.submit(covered, index, size, rounds_of(population, rounds)))
            for index, population in enumerate(populations)
            for size in population.sizes
        ]
        runs = [
            (contest, pool.submit(contested, index, size, rounds))
            for index, contest in enumerate(pairs)
            for size in (50, 200, 1000)
        ]
        coverage = [Covered(population, **future.result()) for population, future in covers]
        comparisons = [Contested(contest, **future.result()) for contest, future in runs]
    lines = [
        (
            f"evalmode {evalmode.__version__}, numpy {np.__version__}, scipy {scipy.__version__}, Python "
            f"{platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
            f"{time.perf_counter() - started:.0f} s"
        ),
        "",
        (
            f"Coverage of 95 % intervals in {rounds:,} simulated test sets (five times as many for proportions); the "
            f"standard error of a share of 95 % is {percent(np.sqrt(0.95 * 0.05 / rounds))}. Bootstrap intervals are "
            f"made of {RESAMPLES} resamples here, in the library of {LIBRARY_RESAMPLES:,}."
        ),
        "",
        "| figure | population | samples | method | held | too low | too high | none given | mean width | demanded |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in coverage:
        given = max(1, row.rounds - row.absent)
        verdict = f"{row.demanded}{'' if row.ok else ': MISSED'}" if row.demanded else "as it is"
        lines.append(
            f"| {row.population.metric} | {row.population.name} | {row.size:,} | {row.method} | {percent(row.share)} "
            f"| {percent(row.below / given)} | {percent(row.above / given)} | {percent(row.absent / row.rounds)} "
            f"| {row.width:.3g} | {verdict} |"
        )
    lines += [
        "",
        (
            f"Comparisons in {rounds:,} simulated pairs of results, at 5 %. "
            "Equivalence is claimed within a margin about as large as the difference simulated, so that a claim of it "
            "beside that difference is false."
        ),
        "",
        (
            "| comparison | figure | samples | false positives | power | interval holds 0 | equivalence found "
            "| falsely claimed |"
        ),
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.contest.name} | {row.contest.metric} | {row.size:,} | {percent(row.false / row.rounds)} "
        f"| {percent(row.found / row.rounds)} | {percent(row.held / row.rounds)} | {percent(row.equal / row.rounds)} "
        f"| {percent(row.false_equal / row.rounds)} |"
        for row in comparisons
    ]
    missed = [row for row in coverage if not row.ok]
    lines += ["", f"{len(missed)} of {sum(bool(row.demanded) for row in coverage)} demands missed."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", action="store_true", help=f"write the table to {RESULTS.name} as well")
    arguments = parser.parse_args()
    text = table(arguments.rounds, arguments.workers)
    print(text)
    if arguments.keep:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(f"# benchmarks/intervals.py\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
