"""The cache of plans: what is read is what was written, or nothing."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalmode.backends.configuration import Configuration
from evalmode.certificate import OptimizationRecord, PlanRecord
from evalmode.optimization.plan_cache import CachedPlan, cache_folder, cache_key, read_plan, write_plan


def plan() -> CachedPlan:
    record = OptimizationRecord(
        tolerance="fp32",
        objective="throughput",
        batch_sizes=(1, 8),
        execution_sizes=(8,),
        stable=True,
        plans=(PlanRecord(name="plain eval()", outcome="plain", seconds={"1": 0.5, "8": 2.0}),),
    )
    return CachedPlan(configurations=(Configuration(backend="openvino", batch=8),), form="passes", record=record)


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALMODE_CACHE", str(tmp_path))
    assert read_plan("a" * 64) is None
    assert write_plan("a" * 64, plan())
    assert read_plan("a" * 64) == plan()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format_version": 99}', b"\x00\xff"])
def test_what_is_no_plan_is_searched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("EVALMODE_CACHE", str(tmp_path))
    write_plan("b", plan())
    (tmp_path / "plans" / "b.json").write_bytes(content)
    assert read_plan("b") is None


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALMODE_CACHE", "off")
    assert cache_folder() is None
    assert not write_plan("c", plan())
    assert read_plan("c") is None
    monkeypatch.delenv("EVALMODE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "evalmode"
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("EVALMODE_CACHE", str(blocked))
    assert not write_plan("c", plan())


@given(parts=st.lists(st.text(), min_size=1), others=st.lists(st.text(), min_size=1))
def test_other_parts_have_other_keys(parts: list[str], others: list[str]) -> None:
    assert (cache_key(*parts) == cache_key(*others)) == (parts == others)
