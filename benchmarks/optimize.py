"""How fast are the plans that `evalmode.optimize` finds? Beside every peer a user might pick instead, in one run.

Each row is a model at a batch size. All contestants of a row are timed in turn, round by round, so that drift of a
noisy machine cancels; figures are ratios within a round. Rows are kept as they finish, and a run that was stopped goes
on where it was.

    python benchmarks/optimize.py                     # every row; about three minutes each with all peers
    python benchmarks/optimize.py --models mlp --batch 8 --seconds 20
    python benchmarks/optimize.py --precision bf16    # the tolerance `task` beside the peers in bf16
    python benchmarks/optimize.py --table             # print and keep the table of the rows that there are
    python benchmarks/optimize.py --longer --models lstm,unet --batch 8   # what ten times the budget would find
    python benchmarks/optimize.py --unstable --models lstm,unet           # what a search without `stable` would find
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import peers
import torch
import vl_convert
from eleven_models import CASES, Case, built
from labelled import labelled, share_right
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import evalmode
from evalmode.certificate import OptimizationRecord
from evalmode.optimization.race import Race

FOLDER = Path(__file__).parent / "results"
ROWS, TABLE, PLOT = FOLDER / "optimize.json", FOLDER / "optimize.md", FOLDER / "optimize.svg"
OURS, PLAIN = "evalmode", "plain eval()"
OVERHEAD_MS = 5  # microseconds are lost in the noise of longer calls
_LONGER = 10
SECTIONS = {
    "fp32": "Tolerance `fp32`, beside the peers in fp32",
    "bf16": "Tolerance `task`, beside the peers in bf16",
}
FP32_ERROR = 1e-3  # a peer that is further off does not give the model's answers, and is no peer


@dataclasses.dataclass(frozen=True)
class Entry:
    """One contestant of a row: its speed over plain, its error against plain, and what can be said of it."""

    speedup: float | None = None
    error: float | None = None
    build: float | None = None
    peak: float | None = None
    note: str = ""


def entries(case: Case, batch: int, precision: str, seconds: float, budget: float, wanted: list[str]) -> dict[str, Any]:
    """Every contestant of one row."""
    model, inputs = built(case), case.inputs(batch)
    hint: Literal["latency", "throughput"] = "latency" if batch == 1 else "throughput"
    tolerated: dict[str, Any] = {}
    if precision == "bf16":
        judged, target = labelled(case, model)
        inputs = judged[:batch]
        tolerated = {"tolerance": "task", "data": (judged, target), "metric": None if target is None else share_right}
    plain = peers.plain(model, inputs)
    expected = plain()
    calls: dict[str, Callable[[], object]] = {PLAIN: plain}
    found: dict[str, Entry] = {}
    begin = time.perf_counter()
    fast = evalmode.optimize(model, inputs, objective=hint, batch_sizes=[batch], budget_s=budget, **tolerated)
    searched = time.perf_counter() - begin
    record = fast.certificate.optimization if fast.certificate is not None else None
    if record is None:
        raise RuntimeError("a predictor of optimize carries its record")
    calls[OURS] = functools.partial(fast, inputs)
    used, plain_peak = record.chosen.peak_bytes, record.plans[0].peak_bytes
    peak = used / plain_peak if used and plain_peak else None
    found[OURS] = Entry(None, _error(fast(inputs), expected), searched, peak, str(fast.plan))
    for name in wanted:
        begin = time.perf_counter()
        try:
            call = peers.PEERS[precision][name](model, inputs, precision, hint)
            error = _error(call(), expected)
        except Exception as failure:  # noqa: BLE001 - whatever a peer raises is its row
            found[name] = Entry(note=f"fails: {type(failure).__name__}: {str(failure).splitlines()[0][:80]}")
            continue
        found[name] = Entry(None, error, time.perf_counter() - begin)
        if precision == "fp32" and error > FP32_ERROR:
            found[name] = dataclasses.replace(found[name], note="other answers: left out")
        else:
            calls[name] = call
    speeds = _speeds(calls, seconds, hint)
    for name, speed in speeds.items():
        if name != PLAIN:
            found[name] = dataclasses.replace(found[name], speedup=speed)
    row = {
        "model": case.name,
        "batch": batch,
        "precision": precision,
        "where": where(),
        "plain_ms": speeds[PLAIN],
        "limit": _share_of_limit(model, inputs, speeds, speeds[PLAIN]),
        "overhead_us": _overhead(fast, inputs) if batch == 1 else None,
        "price": _price(record),
        "entries": {name: dataclasses.asdict(entry) for name, entry in found.items()},
        "plans": [
            {"name": plan.name, "speedup": plan.speedup, "outcome": plan.outcome, "reason": plan.reason}
            for plan in record.plans
        ],
    }
    fast.close()
    return row


def beside(
    case: Case, batch: int, budget: float, seconds: float, searches: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """How much faster the plans of searches with other settings are than the usual one's, all timed in turn."""
    model, inputs = built(case), case.inputs(batch)
    usual: dict[str, Any] = {
        "objective": "latency" if batch == 1 else "throughput",
        "batch_sizes": [batch],
        "budget_s": budget,
    }
    plans, took = {}, {}
    for name, changes in {"usual": {}, **searches}.items():
        begin = time.perf_counter()
        plans[name] = evalmode.optimize(model, inputs, **{**usual, **changes})
        took[name] = time.perf_counter() - begin
    race = Race({name: functools.partial(plan, inputs) for name, plan in plans.items()}, keep=tuple(plans))
    race.run(seconds=seconds, least=7, rounds=60)
    found = {
        name: {"faster": race.ratio("usual", name), "seconds": took[name], "plan": str(plans[name].plan)}
        for name in searches
    }
    for plan in plans.values():
        plan.close()
    return found


