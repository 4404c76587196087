"""A certificate comes back from its file, whatever numbers it holds."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.predictor.fake_backend import backend, predictor

from evalmode.certificate import (
    Certificate,
    Environment,
    EvaluationRecord,
    MetricRecord,
    ModelRecord,
    OptimizationRecord,
    PlanRecord,
    decoded,
)
from evalmode.errors import CertificateError
from evalmode.optimization.plan_cache import CachedPlan, read_plan, write_plan
from evalmode.predictor import artifact, manifest
from evalmode.predictor.artifact import inspect_artifact
from evalmode.predictor.manifest import Manifest
from evalmode.terminal import certificate_text

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
WHOLE = st.integers(-(2**53), 2**53)
MEASURED = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        st.none() | st.booleans() | WHOLE | FLOATS | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    float: FLOATS,
    int: WHOLE,
    bool: st.booleans(),
    str: st.text(max_size=6),
    type(None): st.none(),
}


def drawn(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type hint, every field of a record included."""
    if kind in PLAIN:
        return PLAIN[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return st.one_of(*map(drawn, arguments))
    if origin is tuple and arguments[-1] is ...:
        return st.lists(drawn(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(drawn, arguments))
    if origin is dict:
        return (
            MEASURED if arguments[1] is Any else st.dictionaries(drawn(arguments[0]), drawn(arguments[1]), max_size=2)
        )
    if issubclass(kind, enum.Enum):
        return st.sampled_from(list(kind))
    return st.builds(kind, **{name: drawn(hint) for name, hint in typing.get_type_hints(kind).items()})


CERTIFICATES = drawn(Certificate).map(lambda certificate: msgspec.structs.replace(certificate, format_version=1))


def without_infinities(value: Any) -> Any:
    """What JSON can keep of a record: the oracle is Python's own traversal, and knows nothing of msgspec's types."""
    if isinstance(value, float):
        return "not finite" if not math.isfinite(value) else value
    if isinstance(value, msgspec.Struct):
        return {name: without_infinities(getattr(value, name)) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value):
        return {field.name: without_infinities(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinities(item) for item in value]
    return value


def agrees(before: Any, after: Any) -> bool:
    """Equal, but for a number that was not finite: NaN afterwards, or None."""
    if before == "not finite":
        return after in ("not finite", None)
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(agrees(before[key], after[key]) for key in before)
    if isinstance(before, list):
        return len(before) == len(after) and all(map(agrees, before, after))
    return bool(before == after) and type(before) is type(after)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@settings(max_examples=150, deadline=None)
@given(certificate=CERTIFICATES)
def test_every_certificate_comes_back(certificate: Certificate, folder: Path) -> None:
    again = Certificate.load(certificate.save(folder / "certificate.json"))
    assert agrees(without_infinities(certificate), without_infinities(again))
    assert again.to_json() == certificate.to_json()
    json.loads(certificate.to_json(), parse_constant=pytest.fail)  # strict JSON: no NaN token


@settings(max_examples=40, deadline=None)
@given(certificate=CERTIFICATES)
def test_every_certificate_comes_back_out_of_an_artifact(certificate: Certificate, folder: Path) -> None:
    fast = predictor((2,))
    whole = Manifest(
        written_by="0",
        plan=fast.plan,
        payloads=("payload.0",),
        versions={"fake": ""},
        environment=certificate.environment,
        instructions="",
        golden=0.0,
        outputs_digest="",
        certificate=certificate,
    )
    again = decoded(msgspec.json.encode(whole), Manifest)
    assert again.certificate is not None
    assert again.certificate.to_json() == certificate.to_json()
    assert again.plan == fast.plan


def example(**changes: Any) -> Certificate:
    parts: dict[str, Any] = {
        "created": "2026-01-01",
        "subject": "Net",
        "model": ModelRecord(name="Net", modules=1, parameters=1, bytes=4, fingerprint=""),
        "environment": Environment(
            evalmode="0", python="3", torch="2", device="cpu", processor="", cores=1, threads=1, platform=""
        ),
    }
    return Certificate(**(parts | changes))


def test_null_is_nan_where_a_number_is_wanted_and_none_where_none_is_allowed(tmp_path: Path) -> None:
    metric = MetricRecord(name="loss", value=math.inf, low=-math.inf, high=math.nan)
    plan = PlanRecord(name="plain", outcome="plain", seconds={"8": math.nan, "1": 0.5}, speedup=math.inf)
    certificate = example(
        seconds=math.nan,
        evaluation=EvaluationRecord(samples=1, batch_size=1, metrics=(metric,)),
        optimization=OptimizationRecord(
            tolerance="fp32", objective="latency", batch_sizes=(1,), execution_sizes=(1,), stable=True, plans=(plan,)
        ),
    )
    again = Certificate.load(certificate.save(tmp_path / "c.json"))
    assert again.evaluation is not None and again.optimization is not None
    (read,) = again.evaluation.metrics
    assert math.isnan(again.seconds) and math.isnan(read.value)
    assert (read.low, read.high) == (None, None)
    (read_plan_record,) = again.optimization.plans
    assert math.isnan(read_plan_record.seconds["8"]) and read_plan_record.seconds["1"] == 0.5
    assert read_plan_record.speedup is None
    assert "nan" in certificate_text(again, width=80, color=False)


def test_an_artifact_with_nan_in_its_certificate_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (artifact, manifest):
        monkeypatch.setattr(module, "backend_of", lambda name: backend())
    metric = MetricRecord(name="loss", value=math.nan)
    fast = predictor((2,), certificate=example(evaluation=EvaluationRecord(samples=1, batch_size=1, metrics=(metric,))))
    path = fast.save(tmp_path / "model.evalmode")
    for certificate in (artifact.load(path).certificate, inspect_artifact(path).certificate):
        assert certificate is not None and certificate.evaluation is not None
        assert math.isnan(certificate.evaluation.metrics[0].value)


def test_a_kept_plan_with_nan_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALMODE_CACHE", str(tmp_path))
    plan = PlanRecord(name="plain", outcome="plain", seconds={"8": math.nan})
    record = OptimizationRecord(
        tolerance="fp32", objective="latency", batch_sizes=(8,), execution_sizes=(8,), stable=True, plans=(plan,)
    )
    assert write_plan("key", CachedPlan(configurations=(), record=record))
    kept = read_plan("key")
    assert kept is not None and math.isnan(kept.record.plans[0].seconds["8"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no certificate"),
        (b"\xff\xfe{}", "no certificate"),
        (b"null", "no certificate"),
        (b"[]", "no certificate"),
        (b'{"format_version": null}', "no certificate"),
        (b'{"format_version": 1}', "created"),
        (b'{"format_version": 2}', "pip install --upgrade"),
        (b'{"format_version": 1, "created": "' + b"\xff" + b'"}', "no certificate"),
        (b'{"format_version": 1, "measured": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "no certificate"),
    ],
)
def test_what_is_no_certificate_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(data)
    with pytest.raises(CertificateError, match=message):
        Certificate.load(path)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CertificateError, match=r"cannot write '.*file/c.json': "):
        example().save(tmp_path / "file" / "c.json")


@pytest.mark.parametrize("field", ["samples", "batch_size", "exact", "metrics"])
def test_null_stays_wrong_where_no_float_is_wanted(tmp_path: Path, field: str) -> None:
    whole = json.loads(example(evaluation=EvaluationRecord(samples=1, batch_size=1)).to_json())
    whole["evaluation"][field] = None
    path = tmp_path / "c.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(CertificateError, match=field):
        Certificate.load(path)


def test_null_in_other_types() -> None:
    assert decoded(b"[1, null]", tuple[float, ...])[0] == 1.0
    assert math.isnan(decoded(b"[1, null]", tuple[float, float])[1])
    assert decoded(b'{"a": null}', dict[str, float | None]) == {"a": None}
    assert decoded(b'[null, 1, "a"]', tuple[float | str | None, ...]) == (None, 1.0, "a")
