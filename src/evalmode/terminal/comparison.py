"""How a comparison of models looks in a terminal. Takes plain data, and knows no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from evalmode.terminal.layout import Look, ends, entry, look, one_line, padded, render

__all__ = ["EffectLine", "FlipLine", "comparison_text"]

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_STYLES = {"better": "green", "worse": "bold red", "different": "yellow"}
_WIDTHS = (10, 10, 10, 20, 9)  # the first model, the other, their difference, its interval, p
_NAME = 21
_DETAIL = 4
_TURNED = {True: ("now right", "now wrong"), False: ("now wrong", "now right"), None: ("now true", "now false")}


@dataclass(frozen=True, slots=True)
class EffectLine:
    """One metric of two models: `models` are their places, `values` theirs, `effect` the second minus the first.

    `verdict` is `better`, `worse`, `different`, `no difference shown` or `not tested`. With a `margin`, `equivalent`
    and `non_inferior` say what was found about it, with their p; None is: not tested. Proportions are shown in percent,
    and their differences and margins in points.
    """

    metric: str
    models: tuple[int, int]
    values: tuple[float, float]
    effect: float
    low: float | None
    high: float | None
    p_value: float | None
    verdict: str
    method: str = ""
    proportion: bool = False
    margin: float | None = None
    equivalent: bool | None = None
    equivalence_p: float | None = None
    non_inferior: bool | None = None
    non_inferiority_p: float | None = None

    @property
    def tolerance(self) -> str:
        """The margin with its unit."""
        if self.margin is None:
            return ""
        points = f"{100 * self.margin:g}"
        return f"{self.margin:g}" if not self.proportion else f"{points} point{'s' if points != '1' else ''}"

    @property
    def within(self) -> str:
        """In words what was found about the margin; empty where there is none."""
        if self.margin is None:
            return ""
        if self.equivalent is None and self.non_inferior is None:
            found = "not tested"
        elif self.equivalent:
            found = f"equivalent{_small(self.equivalence_p)}"
        elif self.non_inferior:
            found = f"not inferior{_small(self.non_inferiority_p)}; equivalence not shown"
        else:
            found = "neither equivalence nor non-inferiority shown"
        return f"margin {self.tolerance}: {found}"


@dataclass(frozen=True, slots=True)
class FlipLine:
    """Samples whose decision is another one: how many became true, or were and no longer are, and the first of them.

    Without `higher_is_better` nobody knows whether true is right.
    """

    metric: str
    models: tuple[int, int]
    gained: int
    lost: int
    first_gained: tuple[str, ...] = ()
    first_lost: tuple[str, ...] = ()
    higher_is_better: bool | None = True


def comparison_text(
    labels: Sequence[str],
    samples: int,
    effects: Sequence[EffectLine],
    flips: Sequence[FlipLine] = (),
    *,
    confidence: float = 0.95,
    notes: Sequence[str] = (),
    width: int | None = None,
    color: bool | None = None,
) -> str:
    """The models, every metric with the difference and its interval, what flipped, and one closing line per model.

    Example:
        >>> line = EffectLine("accuracy", (0, 1), (0.9, 0.95), 0.05, 0.01, 0.09, 0.012, "better", proportion=True)
        >>> flip = FlipLine("accuracy", (0, 1), 5, 0, ("3", "8", "9"))
        >>> print(comparison_text(["old", "new"], 100, [line], [flip], width=80, color=False))
        A  old
        B  new
        <BLANKLINE>
        100 samples                   A         B     B - A     95 % interval        p
          accuracy               90.0 %    95.0 %      +5.0      +1.0 to +9.0    0.012
        <BLANKLINE>
        Flipped
          accuracy, A to B      5 now right   3, 8, 9, ...
                                0 now wrong
        <BLANKLINE>
        B BETTER  in accuracy
    """
    shape = look(width=width, color=color)
    lines: list[Text] = []
    for place, label in enumerate(labels):
        lines += entry(Text(_letter(place), style="bold"), 3, label, shape)
    several = len(effects) > 1
    pairs = list(dict.fromkeys(effect.models for effect in effects))
    for pair in pairs:
        lines.append(Text())
        own = [effect for effect in effects if effect.models == pair]
        heading = f"{samples:,} sample{'s' if samples != 1 else ''}"
        lines += _table(heading, pair, own, confidence, several, shape)
    if flips:
        lines += [Text(), Text("Flipped", style="bold")]
        for flip in flips:
            lines += _flip_lines(flip, shape)
    for note in notes:
        lines += [Text(), *entry(Text("Note", style="bold"), 6, note, shape)]
    lines.append(Text())
    for place, pair in enumerate(pairs):
        own = [effect for effect in effects if effect.models == pair]
        right = f"Holm over {len(effects)} tests" if several and place == len(pairs) - 1 else ""
        lines += _closing(own, pair, right, shape)
    return render(lines, shape)


def _table(
    heading: str, pair: tuple[int, int], effects: Sequence[EffectLine], confidence: float, several: bool, shape: Look
) -> list[Text]:
    first, second = map(_letter, pair)
    interval, chance = f"{100 * confidence:g} % interval", "p, Holm" if several else "p"
    wide = shape.width >= _NAME + sum(_WIDTHS)
    names = (first, second, f"{second} - {first}", interval, chance)
    head = "".join(f"{name:>{size}}" for name, size in zip(names, _WIDTHS, strict=True))
    lines = [Text.assemble((f"{heading:<{_NAME}}", "bold"), (head, "dim")) if wide else Text(heading, style="bold")]
    for effect in effects:
        name = one_line(effect.metric, shape)
        cells = _cells(effect)
        row = "".join(f"{cell:>{size}}" for cell, size in zip(cells, _WIDTHS, strict=True))
        fits = wide and all(cell_len(cell) < size for cell, size in zip(cells, _WIDTHS, strict=True))
        if fits and cell_len(name) <= _NAME - 3:
            lines.append(Text(f"  {padded(name, _NAME - 2)}{row}"))
        elif fits:
            lines += [*entry(Text(), 2, name, shape), Text(" " * _NAME + row)]
        else:
            told = zip(names, cells, strict=True)
            lines += entry(Text(f"  {name}"), shape.width, [f"{label} {cell}" for label, cell in told if cell], shape)
        details = [effect.method if effect.p_value is None or effect.low is None else "", effect.within]
        for detail in filter(None, details):
            lines += entry(Text(), _DETAIL, detail, shape, style="dim")
    return lines


def _cells(effect: EffectLine) -> tuple[str, str, str, str, str]:
    scale, unit = (100.0, " %") if effect.proportion else (1.0, "")
    known = [value for value in (effect.low, effect.high) if value is not None and math.isfinite(value)]
    spread = (max(known) - min(known) if len(known) == 2 else abs(effect.effect)) * scale
    decimals = 1 if unit else 3
    if math.isfinite(spread) and spread > 0:
        decimals = min(max(1 - math.floor(math.log10(spread)), 1 if unit else 0), 6)
    values = [_number(value * scale, decimals, signed=False) + unit for value in effect.values]
    between = ""
    if effect.low is not None and effect.high is not None:
        ends_ = [_number(value * scale, decimals) for value in (effect.low, effect.high)]
        between = f"{ends_[0]} to {ends_[1]}"
    return values[0], values[1], _number(effect.effect * scale, decimals), between, _chance(effect.p_value)


def _number(value: float, decimals: int, *, signed: bool = True) -> str:
    sign = "+" if signed else ""
    if abs(value) >= 1e6 or 0 < abs(value) < 0.5 * 10**-decimals:
        return f"{value:{sign}.2g}"
    return f"{value + 0.0:{sign}.{decimals}f}"


def _chance(p_value: float | None) -> str:
    if p_value is None:
        return ""
    if p_value < 0.0001:
        return "<0.0001"
    return f"{p_value:.3f}" if p_value >= 0.001 else f"{p_value:.4f}"


def _small(p_value: float | None) -> str:
    if p_value is None:
        return ""
    return " (p <0.0001)" if p_value < 0.0001 else f" (p {p_value:.3g})"


def _flip_lines(flip: FlipLine, shape: Look) -> list[Text]:
    first, second = map(_letter, flip.models)
    lines: list[Text] = []
    heads = (f"  {one_line(flip.metric, shape)}, {first} to {second}", "")
    if not flip.gained and not flip.lost:
        return entry(Text(heads[0]), _NAME + 3, "none", shape)
    words = _TURNED[flip.higher_is_better]
    sides = ((words[0], flip.gained, flip.first_gained), (words[1], flip.lost, flip.first_lost))
    for head, (what, count, ids) in zip(heads, sides, strict=True):
        listed = ", ".join(ids) + (", ..." if count > len(ids) else "")
        lines += entry(Text(head), _NAME + 3, [f"{count:,} {what}", listed if count else ""], shape)
    return lines


def _closing(effects: Sequence[EffectLine], pair: tuple[int, int], right: str, shape: Look) -> list[Text]:
    """One word for the model, and the metrics that it is about."""
    by_verdict: dict[str, list[str]] = {}
    for effect in effects:
        tolerated = effect.verdict == "worse" and (effect.equivalent or effect.non_inferior)
        verdict = f"worse, within the margin of {effect.tolerance}" if tolerated else effect.verdict
        by_verdict.setdefault(verdict, []).append(one_line(effect.metric, shape))
    within = [verdict for verdict in by_verdict if verdict.startswith("worse, ")]
    word = next((verdict for verdict in ("worse", *within, "better", "different") if verdict in by_verdict), "")
    shown = Text(f"{_letter(pair[1])} ", style="bold")
    if not word:
        rest = "no difference shown" if "no difference shown" in by_verdict else "not tested"
        shown.append(rest.upper(), style="bold")
        word = rest
    else:
        head, comma, rest = word.partition(",")
        shown.append(head.upper(), style="yellow" if comma else _STYLES[head])
        shown.append(comma + rest)
    told = f"in {_names(by_verdict.pop(word))}"
    told += "".join(f"; {verdict} in {_names(names)}" for verdict, names in by_verdict.items())
    if cell_len(shown.plain) + 2 + cell_len(told) + 2 + len(right) <= min(shape.width, 80):
        return (
            ends(Text.assemble(shown, f"  {told}"), Text(right, style="dim"), shape)
            if right
            else [Text.assemble(shown, f"  {told}")]
        )
    lines = entry(shown, cell_len(shown.plain) + 2, told, shape)
    return [*lines, *(entry(Text(), 2, right, shape, style="dim") if right else ())]


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _letter(place: int) -> str:
    return _LETTERS[place] if place < len(_LETTERS) else f"M{place + 1}"
