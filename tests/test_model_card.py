from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tests.test_terminal import (
    BROKEN_ONES,
    EVALUATION,
    certificate,
    findings,
    held_against,
    metrics,
    results,
    update_golden,  # noqa: F401 - a fixture
    words,
)

from evalmode.certificate import (
    Environment,
    EvaluationRecord,
    MetricRecord,
    ModelRecord,
    OptimizationRecord,
    PlanRecord,
    SliceRecord,
)
from evalmode.errors import UsageError
from evalmode.terminal.model_card import HONEST, card_text, markdown_text
from evalmode.terminal.plans import plans_text

READER = MarkdownIt("commonmark", {"html": True}).enable("table")
OPTIMIZATION = OptimizationRecord(
    tolerance="fp32",
    objective="throughput",
    batch_sizes=(64,),
    execution_sizes=(8,),
    stable=True,
    plans=(
        PlanRecord(
            name="plain eval()",
            outcome="plain",
            samples_per_second=37500,
            speedup=1.0,
            peak_bytes=4_600_000,
            error=1.0,
        ),
        PlanRecord(
            name="openvino fp32",
            backend="openvino",
            outcome="chosen",
            samples_per_second=112_000,
            speedup=3.0,
            peak_bytes=2_100_000,
            error=0.9,
        ),
        PlanRecord(name="inductor fp32", backend="inductor", outcome="rejected", reason="error above tolerance"),
    ),
)
SLICES = (
    SliceRecord(
        by="class",
        name="8",
        samples=52,
        metrics=(MetricRecord(name="accuracy", value=51 / 52, low=0.897, high=0.9995, count=51, total=52),),
        p_value=0.31,
    ),
    SliceRecord(by="dark", name="dark", samples=3, note="too few samples"),
)


def evaluation(subject="net", fingerprint="00", **changes):
    """An evaluation as `card_text` reads it."""
    model = ModelRecord(name="Net", modules=15, parameters=10, bytes=40, fingerprint=fingerprint)
    place = Environment(
        evalmode="0", python="3", torch="2", device="cpu", processor="", cores=2, threads=2, platform=""
    )
    record = msgspec.structs.replace(EVALUATION, **changes)
    return SimpleNamespace(record=record, model=model, environment=place, subject=subject)


def tables(text):
    """The cells of every row of every table, as a reader shows them."""
    rows, inside = [], None
    for token in READER.parse(text):
        if token.type in {"th_open", "td_open"}:
            inside = True
        elif token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and inside:
            rows[-1].append(shown(token))
            inside = None
    return rows


def shown(inline):
    """The text of a piece of Markdown; what is not text or bold is marked."""
    parts = []
    for token in inline.children:
        if token.type == "text":
            parts.append(token.content)
        elif token.type not in {"strong_open", "strong_close", "text_special"}:
            parts.append(f"<{token.type}>")
        elif token.type == "text_special":
            parts.append(token.content)
    return "".join(parts)


def test_a_whole_card_golden(update_golden):  # noqa: F811 - the fixture
    record = msgspec.structs.replace(
        EVALUATION, slices=SLICES, same_answers=540, plan="openvino fp32", skipped=2, notes=("2 epochs | 1",)
    )
    text = card_text(certificate(evaluation=record, optimization=OPTIMIZATION))
    held_against("card.md", text.removesuffix("\n"), update_golden)


def test_a_broken_contract_is_said_to_be_broken():
    rows = tables(card_text(certificate(findings=BROKEN_ONES)))
    assert ["contract", "broken: 5 of 7 tested clauses kept, 2 broken, on 70 probes"] in rows
    assert ["no-randomness", "broken", "10", "dropout is on in evaluation mode"] in rows
    assert "**broken**" in card_text(certificate(findings=BROKEN_ONES))


def test_evaluations_alone_make_a_card_that_says_the_contract_was_not_tested():
    rows = tables(card_text(None, [evaluation()]))
    assert ["contract", "not tested"] in rows
    assert ["accuracy", "99.8 %", "99.0 to 100.0 (95 %)", "539 of 540"] in rows


def test_several_evaluations_are_told_apart_and_the_machine_is_named_once():
    text = card_text(certificate(), [evaluation(), evaluation("other data")])
    assert "### Test set, 540 samples" in text
    assert "### Test set of other data, 540 samples" in text
    assert text.count("| machine") == 1


def test_models_with_other_weights_are_refused():
    with pytest.raises(UsageError, match="other weights: Net 00 and Net 01"):
        card_text(certificate(), [evaluation(fingerprint="01")])


def test_of_nothing_there_is_no_card():
    with pytest.raises(UsageError, match="nothing to make a card of"):
        card_text(None)


