"""A predictor comes back from its file with the same bits, or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch
import torch
from tests.predictor import fake_backend
from tests.predictor.fake_backend import FEATURES, Net, predictor, rewritten

import evalmode
from evalmode.backends.instructions import instruction_sets
from evalmode.certificate import Certificate, ClauseResult, EvaluationRecord, OptimizationRecord, PlanRecord
from evalmode.clause import Verdict
from evalmode.errors import ArtifactError, BackendError, EvalmodeWarning, MissingExtraError, UsageError
from evalmode.observe.fingerprint import digest_of, environment_record, model_record
from evalmode.observe.tree import same_bits
from evalmode.predictor import artifact_check, manifest
from evalmode.predictor.artifact import inspect_artifact, load
from evalmode.predictor.artifact_file import read_sections
from evalmode.predictor.plan import AxisPadding, PaddedAxis
from evalmode.predictor.structure import input_structure

X = torch.randn(11, FEATURES, generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a back end into the catalog; called again, it changes it."""
    fake_backend.install(monkeypatch)
    return partial(fake_backend.install, monkeypatch)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return predictor((2, 8)).save(tmp_path / "model.evalmode")


def elsewhere(path: Path) -> Path:
    """The same file, as if another machine had written it."""
    return rewritten(path, environment__processor="another processor")


def test_it_comes_back_with_the_same_bits_and_all_it_knew(tmp_path: Path) -> None:
    model = Net()
    certificate = Certificate(
        created="today", subject="Net", model=model_record(model), environment=environment_record()
    )
    fast = predictor((2, 8), model=model, certificate=certificate)
    again = evalmode.load(fast.save(tmp_path / "m.evalmode"))
    for samples in (1, 2, 5, 11):
        first, second = fast(X[:samples]), again(X[:samples])
        assert same_bits(first["logits"], second["logits"]) and same_bits(first["labels"][0], second["labels"][0])
        assert second["labels"][1] == "greedy" and list(second) == list(first)
    assert again.plan == fast.plan and again.certificate == certificate and again.matches(model)
    assert str(again) == str(fast)
    assert again.save(tmp_path / "again.evalmode").read_bytes() == (tmp_path / "m.evalmode").read_bytes()


def test_sizes_with_one_payload_keep_it_once(saved: Path) -> None:
    found = inspect_artifact(saved)
    assert found.payloads == ("payload.0", "payload.0") and [each.name for each in found.sections] == [
        "payload.0",
        "probes",
    ]


def test_inspecting_loads_no_payload(saved: Path, fake: Any) -> None:
    def never(*_: object) -> Any:
        raise AssertionError

    fake(load=never, missing=never)
    found = inspect_artifact(saved)
    assert found.plan.sizes == (2, 8) and found.written_by == evalmode.__version__ and found.instead_of == ""


def test_flipped_bytes_are_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for position in range(0, len(whole), 7):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        saved.write_bytes(bytes(data))
        with pytest.raises(ArtifactError):
            load(saved)


def test_native_code_has_to_be_allowed(saved: Path, fake: Any) -> None:
    loads: list[int] = []

    def spied(*given: Any) -> Any:
        loads.append(1)
        return fake_backend.load(*given)

    fake(native_code=True, load=spied)
    with pytest.raises(ArtifactError, match=r"machine code[\s\S]*allow_native=True"):
        load(saved)
    assert loads == []
    assert load(saved, allow_native=True) is not None and loads == [1, 1]


@pytest.mark.parametrize("change", [{"instructions": "Z80"}, {"versions": {"fake": "fake 0.9"}}])
def test_native_code_of_another_machine_is_refused(saved: Path, fake: Any, change: dict[str, Any]) -> None:
    rewritten(saved, **change)
    load(saved)
    fake(native_code=True)
    with pytest.raises(ArtifactError, match="for another machine"):
        load(saved, allow_native=True)


