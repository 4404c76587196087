"""How a comparison and a verification look in a terminal."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from evalmode.terminal.comparison import EffectLine, FlipLine, comparison_text
from evalmode.terminal.verification import verification_text

GOLDEN = Path(__file__).parent / "golden"
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")

EFFECTS = (
    EffectLine(
        "accuracy", (0, 1), (0.652, 0.713), 0.061, 0.035, 0.085, 0.00003, "better", "McNemar's exact test",
        proportion=True, margin=0.01, equivalent=False, equivalence_p=1.0, non_inferior=True, non_inferiority_p=0.0001,
    ),
    EffectLine("log loss", (0, 1), (0.7912, 0.6871), -0.1041, -0.128, -0.08, 0.00002, "better"),
    EffectLine("accuracy", (0, 2), (0.652, 0.652), 0.0, -0.012, 0.012, 1.0, "no difference shown", proportion=True),
    EffectLine("log loss", (0, 2), (0.7912, 0.8637), 0.0725, None, None, None, "not tested", "no interval: one sample"),
)  # fmt: skip
FLIPS = (
    FlipLine("accuracy", (0, 1), 41, 8, ("0", "31", "46", "58", "100", "101", "113", "120"), ("23", "47")),
    FlipLine("accuracy", (0, 2), 0, 0),
)
LABELS = ("resnet18.parquet", "resnet50.parquet", "resnet50-distilled-from-a-much-larger-teacher.parquet")
ROWS = (
    ("model", "weights", "same", ""),
    ("model", "class", "same", ""),
    ("environment", "torch", "same", ""),
    ("environment", "threads", "differs", "2, here 1"),
    ("contract", "deterministic", "same", "kept on 12 probes"),
    ("contract", "no-randomness", "differs", "kept, here broken: EM122 functional dropout is on in evaluation mode"),
    ("contract", "mode-complete", "cannot be tested here", "an artifact holds the plan, not the model"),
    ("contract", "restores", "cannot be tested here", "an artifact holds the plan, not the model"),
    ("plan", "golden outputs", "same", "the same bits"),
    ("test set", "accuracy", "same", "98.9 %, the same bits"),
    ("test set", "log loss", "differs", "0.0412, here 0.0611 with other processor: outside its interval, 0.03 to 0.05"),
)


def held_against(name, text, update):
    path = GOLDEN / name
    if update:
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


@pytest.fixture
def update_golden(request):
    return request.config.getoption("--update-golden", default=False)


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHONIOENCODING", "LC_ALL", "LC_CTYPE", "LANG", "TERM"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("width", [80, 50])
def test_comparison_golden(width, update_golden):
    text = comparison_text(
        LABELS, 540, EFFECTS, FLIPS, notes=("B has skipped 2 bad samples",), width=width, color=False
    )
    held_against(f"comparison-{width}.txt", text, update_golden)


@pytest.mark.parametrize("width", [80, 50])
def test_verification_golden(width, update_golden):
    text = verification_text(
        "digits/task.py", "2026-01-01T00:00:00Z", ROWS, ignored=["environment"], seconds=4.2, width=width, color=False
    )
    held_against(f"verification-{width}.txt", text, update_golden)


def test_the_closing_word_is_the_gravest():
    worse = EffectLine("log loss", (0, 1), (1.0, 2.0), 1.0, 0.5, 1.5, 0.001, "worse")
    text = comparison_text("AB", 9, [EFFECTS[0], worse], width=80, color=False)
    assert "B WORSE  in log loss; better in accuracy" in text
    unknown = EffectLine("own", (0, 1), (1.0, 2.0), 1.0, 0.5, 1.5, 0.001, "different")
    assert "B DIFFERENT  in own" in comparison_text("AB", 9, [unknown], width=80, color=False)


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=60)
numbers = st.floats(allow_nan=False, allow_infinity=False)
effects = st.builds(
    EffectLine,
    metric=words,
    models=st.just((0, 1)),
    values=st.tuples(numbers, numbers),
    effect=numbers,
    low=st.none() | numbers,
    high=st.none() | numbers,
    p_value=st.none() | st.floats(0, 1),
    verdict=st.sampled_from(["better", "worse", "different", "no difference shown", "not tested"]),
    method=words,
    proportion=st.booleans(),
    margin=st.none() | st.floats(1e-300, 1e300),
    equivalent=st.none() | st.booleans(),
    equivalence_p=st.none() | st.floats(0, 1),
    non_inferior=st.none() | st.booleans(),
    non_inferiority_p=st.none() | st.floats(0, 1),
)
flips = st.builds(
    FlipLine,
    metric=words,
    models=st.just((0, 1)),
    gained=st.integers(0, 10**6),
    lost=st.integers(0, 10**6),
    first_gained=st.lists(words, max_size=3).map(tuple),
)
rows = st.tuples(words, words, st.sampled_from(["same", "differs", "cannot be tested here"]), words)


@given(
    width=st.integers(20, 100),
    labels=st.tuples(words, words),
    lines=st.lists(effects, min_size=1, max_size=3),
    flipped=st.lists(flips, max_size=1),
    told=st.lists(rows, max_size=5),
)
def test_never_wider_than_the_terminal_and_colour_changes_no_character(width, labels, lines, flipped, told):
    # what others wrote is shown, and moves nothing
    for plain, colored in (
        [comparison_text(labels, 3, lines, flipped, width=width, color=color) for color in (False, True)],
        [verification_text("net", "today", told, width=width, color=color) for color in (False, True)],
    ):
        assert max(map(cell_len, plain.splitlines())) <= width
        assert "\x1b" not in plain
        assert [line.rstrip() for line in ESCAPE.sub("", colored).split("\n")] == [
            line.rstrip() for line in plain.split("\n")
        ]


@pytest.mark.parametrize(
    "effect",
    [
        EffectLine("log loss", (0, 1), (0.6931, 0.6933), 0.0002, -0.00012, 0.00052, 0.2, "no difference shown"),
        EffectLine("log loss", (0, 1), (0.6931, 0.6933), 2e-5, -1e-5, 5e-5, 0.2, "no difference shown"),
        EffectLine("loss", (0, 1), (5000.12345, 5000.1), 0.02345, -0.0001, 0.05, 0.2, "no difference shown"),
        EffectLine("正解率", (0, 1), (0.65, 0.71), 0.06, 0.03, 0.08, 0.001, "better", proportion=True),
    ],
)
def test_figures_never_run_into_each_other(effect):
    text = comparison_text(("a", "b"), 100, (effect,), (), confidence=0.95, width=80, color=False)
    assert max(map(cell_len, text.splitlines())) <= 80
    assert not re.search(r"\d[+-]\d", text.replace("e-", "e").replace("e+", "e"))
