"""The two plots, as SVG without a browser: described with Altair, drawn with vl-convert.

Colours are names of the style sheet (`var(--...)`), so that one drawing serves the light page, the dark page and paper.
Each point carries its words as `aria-label` and can be reached by keyboard; `script.js` shows them as a tooltip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from evalmode.certificate import CalibrationBin
from evalmode.measure.intervals import proportion_interval
from evalmode.report.plans import PlanPoint, Plans
from evalmode.report.wording import factor, finite, joined, several

__all__ = ["log_ticks", "pareto_svg", "reliability_svg"]

_WIDTH, _HEIGHT = 330, 250
_TICK_GAP = 0.14  # of the axis
_FAR = 30  # times the largest error of an accepted plan
_OUTCOMES = ("chosen", "plain", "verified", "rejected")
_SHAPES = ("diamond", "square", "circle", "cross")
_COLOURS = tuple(f"var(--{name})" for name in _OUTCOMES)
_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "gridColor": "var(--line)",
        "domainColor": "var(--edge)",
        "tickColor": "var(--edge)",
        "labelColor": "var(--muted)",
        "titleColor": "var(--ink)",
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
}


def pareto_svg(plans: Plans, label: str) -> str:
    """Error against time of every plan of which both are known; nothing where there are fewer than two.

    An error far beyond those of the accepted plans stands at the upper edge with an arrow and its value, and an error
    of nothing, which a logarithmic axis cannot show, at the lower one: else a single point would flatten all others.
    """
    if len(plans.points) < 2:
        return ""
    import altair as alt

    errors = [point.error for point in plans.points if point.error > 0] or [1.0]
    least = min(errors) / (2 if any(point.error == 0 for point in plans.points) else 1)
    accepted = [point.error for point in plans.points if point.outcome != "rejected"]
    most = max(least, min(max(errors), _FAR * max([*accepted, 1.0])))
    time = _logarithmic(alt.X("time:Q", title="time, as a share of plain eval()"), [p.time for p in plans.points])
    error = _logarithmic(alt.Y("error:Q", title="error, as a multiple of plain's own"), [least, most])
    line = (
        alt.Chart(_values([_plan_value(point, least, most) for point in plans.frontier]))
        .mark_line(interpolate="step-after", color="var(--edge)", strokeDash=[3, 3], aria=False)
        .encode(time, error, order="time:Q")
    )
    base = alt.Chart(_values([_plan_value(point, least, most) for point in plans.points]))
    points = base.mark_point(filled=True, size=110, opacity=1).encode(
        time,
        error,
        alt.Color("outcome:N", legend=None).scale(domain=_OUTCOMES, range=_COLOURS),
        alt.Shape("outcome:N", legend=None).scale(domain=_OUTCOMES, range=_SHAPES),
        description="words:N",
    )
    names = base.mark_text(align="left", dx=9, dy=-6, fontSize=11, color="var(--ink)", aria=False)
    names = names.encode(time, error, text="name:N")
    layers = [line, points, names] if len(plans.frontier) > 1 else [points, names]
    return _drawn(alt.layer(*layers), label)


def reliability_svg(bins: Sequence[CalibrationBin], label: str) -> str:
    """How often an answer is right against how sure the model is of it; nothing without bins.

    Each bin is a point with the interval of its share, larger and darker the more samples it holds: a bin of a few
    samples may lie anywhere, and no line leads there.
    """
    if not bins:
        return ""
    import altair as alt

    sure = alt.X("confidence:Q", title="mean confidence").scale(domain=[0, 1]).axis(format="%", tickCount=6)
    right = alt.Y("accuracy:Q", title="share of right answers").scale(domain=[0, 1]).axis(format="%", tickCount=6)
    ideal = (
        alt.Chart(_values([{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]))
        .mark_line(color="var(--edge)", strokeDash=[3, 3], strokeWidth=1.5, aria=False)
        .encode(sure, right)
    )
    base = alt.Chart(_values([_bin_value(item) for item in bins]))
    fuller = alt.Opacity("count:Q", legend=None).scale(type="sqrt", domainMin=0, range=[0.4, 1])
    between = base.mark_rule(color="var(--accent)", strokeWidth=2, aria=False).encode(
        sure, alt.Y("low:Q").title(None), alt.Y2("high:Q"), fuller
    )
    points = base.mark_point(filled=True, color="var(--accent)").encode(
        sure, right, alt.Size("count:Q", legend=None).scale(domainMin=0, range=[30, 320]), fuller, description="words:N"
    )
    return _drawn(alt.layer(ideal, between, points), label)


def _logarithmic(channel: Any, values: Sequence[float]) -> Any:
    """The channel on a logarithmic scale that holds all values with a margin, and ticks one can read."""
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.08, 1.15)
    ticks = log_ticks(low / margin, high * margin)
    scale = {"type": "log", "domain": [low / margin, high * margin], "nice": False}
    return channel.scale(**scale).axis(values=ticks, format="~g" if low > 1e-4 and high < 1e6 else ".0e")


def log_ticks(low: float, high: float) -> list[float]:
    """From three to eight numbers from `low` to `high`, as round as there are: powers of ten where those are enough.

    1, which is plain `eval()`, is always among them where it lies between; none stands so near another that their
    labels would touch.

    Example:
        >>> log_ticks(0.15, 6), log_ticks(0.5, 2e9), log_ticks(0.6, 1.1)
        ([0.2, 0.5, 1.0, 2.0, 5.0], [1.0, 100.0, 10000.0, 1000000.0, 100000000.0], [0.6, 0.7, 0.8, 0.9, 1.0])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside: list[float] = []
    for digits in ((10,), (10, 20, 50), (10, 15, 20, 30, 50, 70), range(10, 100, 10), range(10, 100)):
        found = [float(f"{digit}e{power - 1}") for power in powers for digit in digits]
        inside = [tick for tick in found if low <= tick <= high]
        if len(inside) >= 3:
            break
    nearest = _TICK_GAP * math.log(high / low) if inside else 0.0
    kept: list[float] = []
    for tick in sorted(inside, key=lambda tick: (_roundness(tick), abs(math.log(tick)))):
        if all(abs(math.log(tick / other)) >= nearest for other in kept):
            kept.append(tick)
    return sorted(kept)