def test_native_code_for_instructions_that_are_missing_here_is_refused(saved: Path, fake: Any) -> None:
    fake(native_code=True)
    rewritten(saved, instruction_sets=["avx512_from_tomorrow"])
    with pytest.raises(ArtifactError, match="instructions that this processor has not: avx512_from_tomorrow"):
        load(saved, allow_native=True)


def test_what_was_native_when_it_was_written_names_the_instructions(tmp_path: Path, fake: Any) -> None:
    assert inspect_artifact(predictor().save(tmp_path / "data.evalmode")).instruction_sets == ()
    fake(native_code=True)
    assert inspect_artifact(predictor().save(tmp_path / "m.evalmode")).instruction_sets == instruction_sets()


@pytest.mark.parametrize("device", ["gpu", "", 3.5])
def test_what_is_no_device_is_told(saved: Path, device: Any) -> None:
    with pytest.raises(UsageError, match="a device of torch"):
        load(saved, device=device)


def test_a_missing_back_end_says_how_to_install_it(saved: Path, fake: Any) -> None:
    fake(missing=lambda: "not installed: pip install 'evalmode[optimize]'")
    with pytest.raises(MissingExtraError, match=r"pip install 'evalmode\[optimize\]'"):
        load(saved)


def test_what_this_machine_cannot_run_is_refused(saved: Path, fake: Any) -> None:
    with pytest.raises(ArtifactError, match="not for cuda"):
        load(saved, device="cuda")
    fake(precisions=lambda device: ("bf16",))
    with pytest.raises(ArtifactError, match=r"in fp32 on cpu[\s\S]*one of bf16"):
        load(saved)
    fake(load=None)
    with pytest.raises(ArtifactError, match="reads none"):
        load(saved)


def test_the_same_machine_must_give_the_same_bits(saved: Path, fake: Any) -> None:
    def off_by_little(payload: bytes, configuration: Any, outputs: int) -> Any:
        executor = fake_backend.load(payload, configuration, outputs)
        executor.weights = executor.weights * (1 + 1e-6)
        return executor

    fake(load=off_by_little)
    with pytest.raises(ArtifactError, match=r"has other bits: off by[\s\S]*the same bits"):
        load(saved)
    fake(load=off_by_little, version=lambda: "fake 2.0")
    assert load(saved) is not None  # another version: rounding is allowed
    elsewhere(saved)
    assert load(saved) is not None


def test_another_machine_may_round_otherwise_but_not_more(saved: Path, fake: Any) -> None:
    def off(payload: bytes, configuration: Any, outputs: int) -> Any:
        executor = fake_backend.load(payload, configuration, outputs)
        executor.weights = executor.weights * 1.01
        return executor

    elsewhere(saved)
    fake(load=off)
    with pytest.raises(ArtifactError, match=r"logits is off by[\s\S]*optimise the model on this machine"):
        load(saved)
    rewritten(saved, golden=0.1)
    assert load(saved) is not None


@pytest.mark.parametrize("fault", ["position", "companions"])
def test_stability_is_measured_again_on_another_machine(tmp_path: Path, fake: Any, fault: str) -> None:
    def moved(payload: bytes, configuration: Any, outputs: int) -> Any:
        executor = fake_backend.load(payload, configuration, outputs)
        executor.fault = fault
        return executor

    saved = elsewhere(predictor((2, 8), samples=9).save(tmp_path / "m.evalmode"))
    fake(load=moved)
    with pytest.raises(ArtifactError, match="of a sample moves by"):
        load(saved)
    rewritten(saved, plan__stable=False)
    assert load(saved) is not None  # it never was: the plan says so


def test_sizes_that_are_of_two_classes_elsewhere_are_refused(saved: Path, fake: Any) -> None:
    def split(payload: bytes, configuration: Any, outputs: int) -> Any:
        executor = fake_backend.load(payload, configuration, outputs)
        executor.weights = executor.weights * (1 + 1e-7 * configuration.batch)
        return executor

    elsewhere(saved)
    fake(load=split)
    with pytest.raises(ArtifactError, match=r"executions of (2|8): logits of a sample moves"):
        load(saved)