def _price(record: OptimizationRecord) -> float:
    """What stability costs: by how much the fastest plan that passes the gate, stable or not, beats the chosen one.

    The search judges from the fastest down, the gate before stability: without `stable` it would have chosen that plan.
    """
    faithful = [plan.speedup or 0.0 for plan in record.plans if plan.outcome in {"unstable", "verified", "chosen"}]
    return max([*faithful, 1.0]) / (record.chosen.speedup or 1.0) - 1


def _speeds(calls: dict[str, Callable[[], object]], seconds: float, hint: str) -> dict[str, Any]:
    """Each contestant's speed over plain, and the milliseconds of plain."""
    race = Race(calls, keep=tuple(calls))
    race.run(seconds=seconds, least=7, rounds=60)
    flights = {name: peers.FLIGHT if name == "openvino" and hint == "throughput" else 1 for name in calls}
    speeds: dict[str, Any] = {name: race.ratio(PLAIN, name) * flights[name] for name in calls if name != PLAIN}
    speeds[PLAIN] = race.median(PLAIN) * 1000
    return speeds


def _share_of_limit(model: nn.Module, inputs: Tensor, speeds: dict[str, Any], plain_ms: float) -> float | None:
    """Operations a second of our plan, as a share of what torch's own matrix product reaches in this run."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    operations = counter.get_total_flops()
    square = torch.randn(2048, 2048)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        square @ square
        times.append(time.perf_counter() - begin)
    rate = 2 * 2048**3 / min(times)
    return operations / (plain_ms / 1000 / speeds[OURS]) / rate if operations else None


def _overhead(fast: Any, inputs: Tensor, calls: int = 2000) -> float:
    """Microseconds that a call costs beyond the bare executor: the median of both in turn."""
    size = fast.execution_sizes[0]
    if size != 1:
        return math.nan
    chunk = (inputs.contiguous(),)
    executor = fast.executors[0]
    race = Race({"call": lambda: fast(inputs), "bare": lambda: executor.run([chunk])}, keep=("call", "bare"))
    race.run(seconds=3, rounds=calls)
    return (race.median("call") - race.median("bare")) * 1e6


def _error(outputs: Any, expected: Tensor) -> float:
    """The largest difference from plain, as a share of plain's largest value."""
    return float((outputs.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-30))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown, fp32 then bf16, with the figures of the goals under each."""
    lines: list[str] = []
    for precision, title in SECTIONS.items():
        chosen = [row for row in rows if row["precision"] == precision]
        if chosen:
            lines += [f"## {title}", "", *_section(chosen, precision), ""]
    return lines[:-1]


def _section(rows: list[dict[str, Any]], precision: str) -> list[str]:
    names = list(peers.PEERS[precision])
    lines = [
        f"| model | batch | plain ms | **evalmode** | {' | '.join(names)} | over best | error | memory | of limit |",
        "|---|---:|---:|---:|" + "---:|" * (len(names) + 4),
    ]
    ratios: dict[int, list[float]] = {}
    for row in rows:
        cells = row["entries"]
        ours = cells[OURS]["speedup"]
        over = ours / max([1.0, *(cells[name]["speedup"] or 0.0 for name in names if name in cells)])
        ratios.setdefault(row["batch"], []).append(over)
        shown = [_number(cells.get(name, {})) for name in names]
        lines.append(
            f"| {row['model']} | {row['batch']} | {row['plain_ms']:.3g} | **{ours:.2f}** | {' | '.join(shown)} "
            f"| {over:.2f} | {cells[OURS]['error']:.1e} | {_text(cells[OURS]['peak'])} | {_text(row['limit'])} |"
        )
    lines.append("")
    for batch, values in sorted(ratios.items()):
        lines.append(
            f"- batch {batch}: {_geometric(values):.2f} times the best {precision} peer of the row "
            f"(geometric mean of {len(values)}), the least {min(values):.2f}"
        )
    lines += [*_figures(rows), *_other_searches(rows), "", "The plans:", ""]
    lines += [f"- {row['model']}, batch {row['batch']}: {row['entries'][OURS]['note']}" for row in rows]
    return lines


def _figures(rows: list[dict[str, Any]]) -> list[str]:
    """What the rows together say of stability's price, memory, overhead, speed and the search."""
    lines = []
    worst = max(rows, key=lambda row: row["price"])
    lines.append(
        f"- price of `stable=True`, by the search's own record: {statistics.median(row['price'] for row in rows):.1%} "
        f"at the median, the worst {worst['price']:.1%} ({worst['model']}, batch {worst['batch']})"
    )
    peaks = [row["entries"][OURS]["peak"] for row in rows if row["entries"][OURS]["peak"]]
    if peaks:
        lines.append(
            f"- peak memory over plain: {statistics.median(peaks):.2f} at the median, {max(peaks):.2f} at most"
        )
    overheads = [
        row["overhead_us"]
        for row in rows
        if row["overhead_us"] and not math.isnan(row["overhead_us"]) and row["plain_ms"] < OVERHEAD_MS
    ]
    if overheads:
        lines.append(f"- a call beyond the bare back end, batch 1: {statistics.median(overheads):.0f} us at the median")
    gains = [max(row["entries"][OURS]["speedup"], 1e-9) for row in rows]
    longest = max(rows, key=lambda row: row["entries"][OURS]["build"])
    searched = statistics.median(row["entries"][OURS]["build"] for row in rows)
    most = f"{longest['entries'][OURS]['build']:.0f} s at most ({longest['model']}, batch {longest['batch']})"
    return [
        *lines,
        f"- over plain eval(): {_geometric(gains):.2f} (geometric mean)",
        f"- the search: {searched:.0f} s at the median, {most}",
    ]