def _roundness(tick: float) -> int:
    """0 for 1, then powers of ten, then 2 and 5, then the rest."""
    return 0 if tick == 1 else {"1": 1, "2": 2, "5": 2}.get(f"{tick:.1e}".split("e")[0].removesuffix(".0"), 3)


def _plan_value(point: PlanPoint, least: float, most: float) -> dict[str, Any]:
    far = point.error > most
    return {
        "time": point.time,
        "error": min(max(point.error, least), most),
        "outcome": point.outcome,
        "name": f"{point.position} ↑ {factor(point.error)}" if far else str(point.position),
        "words": point.words,
    }


def _bin_value(item: CalibrationBin) -> dict[str, Any]:
    confidence, accuracy = finite(item.confidence) or 0.0, finite(item.accuracy) or 0.0
    found = proportion_interval(min(max(round(accuracy * item.count), 0), item.count), item.count)
    low, high = (accuracy, accuracy) if found.low is None or found.high is None else (found.low, found.high)
    words = [
        f"confidence {100 * item.low:.3g} to {100 * item.high:.3g} %",
        f"mean {confidence:.1%}",
        f"right {accuracy:.1%}",
        f"95 % interval {100 * low:.1f} to {high:.1%}" if found.low is not None else "",
        several(item.count, "sample"),
    ]
    return {
        "confidence": confidence,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "count": item.count,
        "words": joined(words, "; "),
    }


def _values(rows: list[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.InlineData(values=rows)


def _drawn(chart: Any, label: str) -> str:
    """The chart as an SVG element that scales with the page, its points in the tab order."""
    import vl_convert

    sized = chart.properties(width=_WIDTH, height=_HEIGHT, padding=4).configure(**_CONFIG)
    spec = cast("Mapping[str, Any]", sized.to_dict(context={"pre_transform": False}))
    svg = vl_convert.vegalite_to_svg(dict(spec))
    return _reachable(svg, label)


def _reachable(svg: str, label: str) -> str:
    """Points one can tab to, a name for the whole, and no fixed size. What users named was escaped when it was drawn.

    Works on tags only: in what vl-convert draws, `<` opens a tag and `"` closes a value, and nothing else.
    """
    from markupsafe import escape

    opening = re.compile(r"<svg [^>]*>")
    first = opening.match(svg)
    box = re.search(r'viewBox="[-0-9. ]+"', first.group()) if first else None
    head = f'<svg class="plot" {box.group() if box else ""} role="group" aria-label="{escape(label)}">'
    body = re.sub(r"<path (?=[^>]*aria-roledescription=\"point\")", '<path tabindex="0" class="point" ', svg)
    return opening.sub(lambda _: head, body, count=1)
