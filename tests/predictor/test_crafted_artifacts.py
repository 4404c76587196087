"""A file with a right digest, whatever its manifest says: refused with an ArtifactError, or it answers as before."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tests.predictor import fake_backend
from tests.predictor.fake_backend import Net, predictor

from evalmode.certificate import Certificate
from evalmode.errors import ArtifactError
from evalmode.observe.fingerprint import environment_record, model_record
from evalmode.predictor.artifact import inspect_artifact, load
from evalmode.predictor.artifact_file import read_sections, write_sections
from evalmode.predictor.manifest import manifest_from
from evalmode.predictor.plan import AxisPadding, NonFinite, PaddedAxis

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ALLOWED = 256 << 20  # bytes: an execution of the largest size that a plan may name takes a third of it

ODD = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 7, 8, 1 << 20, 10**6, 1 << 31, (1 << 63) - 1, (1 << 64) - 1, -(1 << 63)]),
    st.sampled_from([0.0, -0.0, 0.5, 1e-300, 1e308, -1.5, None, True, False]),
    st.sampled_from(
        ["", "xyz", "cpu", "cpu:1", "cuda:300", "meta", "fp16", "float64", "int64", "bits8", "nan", "plain"]
    ),
    st.sampled_from(["mapping", "tuple", "single", "forward", "tensor", "constant", "omitted", "payload.0", "probes"]),
    st.sampled_from([[], {}, [None], [0], {"type": "tensor"}, {"type": "omitted", "kind": "x"}]),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree of JSON."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def changed(tree: Any, data: st.DataObject) -> None:
    """Replace, remove, repeat or exchange one thing in a tree of JSON."""
    path = data.draw(st.sampled_from(list(places(tree))))
    holder, key = at(tree, path[:-1]), path[-1]
    how = data.draw(st.sampled_from(["other", "other", "other", "another's", "gone", "twice"]))
    if how == "other":
        holder[key] = copy.deepcopy(data.draw(ODD))
    elif how == "another's":
        holder[key] = copy.deepcopy(at(tree, data.draw(st.sampled_from(list(places(tree))))))
    elif how == "gone":
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[f"{key}s"] = copy.deepcopy(holder[key])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file with everything in it that a plan may have."""
    torch.manual_seed(0)
    model = Net()
    certificate = Certificate(
        created="today", subject="Net", model=model_record(model), environment=environment_record()
    )
    with pytest.MonkeyPatch.context() as patch:
        fake_backend.install(patch)
        fast = predictor((2, 8), model=model, certificate=certificate)
        padded = PaddedAxis(0, fake_backend.FEATURES, (AxisPadding(0, 1, 1),))
        plan = msgspec.structs.replace(fast.plan, padded=padded, non_finite=NonFinite("nan", (0,)))
        full = type(fast)(plan, fast.executors, probes=fast.probes, certificate=certificate)
        yield full.save(tmp_path_factory.mktemp("whole") / "model.evalmode")


def resident(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_manifest_is_refused_or_answers_as_before(whole: Path, data: st.DataObject) -> None:
    text, sections = read_sections(whole)
    tree = json.loads(text)
    tree.pop("sections")
    for _ in range(data.draw(st.integers(1, 3))):
        changed(tree, data)
    tree = {key: value for key, value in tree.items() if key != "sections"} if isinstance(tree, dict) else {}
    path = write_sections(whole.with_name("crafted.evalmode"), tree, sections)
    measured = CLEAR.exists()
    if measured:
        CLEAR.write_text("5")  # the highest mark begins anew
    before = resident("VmRSS") if measured else 0
    try:
        inspect_artifact(path)
        loaded = load(path)
    except ArtifactError:
        event("refused")
    else:
        event("loaded")
        kept = safetensors.torch.load(sections["probes"])
        for number, now in enumerate(loaded.run_flat([kept["input.0"]])):
            then = kept[f"output.{number}"]
            torch.testing.assert_close(now, then, rtol=1e-5, atol=1e-5)
        assert str(loaded)
    if measured:
        assert resident("VmHWM") - before < ALLOWED


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1" + "0" * 400, "1e999", "NaN"])
def test_a_number_beyond_what_we_count_with_is_refused(whole: Path, number: str) -> None:
    tree = json.loads(read_sections(whole)[0])
    for path in list(places(tree)):
        if path[0] in {"plan", "golden"} and type(at(tree, path)) in (int, float):
            again = copy.deepcopy(tree)
            at(again, path[:-1])[path[-1]] = "@"
            with pytest.raises(ArtifactError):
                manifest_from(json.dumps(again).replace('"@"', number).encode(), "a file")