def test_figures_without_an_interval_say_why():
    odd = (
        MetricRecord(name="loss", value=float("inf"), method="no interval: not every value is finite", total=5),
        MetricRecord(name="r2", value=float("nan")),
    )
    rows = tables(card_text(None, [evaluation(metrics=odd)]))
    assert ["loss", "inf", "no interval: not every value is finite", ""] in rows
    assert ["r2", "nan", "none", ""] in rows


def test_many_slices_are_cut_and_counted():
    parts = tuple(msgspec.structs.replace(SLICES[0], name=str(number)) for number in range(30))
    text = card_text(None, [evaluation(slices=parts)])
    assert sum(row[:1] == [f"class {number}"] for row in tables(text) for number in range(30)) == 12
    assert "18 more slices are in the record." in text


@given(words)
@example("__0__")
def test_any_words_are_shown_as_they_stand(text):
    plain = " ".join(text.split())
    rows = tables(f"| a | b |\n|---|---|\n| {markdown_text(text)} | x |\n")
    assert len(rows) == 2 and len(rows[1]) == 2
    if plain.isascii() and text.isprintable():
        assert rows[1][0] == plain
    assert "<" not in rows[1][0].replace(plain, "") or plain


records = st.builds(
    EvaluationRecord,
    samples=st.integers(0, 10**6),
    batch_size=st.integers(0, 100),
    metrics=st.lists(metrics, max_size=3).map(tuple),
    plan=words,
    same_answers=st.none() | st.integers(0, 100),
    skipped=st.integers(0, 3),
    exact=st.booleans(),
)
slices = st.builds(
    SliceRecord,
    by=words,
    name=words,
    samples=st.integers(0, 10**6),
    metrics=st.lists(metrics, max_size=1).map(tuple),
    p_value=st.none() | st.floats(0, 1),
    note=words,
)


@given(st.lists(results, max_size=5), st.lists(findings, max_size=3), records, st.lists(slices, max_size=3), words)
def test_any_certificate_makes_a_card_of_whole_tables(clauses, found, record, parts, subject):
    record = msgspec.structs.replace(record, slices=tuple(parts), notes=(subject, "1. a", "# b"))
    text = card_text(certificate(clauses=tuple(clauses), findings=tuple(found), evaluation=record, subject=subject))
    tokens = READER.parse(text)
    counts = {}
    for token in tokens:
        counts[token.type] = counts.get(token.type, 0) + 1
    widths = {"clause": 4, "metric": 4, "slice": 5}
    for row in tables(text):
        assert len(row) in {2, 4, 5}
        assert len(row) == widths.get(row[0], len(row))
    assert counts.get("heading_open", 0) == sum(line.startswith("#") for line in text.splitlines())
    assert counts.get("html_block", 0) == counts.get("code_block", 0) == counts.get("blockquote_open", 0) == 0
    assert counts.get("ordered_list_open", 0) == 0
    assert text.endswith(f"\n\n{HONEST}\n")


def test_the_golden_card_is_what_a_reader_shows_as_tables():
    rows = tables((Path(__file__).parent / "golden" / "card.md").read_text(encoding="utf-8"))
    assert ["openvino fp32", "112,000", "3.0x", "0.9x", "2.1 MB"] in rows
    assert ["class 8", "52", "98.1 %", "89.7 to 100.0", "0.31"] in rows
    assert ["dark", "3", "", "", "too few samples"] in rows


def test_plans_that_were_not_tried_are_not_counted_as_tried():
    left = [PlanRecord(name=name, outcome=name) for name in ("not tried", "not installed", "not judged")]
    told = card_text(
        certificate(optimization=msgspec.structs.replace(OPTIMIZATION, plans=(*OPTIMIZATION.plans, *left)))
    )
    assert "\n2 other plans were tried, 2 not; tolerance fp32.\n" in told


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_long_names_of_plans_push_no_column(width):
    names = ["plain eval()", "inductor fp32 nhwc 1x32 t1", "a back end of a very long name fp32 2x16 and more of it"]
    timed = [
        PlanRecord(name=name, outcome="verified", samples_per_second=120.0, speedup=2.0, streams=1, batch=32)
        for name in names
    ]
    record = msgspec.structs.replace(OPTIMIZATION, plans=(OPTIMIZATION.plans[0], *timed))
    lines = plans_text(record, width=width, color=False).splitlines()
    ends = {line.rindex("x") for line in lines if line.rstrip().endswith("2.0x")}
    assert len(ends) == 1 and max(map(len, lines)) <= width
    legend = " ".join(" ".join(lines).split())
    assert "over plain: median of paired rounds; 1x32: 1 stream, executions of 32; t1: 1 thread" in legend
