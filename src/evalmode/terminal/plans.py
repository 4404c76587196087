"""How the plans of a search look in a terminal: one line for each way of running the model."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from evalmode.certificate import OptimizationRecord, PlanRecord
from evalmode.terminal.layout import Look, duration, entry, look, plural, render

__all__ = ["byte_size", "plan_cell", "plan_lines", "plans_text"]

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_NAME = 22
_SHORT = 3  # plans with figures in the short table; those that were left out for a reason are always there
_WIDTHS = {"samples/s": 10, "over plain": 12, "error": 7, "peak memory": 13, "build": 7}


def plans_text(record: OptimizationRecord, *, width: int | None = None, color: bool | None = None) -> str:
    """Every plan that was tried, with speed, error, peak memory and build time, or why it was left out.

    Example:
        >>> plain = PlanRecord(name="plain eval()", outcome="plain", samples_per_second=120.0, speedup=1.0)
        >>> record = OptimizationRecord(
        ...     tolerance="fp32",
        ...     objective="throughput",
        ...     batch_sizes=(8,),
        ...     execution_sizes=(),
        ...     stable=True,
        ...     plans=(plain,),
        ... )
        >>> print(plans_text(record, width=60, color=False))
        Speed and memory       samples/s  over plain
          > plain eval()             120        1.0x
    """
    shape = look(width=width, color=color)
    lines = plan_lines(record, shape, full=True)
    for note in record.notes:
        lines += entry(Text("   "), 4, note, shape, style="dim")
    return render(lines, shape)


def plan_lines(record: OptimizationRecord, shape: Look, *, full: bool = False) -> list[Text]:
    """The lines of the table; `full` adds the columns of error and build time, and every variation of a plan."""
    if not record.plans:
        return [Text("Speed and memory", style="bold"), *entry(Text("   "), 4, "no plan was tried", shape, style="dim")]
    chosen = record.chosen
    shown = record.plans if full else _best_of_each(record.plans)
    longest = max((cell_len(plan.name) for plan in shown), default=0)
    room = min(shape.width, 80) - _WIDTHS["samples/s"] - _WIDTHS["over plain"]
    name_width = max(_NAME, min(longest + 4, room))
    columns = _columns(record, shape.width - name_width, full=full)
    head = "".join(f"{name:>{_WIDTHS[name]}}" for name in columns)
    lines = [Text.assemble((f"{'Speed and memory':<{name_width}}", "bold"), (head, "dim"))]
    for plan in shown:
        mark = ">" if plan is chosen else " "
        style = "bold" if plan is chosen else ""
        prefix = Text(f"  {mark} {plan.name:<{name_width - 4}}", style=style)
        if plan.speedup is None:
            lines += entry(prefix, name_width + 2, plan.reason or plan.outcome, shape, style="dim")
            continue
        if cell_len(prefix.plain) > name_width:  # the name above its figures, which stay in their columns
            lines += entry(Text(f"  {mark}", style=style), 4, plan.name, shape, style=style)
            prefix = Text(" " * name_width, style=style)
        prefix.append("".join(f"{plan_cell(plan, name):>{_WIDTHS[name]}}" for name in columns))
        tail = _tail(plan, chosen)
        if tail and cell_len(prefix.plain) + 2 + len(tail) <= shape.width:
            lines.append(Text.assemble(prefix, (f"  {tail}", "dim")))
            continue
        lines.append(prefix)
        if tail and plan is not chosen:
            lines += entry(Text(" " * name_width), name_width + 2, tail, shape, style="dim")
    legend = _legend(shown)
    return lines + (entry(Text("   "), 4, "; ".join(legend), shape, style="dim") if legend else [])


def _legend(plans: Sequence[PlanRecord]) -> list[str]:
    """What stands in the table in short; a table without short forms has no such line."""
    told = []
    for plan in plans:
        size = f"{plan.streams}x{plan.batch}"
        if size in plan.name.split():
            told.append(f"{size}: {plural(plan.streams, 'stream', 'streams')}, executions of {plan.batch}")
            break
    parts = {part for plan in plans for part in plan.name.split()}
    known = {"t1": "1 thread", "nhwc": "channels-last"}
    told += [f"{name}: {meaning}" for name, meaning in known.items() if name in parts]
    compared = sum(plan.speedup is not None for plan in plans) > 1
    return ["over plain: median of paired rounds", *told] if told and compared else told


def _columns(record: OptimizationRecord, room: int, *, full: bool) -> list[str]:
    """The columns that there are figures for and room for: the first to be dropped is the last of the order."""
    known = {
        "samples/s": True,
        "over plain": True,
        "error": full and any(plan.error is not None for plan in record.plans),
        "peak memory": any(plan.peak_bytes is not None for plan in record.plans),
        "build": full and any(plan.build_seconds for plan in record.plans),
    }
    kept = set()
    for name in ("over plain", "samples/s", "peak memory", "error", "build"):
        if known[name] and _WIDTHS[name] <= room:
            kept.add(name)
            room -= _WIDTHS[name]
    return [name for name in known if name in kept]


def plan_cell(plan: PlanRecord, column: str) -> str:
    """What a plan has in a column of the table; empty where it was not measured."""
    if column == "samples/s":
        rate = plan.samples_per_second
        return "" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    if column == "over plain":
        return "" if plan.speedup is None else f"{plan.speedup:.{1 if plan.speedup >= 0.95 else 2}f}x"
    if column == "error":
        if plan.error is None or plan.error >= 10_000:
            return "" if plan.error is None else f"{plan.error:.0e}x"
        return f"{plan.error:.{1 if plan.error < 100 else 0}f}x"
    if column == "peak memory":
        return byte_size(plan.peak_bytes)
    return duration(plan.build_seconds) if plan.build_seconds else ""


def _tail(plan: PlanRecord, chosen: PlanRecord) -> str:
    if plan is chosen:
        return "" if plan.outcome == "plain" else "chosen"
    return plan.reason


def _best_of_each(plans: Sequence[PlanRecord]) -> list[PlanRecord]:
    """Of several variations on one back end and precision the best, and of those the fastest."""
    best: dict[str, PlanRecord] = {}
    for plan in plans:
        kind = f"{plan.backend} {plan.precision}" if plan.backend else plan.name
        other = best.get(kind)
        faster = other is not None and other.outcome != "chosen" and (plan.speedup or 0) > (other.speedup or 0)
        if other is None or plan.outcome == "chosen" or faster:
            best[kind] = plan
    timed = sorted((plan for plan in best.values() if plan.speedup), key=lambda plan: -(plan.speedup or 0.0))
    shown = [plan for plan in timed if plan.outcome in {"plain", "chosen"}]
    shown += [plan for plan in timed if plan not in shown][: _SHORT - len(shown)]
    return [plan for plan in best.values() if not plan.speedup or plan in shown]


def byte_size(count: int | None) -> str:
    """A number of bytes for people; empty where it is not known.

    Example:
        >>> byte_size(4_600_000)
        '4.6 MB'
    """
    if count is None:
        return ""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.3g} {name}" if count < 100 * unit else f"{count / unit:.0f} {name}"
    return plural(count, "byte", "bytes")
