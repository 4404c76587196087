"""Does `check` find what is wrong, where it is, and nothing else? Defects planted in clean models of many kinds.

Each pair is a clean model and one kind of defect, planted at random depth by a seeded generator and seen at work by an
oracle that knows nothing of evalmode. Found is a finding with a right code; placed is one that also names the module
and the line. False alarms are counted on the clean models and on controls that only look like defects. Beside it stands
batch-gradient verification, where it can be used, and at last the price in forward passes.

    python benchmarks/verdicts.py                 # 600 pairs, resumed where it was stopped
    python benchmarks/verdicts.py --pairs 0       # every pair that fits
    python benchmarks/verdicts.py --quick         # 60 pairs
    python benchmarks/verdicts.py --kinds additive-noise --models bert,vit
"""

from __future__ import annotations

import argparse
import functools
import gc
import hashlib
import itertools
import json
import os
import platform
import random
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.zoo.batch_gradients import batch_gradients  # noqa: E402
from tests.zoo.case import Case, run  # noqa: E402
from tests.zoo.clean import CLEAN, build  # noqa: E402
from tests.zoo.defects import CONTROLS, KINDS, Planted, Refused, matches, plant  # noqa: E402
from tests.zoo.oracles import differing, state_of  # noqa: E402
from tests.zoo.priced import PRICED, build_priced  # noqa: E402

import evalmode  # noqa: E402
from evalmode.checking.catalog import CLAUSE_FILES, pages  # noqa: E402
from evalmode.finding import Finding, Severity  # noqa: E402

RESULTS = Path(__file__).parent / "results"
STATE = ROOT / "build" / "verdicts.json"
TABLE = RESULTS / "verdicts.md"
CLEAN_PAIR = "(clean)"
Record = dict[str, Any]


@functools.cache
def digest() -> str:
    """Of everything that decides a verdict: results of another state of the sources are not resumed."""
    total = hashlib.sha256(torch.__version__.encode())
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "tests" / "zoo").rglob("*.py"), Path(__file__)]):
        total.update(path.read_bytes())
    return total.hexdigest()


@dataclass
class Journal:
    """What was measured so far; written after every pair."""

    records: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def load(cls, fresh: bool) -> Journal:
        if not fresh and STATE.exists():
            kept = json.loads(STATE.read_text(encoding="utf-8"))
            if kept.get("digest") == digest():
                return cls(kept["records"])
        return cls()

    def add(self, key: str, record: Record) -> None:
        self.records[key] = record
        STATE.parent.mkdir(exist_ok=True)
        text = json.dumps({"digest": digest(), "records": self.records})
        STATE.with_suffix(".part").write_text(text, encoding="utf-8")
        os.replace(STATE.with_suffix(".part"), STATE)


def known_codes() -> set[str]:
    return {code for page in pages().values() for code in page.codes}


def disturbed(model: nn.Module, before: dict[str, Any], stream: torch.Tensor) -> list[str]:
    """What a check left changed in the model or in the process, looked at by the zoo's own means."""
    changed = differing(before, state_of(model))
    if not torch.equal(stream, torch.get_rng_state()):
        changed.append("torch's random stream")
    if not torch.is_grad_enabled():
        changed.append("grad mode")
    return changed


