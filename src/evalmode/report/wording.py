"""Numbers and names as the page shows them: nothing that could move a cursor, nothing without an end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evalmode.certificate import MetricRecord
from evalmode.terminal.evaluations import metric_texts
from evalmode.terminal.layout import displayable, duration

__all__ = ["Figure", "factor", "figure", "finite", "joined", "number", "several", "shown", "time_taken"]

_LONGEST = 400
NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric in words; `interval` and the `count` of its total may be empty."""

    value: str
    interval: str = ""
    count: str = ""


def shown(text: object) -> str:
    r"""`text` as one may put on a page: control characters are written out, and its middle is left out if it is long.

    Example:
        >>> shown("a\x00b"), len(shown("x" * 10_000)) < 500
        ('a\\x00b', True)
    """
    whole = str(text)
    if len(whole) > 2 * _LONGEST:  # before anything is done for each of its characters
        whole = f"{whole[:_LONGEST]} … {len(whole) - 2 * _LONGEST:,} characters … {whole[-_LONGEST:]}"
    clean = displayable(whole)
    if len(clean) <= _LONGEST:
        return clean
    return f"{clean[: _LONGEST - 60]} … {clean[-40:]}"


def finite(value: float | None) -> float | None:
    """`value` if it is a number that can be drawn."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def number(value: float | None, form: str = ".3g", unit: str = "") -> str:
    """A number, or a dash where there is none.

    Example:
        >>> number(0.12345), number(None), number(float("nan")), number(12.0, ",.0f", " ms")
        ('0.123', '–', 'not a number', '12 ms')
    """
    if value is None:
        return NOTHING
    if isinstance(value, float) and math.isnan(value):
        return "not a number"
    if isinstance(value, float) and math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    return f"{value:{form}}{unit}"


def factor(value: float | None) -> str:
    """How many times: with the digits that can be read from a measurement.

    Example:
        >>> factor(11.82), factor(0.62), factor(1234.5), factor(2.5e6), factor(None)
        ('11.8×', '0.62×', '1,234×', '2.5e+06×', '–')
    """
    known = finite(value)
    if known is None:
        return number(value)
    if known == 0:
        return "0×"
    size = abs(known)
    form = ".1e" if size >= 1e5 or 0 < size < 0.005 else ",.0f" if size >= 100 else ".1f" if size >= 0.95 else ".2f"
    return f"{known:{form}}×"


def figure(metric: MetricRecord) -> Figure:
    """A metric in words.

    Example:
        >>> figure(MetricRecord(name="accuracy", value=0.5, low=0.25, high=0.75, count=2, total=4))
        Figure(value='50.0 %', interval='25.0 to 75.0', count='2 of 4')
    """
    count = f"{metric.count:,} of {metric.total:,}" if metric.count is not None else ""
    if finite(metric.value) is None:
        return Figure(number(metric.value), count=count)
    low, high = finite(metric.low), finite(metric.high)
    value, between = metric_texts(metric) if low is not None and high is not None else (_plain(metric), "")
    return Figure(value, between, count)


def several(count: int, one: str, many: str = "") -> str:
    """A count with its noun.

    Example:
        >>> several(1, "probe"), several(1200, "probe"), several(2, "class", "classes")
        ('1 probe', '1,200 probes', '2 classes')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def time_taken(seconds: float | None) -> str:
    """Seconds for people; nothing where they are not known.

    Example:
        >>> time_taken(41.2), time_taken(0.0), time_taken(None)
        ('41 s', '', '')
    """
    known = finite(seconds)
    return duration(known) if known is not None and known > 0 else ""


def joined(parts: Sequence[str], separator: str = ", ") -> str:
    """Those parts that say something."""
    return separator.join(part for part in parts if part)


def _plain(metric: MetricRecord) -> str:
    return f"{100 * metric.value:.1f} %" if metric.count is not None else f"{metric.value:.4g}"