def test_a_payload_that_fails_is_refused_with_its_reason(saved: Path, fake: Any) -> None:
    with pytest.raises(ArtifactError, match="cannot be run: BackendError: the payload is no JSON"):
        load(rewritten(saved, sections={"payload.0": b"\0"}))

    def breaks(*_: Any) -> Any:
        raise TypeError("an error of its own")

    fake(load=breaks)
    with pytest.raises(ArtifactError, match="TypeError: an error of its own"):
        load(saved)


def nested(depth: int) -> Any:
    node: Any = {"type": "tensor"}
    for _ in range(depth):
        node = {"type": "sequence", "kind": "list", "items": [node]}
    return node


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"payloads": ["payload.0"]}, "every execution size has a payload"),
        ({"payloads": ["payload.0", "probes.1"]}, "no section 'probes.1'"),
        ({"plan__configurations__0__batch": 8}, "not ascending"),
        ({"plan__configurations__1__batch": 1 << 40}, "too large"),
        (
            {"plan__configurations__0__backend": "unheard", "versions": {"fake": "1", "unheard": "1"}},
            "'unheard', a back end that this version does not know",
        ),
        ({"plan__configurations__0__device": "cuda"}, "one device"),
        ({"plan__inputs__0__dtype": "evil"}, "no dtype"),
        ({"plan__inputs__0__shape": [None, 1 << 60]}, "impossible length"),
        ({"plan__inputs__0__shape": [None, 7]}, r"probe 'x' of .* is float32\[5, 6\][\s\S]*float32\[5, 7\]"),
        ({"plan__inputs__0__dtype": "float64"}, r"probe 'x' of .* is float32\[5, 6\][\s\S]*float64\[5, 6\]"),
        ({"plan__outputs__0__dtype": "float64"}, r"golden output 'logits' of .* is float32\[5, 3\][\s\S]*float64"),
        ({"plan__outputs__0__shape": [None, 4]}, r"golden output 'logits' of .* is float32\[5, 3\][\s\S]*\[5, 4\]"),
        ({"plan__outputs__2__shape": [FEATURES, 1 << 39]}, "golden output 'table'"),
        ({"plan__configurations__0__threads": 0}, "0 threads, not at least one"),
        ({"plan__configurations__1__threads": -1}, "threads, not at least one"),
        ({"plan__configurations__0__streams": 10**6}, "1000000 streams of 1 thread, not"),
        ({"plan__configurations__0__streams": 0}, "0 streams of"),
        ({"plan__configurations": [], "plan__costs": [], "payloads": []}, "not ascending"),
        ({"plan__configurations__0__device": "xyz", "plan__configurations__1__device": "xyz"}, "'xyz' is no device"),
        ({"plan__configurations__0__device": "meta", "plan__configurations__1__device": "meta"}, "the device 'meta'"),
        ({"plan__configurations__0__precision": "fp7"}, "runs fake in fp7"),
        ({"plan__non_finite": {"answer": "plain"}}, "a file does not hold"),
        ({"versions": {"fake": "fake 1.0", "openvino": "1"}}, "versions of fake, openvino, not of fake"),
        ({"versions": {}}, "versions of nothing, not of fake"),
        ({"payloads": ["payload.0", "probes"]}, "has the sections"),
        ({"sections": {"more": b""}}, "has the sections more, payload.0, probes"),
        (
            {"plan__output_form__items__1__items__1": {"type": "constant", "kind": "float", "text": "0x1p99999"}},
            "beyond",
        ),
        (
            {"plan__output_form__items__1__items__1": {"type": "constant", "kind": "int", "text": "007"}},
            "'007' is not how",
        ),
        ({"plan__output_form": nested(101)}, "more than 100 containers deep"),
        ({"plan__inputs__0__axis": 5}, "no axis 5"),
        ({"plan__inputs": []}, "input form"),
        ({"plan__outputs": []}, "output form"),
        ({"plan__costs": [1.0, -1.0]}, "positive cost"),
        ({"plan__call": "shell"}, "shell"),
        ({"golden": 3.0}, "tolerance"),
        ({"outputs_digest": "0" * 64}, "golden outputs"),
        ({"unknown": 1}, "unknown"),
        ({"sections": {"probes": b"\xff" * 80}}, "probes"),
        ({"sections": {"probes": safetensors.torch.save({"input.0": torch.ones(1, FEATURES)})}}, "probes"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_crafted_file_with_a_right_digest_is_refused(
    saved: Path, fake: Any, change: dict[str, Any], message: str
) -> None:
    def never(*_: object) -> Any:
        raise AssertionError

    fake(load=never)  # whatever is refused is refused before anything is built
    with pytest.raises(ArtifactError, match=message):
        load(rewritten(saved, **change))


def probes_of(path: Path, samples: int) -> dict[str, torch.Tensor]:
    return {
        name: tensor if name == "output.2" else tensor[:samples].clone()
        for name, tensor in safetensors.torch.load(read_sections(path)[1]["probes"]).items()
    }


def test_probes_without_samples_are_refused(saved: Path) -> None:
    tensors = probes_of(saved, 0)
    digest = digest_of([tensors[f"output.{number}"] for number in range(3)])
    rewritten(saved, sections={"probes": safetensors.torch.save(tensors)}, outputs_digest=digest)
    with pytest.raises(ArtifactError, match=r"hold 0 samples[\s\S]*at least one"):
        load(saved)


def test_an_execution_that_is_larger_than_the_memory_is_refused(
    saved: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewritten(saved, plan__configurations__1__batch=1 << 20)
    monkeypatch.setattr(artifact_check, "_memory", lambda _: 1 << 24)
    with pytest.raises(ArtifactError, match="an execution of 1,048,576 samples"):
        load(saved)


def test_padding_that_a_tensor_cannot_hold_is_refused() -> None:
    plan = predictor((2,)).plan
    spec = msgspec.structs.replace(plan.inputs[0], dtype="uint8")
    for value in (300, 0.5, -1):
        padded = PaddedAxis(0, FEATURES, (AxisPadding(0, 1, 1),))
        assert msgspec.structs.replace(plan, inputs=(spec,), padded=padded).padded == padded
        padded = PaddedAxis(1, FEATURES, (AxisPadding(0, 1, value), AxisPadding(1, 1, 0)))
        with pytest.raises(ValueError, match=f"is padded with {value}"):
            msgspec.structs.replace(
                plan,
                inputs=(spec, plan.inputs[0]),
                input_form=input_structure((X, X)).root,
                padded=padded,
            )


def test_what_cannot_be_written_says_why(tmp_path: Path) -> None:
    path = tmp_path / "m.evalmode"
    with pytest.raises(ArtifactError, match=r"fake cannot be written into a file[\s\S]*backends="):
        predictor(serialises=False).save(path)
    fast = predictor((2,))
    bare = type(fast)(fast.plan, fast.executors)
    with pytest.raises(ArtifactError, match="no probes"):
        bare.save(path)

    def refuses() -> bytes:
        raise BackendError("operator roll has no form in a file")

    fast.executors[0].payload = refuses  # type: ignore[attr-defined, method-assign]
    with pytest.raises(ArtifactError, match="operator roll has no form in a file"):
        fast.save(path)
    assert not path.exists()


def test_another_plan_takes_the_place_of_one_that_cannot_be_written(tmp_path: Path) -> None:
    model = Net()
    second = predictor((4,), model=model)
    first = predictor((2, 8), model=model, serialises=False, serialisable=lambda: second)
    with pytest.warns(
        EvalmodeWarning, match="cannot be written into a file: m.evalmode holds fake fp32, executions of 4"
    ):
        path = first.save(tmp_path / "m.evalmode")
    assert inspect_artifact(path).instead_of == "fake fp32, executions of 2, 8 samples, 1 thread"
    assert load(path).execution_sizes == (4,)
    assert all(executor.closed for executor in second.executors)  # type: ignore[attr-defined]
    assert not any(executor.closed for executor in first.executors)  # type: ignore[attr-defined]


def test_what_is_known_of_the_model_stays_with_another_plan_and_figures_of_the_first_go(tmp_path: Path) -> None:
    model = Net()

    def certificate(plan: str, *clauses: str, **more: Any) -> Certificate:
        return Certificate(
            created="2026-01-01T00:00:00+00:00",
            subject=plan,
            model=model_record(model),
            environment=environment_record(),
            clauses=tuple(ClauseResult(clause=clause, verdict=Verdict.KEPT, evidence=plan) for clause in clauses),
            optimization=OptimizationRecord(
                tolerance="fp32",
                objective="latency",
                batch_sizes=(1,),
                execution_sizes=(1,),
                stable=True,
                plans=(PlanRecord(name=plan, outcome="chosen"),),
            ),
            **more,
        )

    second = predictor((4,), model=model)
    second.attach(certificate("second", "faithful"))
    first = predictor((2, 8), model=model, serialises=False, serialisable=lambda: second)
    evaluation = EvaluationRecord(samples=1, batch_size=1, plan="fake")
    first.attach(certificate("first", "mode", "faithful", evaluation=evaluation))
    with pytest.warns(EvalmodeWarning, match="cannot be written into a file"):
        path = first.save(tmp_path / "m.evalmode")
    found = load(path).certificate
    assert found is not None and found.optimization is not None
    assert [(result.clause, result.evidence) for result in found.clauses] == [("mode", "first"), ("faithful", "second")]
    assert (found.subject, found.optimization.plans[0].name, found.evaluation) == ("first", "second", None)


def test_files_of_a_back_end_that_are_gone_are_told(tmp_path: Path) -> None:
    fast = predictor((2,))

    def gone() -> bytes:
        return (tmp_path / "model.xml").read_bytes()

    fast.executors[0].payload = gone  # type: ignore[attr-defined, method-assign]
    with pytest.raises(ArtifactError, match="its own files cannot be read"):
        fast.save(tmp_path / "m.evalmode")


def test_a_closed_predictor_holds_no_search() -> None:
    fast = predictor(serialises=False, serialisable=predictor)
    fast.close()
    assert fast.serialisable is None


def test_where_no_plan_can_be_written_the_reasons_are_told(tmp_path: Path) -> None:
    def none() -> Any:
        raise BackendError("openvino: rejected; onnxruntime: not installed")

    with pytest.raises(ArtifactError, match="no other plan takes its place: openvino: rejected; onnxruntime"):
        predictor(serialises=False, serialisable=none).save(tmp_path / "m.evalmode")


def test_what_does_not_come_back_the_same_is_not_written(tmp_path: Path, fake: Any) -> None:
    fast = predictor((2,))
    fast.executors[0].payload = lambda: json.dumps({"fault": "", "weights": [[0.0] * 3] * FEATURES}).encode()  # type: ignore[attr-defined, method-assign]
    with pytest.raises(ArtifactError, match="the new artifact"):
        fast.save(tmp_path / "m.evalmode")
    assert not (tmp_path / "m.evalmode").exists()


def test_probes_with_nan_and_infinite_outputs_are_values(tmp_path: Path) -> None:
    model = Net()
    with torch.no_grad():
        model.weight[0, 0], model.weight[1, 1] = float("nan"), float("inf")
    path = predictor((2,), model=model).save(tmp_path / "m.evalmode")
    assert load(path)(X)["logits"].isnan().any()
    assert load(elsewhere(path)) is not None


READ = """
import sys
import evalmode
from evalmode.predictor.artifact import inspect_artifact
inspect_artifact(sys.argv[1])
packages = {"onnx", "onnxruntime", "openvino", "onnxscript", "transformers", "torch._inductor.compile_fx"}
loaded = packages & set(sys.modules)
assert not loaded, loaded
"""


def test_reading_imports_no_back_end(saved: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", READ, str(saved)], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr


def test_the_manifest_is_data(saved: Path) -> None:
    found = inspect_artifact(saved)
    assert msgspec.json.decode(msgspec.json.encode(found), type=manifest.Manifest) == found