def checked(case: Case, model: nn.Module, planted: Planted | None) -> Record:
    """One check, judged."""
    torch.manual_seed(7)
    before, stream = state_of(model), torch.get_rng_state()
    started = time.perf_counter()
    record: Record = {"strays": [], "found": False, "placed": False, "seen": [], "error": ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = evalmode.check(model, case.batch, **case.options)
    except Exception as error:  # noqa: BLE001 - a check that fails is a miss with a reason
        record["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    else:
        record |= judged([finding for finding in report.findings if finding.severity is Severity.ERROR], planted)
        record["passes"] = report.certificate.forward_passes
    record["seconds"] = round(time.perf_counter() - started, 3)
    record["disturbed"] = disturbed(model, before, stream)
    torch.set_grad_enabled(True)
    return record


def judged(findings: list[Finding], planted: Planted | None) -> Record:
    said = [
        f"{item.code} {item.place.module or '(root)'} {Path(item.place.file).name}:{item.place.line}"
        for item in findings
    ]
    if planted is None:
        return {"strays": said, "seen": said}
    right = [item for item in findings if item.code in planted.codes]
    at_place = [item for item in right if matches(planted, item.place.module, item.place.file, item.place.line)]
    expected = planted.codes | planted.also
    strays = [text for text, item in zip(said, findings, strict=True) if item.code not in expected]
    return {"found": bool(right), "placed": bool(at_place), "strays": strays, "seen": said}


def pair(case: Case, kind: str, seed: int) -> Record:
    """Plant, check, and ask the peer where it applies."""
    planted = plant(case, kind, seed)
    if isinstance(planted, Refused):
        return {"refused": planted.reason}
    control = kind in CONTROLS
    record = checked(case, planted.model, None if control else planted)
    lines = ",".join(map(str, sorted(planted.lines))) or "-"
    record |= {
        "expected": f"{'|'.join(sorted(planted.codes)) or 'nothing'} {planted.module_path or '(root)'}"
        f" {Path(planted.file).name if planted.file else '-'}:{lines}",
        "depth": planted.depth,
        "tested": control or planted.clause in CLAUSE_FILES or bool(planted.codes & known_codes()),
    }
    if planted.clause == "batch-independent" or control or "EM171" in planted.also:
        record["peer"] = peer(case, planted.model)
    return record


def peer(case: Case, model: nn.Module, **how: bool) -> bool | None:
    try:
        return batch_gradients(case, model, **how)
    except (RuntimeError, ValueError, TypeError):
        return None  # in-place writes and the like: it cannot be used on this model


def clean(case: Case) -> Record:
    record = checked(case, case.model, None)
    record["peer"] = peer(case, case.model)
    record["peer_training"] = peer(case, case.model, training=True)
    record["peer_plain"] = peer(case, case.model, training=True, exempt=False)
    return record


def chosen(models: list[str], kinds: list[str], seed: int, limit: int) -> list[tuple[str, str]]:
    """Pairs in an order that reaches every kind and every model early; `limit` counts those planted, 0 is all."""
    order = random.Random(seed)  # noqa: S311 - an order, not a secret
    queues = {kind: order.sample(models, len(models)) for kind in order.sample(kinds, len(kinds))}
    turns = itertools.chain.from_iterable(zip(*queues.values(), strict=True))
    return [(model, kind) for model, kind in zip(turns, itertools.cycle(queues), strict=False)][: limit * 3 or None]


def measure(
    journal: Journal, models: list[str], kinds: list[str], seed: int, limit: int
) -> Iterator[tuple[str, Record]]:
    cases: dict[str, Case] = {}

    def case_of(name: str) -> Case:
        if name not in cases:
            cases[name] = build(name, seed=seed)
        return cases[name]

    for name in models:
        key = f"{name} {CLEAN_PAIR} {seed}"
        if key not in journal.records:
            journal.add(key, clean(case_of(name)))
        yield key, journal.records[key]
    planted = 0
    for name, kind in chosen(models, kinds, seed, limit):
        key = f"{name} {kind} {seed}"
        if key not in journal.records:
            journal.add(key, pair(case_of(name), kind, seed))
            gc.collect()
            torch.set_grad_enabled(True)
        yield key, journal.records[key]
        planted += "refused" not in journal.records[key]
        if limit and planted >= limit:
            return


def price(journal: Journal, names: list[str]) -> list[tuple[str, float, dict[str, float]]]:
    """Model, milliseconds of one forward pass, and the seconds of a check in forward passes by strength of probes."""
    rows = []
    for name in names:
        key = f"{name} (price)"
        if key not in journal.records:
            case = build_priced(name)
            times = []
            for _ in range(9):
                started = time.perf_counter()
                run(case.model, case.batch)
                times.append(time.perf_counter() - started)
            forward = statistics.median(times[2:])
            multiples = {}
            for probes in ("fast", "default"):
                started = time.perf_counter()
                evalmode.check(case.model, case.batch, probes=probes)
                multiples[probes] = (time.perf_counter() - started) / forward
            journal.add(key, {"forward_ms": forward * 1e3, "multiples": multiples})
        record = journal.records[key]
        rows.append((name, record["forward_ms"], record["multiples"]))
    return rows


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def environment() -> str:
    return (
        f"evalmode {evalmode.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )


def table(records: dict[str, Record], prices: list[tuple[str, float, dict[str, float]]]) -> str:
    by_kind: dict[str, list[Record]] = defaultdict(list)
    cleaned: list[Record] = []
    for key, record in records.items():
        kind = key.split(" ")[1]
        if kind == CLEAN_PAIR:
            cleaned.append(record)
        elif "refused" not in record:
            by_kind[kind].append(record)
    lines = [
        environment(),
        "",
        "| kind of defect | clause | pairs | depth | recall | right place | batch gradients |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    totals: list[Record] = []
    for kind in KINDS:
        rows = by_kind.get(kind, [])
        tested = [row for row in rows if row["tested"]]
        asked = [row for row in tested if row.get("peer") is not None]
        if not rows:
            continue
        totals += tested
        depth = f"{statistics.mean(row['depth'] for row in rows):.1f}"
        figures = [
            percent(sum(row["found"] for row in tested), len(tested)) if tested else "not tested",
            percent(sum(row["placed"] for row in tested), len(tested)) if tested else "",
            percent(sum(row["peer"] for row in asked), len(asked)),
        ]
        lines.append(f"| {kind} | {KINDS[kind].clause} | {len(rows)} | {depth} | {' | '.join(figures)} |")
    asked = [row for row in totals if row.get("peer") is not None]
    found, placed = sum(row["found"] for row in totals), sum(row["placed"] for row in totals)
    lines.append(
        f"| **all** | | {len(totals)} | | {percent(found, len(totals))} | {percent(placed, len(totals))} "
        f"| {percent(sum(row['peer'] for row in asked), len(asked))} |"
    )
    untested = [row for kind in KINDS for row in by_kind.get(kind, []) if not row["tested"]]
    controls = [row for kind in CONTROLS for row in by_kind.get(kind, [])]
    return "\n".join(lines + alarms(cleaned, controls, totals, untested) + price_lines(prices))


def alarms(cleaned: list[Record], controls: list[Record], totals: list[Record], untested: list[Record]) -> list[str]:
    def of(rows: list[Record], name: str) -> str:
        asked = [row for row in rows if row.get(name) is not None]
        return f"{sum(row[name] for row in asked)} of {len(asked)}"

    def raised(rows: list[Record]) -> str:
        return f"{sum(bool(row['strays'] or row['error']) for row in rows)} of {len(rows)}"

    everything = cleaned + controls + totals + untested
    peers = " | ".join(of(cleaned, name) for name in ("peer", "peer_training", "peer_plain"))
    return [
        "",
        "| false alarms | evalmode check | batch gradients | at the start of training | without exempting batch norm |",
        "|---|---:|---:|---:|---:|",
        f"| on clean models | {raised(cleaned)} | {peers} |",
        f"| on controls | {raised(controls)} | {of(controls, 'peer')} | | |",
        f"| beside a defect | {raised(totals)} | | | |",
        "",
        f"Left changed by a check: {sum(bool(row['disturbed']) for row in everything)} of {len(everything)} models.",
    ]


def price_lines(prices: list[tuple[str, float, dict[str, float]]]) -> list[str]:
    if not prices:
        return []
    lines = ["", "| price, batch 8 | one forward pass | check fast | check default |", "|---|---:|---:|---:|"]
    for name, milliseconds, multiples in prices:
        lines.append(f"| {name} | {milliseconds:.0f} ms | {multiples['fast']:.0f}x | {multiples['default']:.0f}x |")
    return lines


def complaint(key: str, record: Record) -> str:
    """One line on what went wrong with a pair, empty where nothing did."""
    kind = key.split(" ")[1]
    parts = []
    if "refused" in record:
        return ""
    if record["error"]:
        parts.append(f"check failed: {record['error']}")
    elif kind in KINDS and record["tested"] and not record["placed"]:
        parts.append(f"{'misplaced' if record['found'] else 'missed'}: want {record['expected']}; got {record['seen']}")
    if record["strays"]:
        parts.append(f"false alarm: {record['strays']}")
    if record["disturbed"]:
        parts.append(f"left changed: {record['disturbed'][:4]}")
    return f"{key}  {'; '.join(parts)}" if parts else ""


def names(text: str | None, known: Any, what: str) -> list[str]:
    wanted = list(known) if text is None else text.split(",")
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"no such {what}: {', '.join(unknown)}; known: {', '.join(known)}")
    return wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", help="comma-separated; all by default, controls included")
    parser.add_argument("--models", help="comma-separated; all by default")
    parser.add_argument("--pairs", type=int, default=600, help="how many; 0 for all")
    parser.add_argument("--quick", action="store_true", help="60 pairs, no price")
    parser.add_argument("--no-price", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--keep", action="store_true", help=f"write the table to {TABLE.name} as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = names(arguments.models, CLEAN, "model")
    kinds = names(arguments.kinds, {**KINDS, **CONTROLS}, "kind")
    journal = Journal.load(arguments.fresh)
    limit = 60 if arguments.quick else arguments.pairs
    measured = {}
    for key, record in measure(journal, models, kinds, arguments.seed, limit):
        measured[key] = record
        said = complaint(key, record)
        if said:
            print(said, flush=True)
    prices = [] if arguments.quick or arguments.no_price else price(journal, list(PRICED))
    text = table(measured, prices)
    print(f"\n{text}")
    if arguments.keep:
        RESULTS.mkdir(exist_ok=True)
        TABLE.write_text(f"# benchmarks/verdicts.py\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