def _other_searches(rows: list[dict[str, Any]]) -> list[str]:
    names = {"longer": "a search of ten times the budget", "unstable": "a search without `stable`"}
    return [
        f"- {said}, {row['model']}, batch {row['batch']}: its plan takes {1 / found['faster']:.2f} of the time "
        f"({found['plan']}; found in {found['seconds']:.0f} s)"
        for key, said in names.items()
        for row in rows
        if (found := row.get(key))
    ]


def _geometric(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def _number(cell: dict[str, Any]) -> str:
    if cell.get("speedup"):
        return f"{cell['speedup']:.2f}"
    return "fails" if str(cell.get("note", "")).startswith("fails") else "other answers" if cell.get("note") else "-"


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def keep(rows: list[dict[str, Any]], text: list[str]) -> None:
    """Write rows and table."""
    FOLDER.mkdir(exist_ok=True)
    ROWS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    measured = dict.fromkeys(row.get("where", "") for row in rows)
    said = (
        "; ".join([*filter(None, measured), "speed over plain `eval()` under inference mode, a row in one run"]) + "."
    )
    picture = "![error against time](optimize.svg)"
    TABLE.write_text("\n".join(["# benchmarks/optimize.py", "", said, "", picture, "", *text]) + "\n", encoding="utf-8")
    PLOT.write_text(pareto(rows), encoding="utf-8")


def where() -> str:
    """The versions and the machine."""
    parts = (
        f"evalmode {evalmode.__version__}",
        f"torch {torch.__version__}",
        f"Python {platform.python_version()}",
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        f"{len(os.sched_getaffinity(0))} cores",
        f"{torch.get_num_threads()} threads",
    )
    return ", ".join(parts)


def pareto(rows: list[dict[str, Any]]) -> str:
    """Error against time, every contestant of every row, as SVG: towards the lower left is better."""
    points = [
        {
            "contestant": name if row["precision"] == "fp32" else f"{name}, {row['precision']}",
            "ours": name == OURS,
            "time": 1 / entry["speedup"],
            "error": max(entry["error"], 1e-8),
            "row": f"{row['model']}, batch {row['batch']}",
        }
        for row in rows
        for name, entry in row["entries"].items()
        if entry.get("speedup") and entry.get("error") is not None
    ]
    axis = {"grid": True, "gridOpacity": 0.4}
    drawing = {
        "data": {"values": points},
        "width": 520,
        "height": 340,
        "mark": {"type": "point", "filled": True, "opacity": 0.75},
        "encoding": {
            "x": {
                "field": "time",
                "type": "quantitative",
                "scale": {"type": "log"},
                "axis": {**axis, "title": "time of a call, as a share of plain eval()'s"},
            },
            "y": {
                "field": "error",
                "type": "quantitative",
                "scale": {"type": "log"},
                "axis": {**axis, "title": "largest difference from plain, of its largest value", "format": ".0e"},
            },
            "color": {"field": "contestant", "type": "nominal", "title": None},
            "shape": {"field": "contestant", "type": "nominal", "title": None},
            "size": {"condition": {"test": "datum.ours", "value": 110}, "value": 45},
        },
    }
    svg: str = vl_convert.vegalite_to_svg(drawing)
    return svg


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="only models whose name holds one of these words, by comma")
    parser.add_argument("--batch", default="8,1", help="batch sizes, by comma")
    parser.add_argument("--precision", default="fp32", choices=list(peers.PEERS))
    parser.add_argument("--peers", default="", help="only these peers, by comma")
    parser.add_argument("--seconds", type=float, default=15, help="for the race of a row")
    parser.add_argument("--budget", type=float, default=60, help="for each search")
    parser.add_argument("--again", action="store_true", help="run rows anew that are kept already")
    parser.add_argument("--longer", action="store_true", help="add to kept rows what ten times the budget finds")
    parser.add_argument("--unstable", action="store_true", help="add what a search without `stable` finds")
    parser.add_argument("--table", action="store_true", help="only print and keep the table")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []
    words = [word for word in given.models.split(",") if word]
    os.environ.setdefault("EVALMODE_CACHE", "off")
    wanted = [peer for peer in peers.PEERS[given.precision] if peer in given.peers.split(",") or not given.peers]
    searches: dict[str, dict[str, Any]] = {"unstable": {"stable": False}} if given.unstable else {}
    if given.longer:
        searches["longer"] = {"budget_s": _LONGER * given.budget}
    for batch in [] if given.table else map(int, given.batch.split(",")):
        for case in CASES:
            known = [r for r in rows if (r["model"], r["batch"], r["precision"]) == (case.name, batch, given.precision)]
            if words and not any(word in case.name for word in words):
                continue
            if searches and known:
                print(f"{case.name}, batch {batch}, {' and '.join(searches)} ...", flush=True)
                known[0].update(beside(case, batch, given.budget, given.seconds, searches))
                keep(rows, table(rows))
                continue
            if known and not given.again:
                continue
            print(f"{case.name}, batch {batch} ...", flush=True)
            row = entries(case, batch, given.precision, given.seconds, given.budget, wanted)
            rows = [each for each in rows if each not in known] + [row]
            order = [each.name for each in CASES]
            rows.sort(key=lambda each: (-each["batch"], order.index(each["model"])))
            keep(rows, table(rows))
            gc.collect()
            torch.compiler.reset()
    if given.table:
        keep(rows, table(rows))
    print("\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
