"""Predictors on the real back ends: the bits of a sample, artifacts, and what loading needs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.predictor.fake_backend import rewritten
from torch import nn

import evalmode
from evalmode.backends.backend import Chunk, Executor
from evalmode.backends.catalog import backend_named
from evalmode.backends.configuration import Configuration
from evalmode.backends.program import Program
from evalmode.errors import ArtifactError
from evalmode.observe.fingerprint import fingerprint
from evalmode.observe.tree import same_bits
from evalmode.predictor import artifact, execution
from evalmode.predictor.artifact import inspect_artifact
from evalmode.predictor.execution import Execution
from evalmode.predictor.optimized import OptimizedPredictor
from evalmode.predictor.plan import Plan, spec_of
from evalmode.predictor.structure import input_structure, output_structure

IMAGES = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
WRITES = ("onnxruntime", "openvino")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 3, 2))
        self.head = nn.Linear(8, 16)  # rows of 64 bytes

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.body(images).mean((2, 3)))
        return {"logits": logits, "labels": logits.argmax(-1)}


class Flat(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model(images).values())


@cache
def model() -> Net:
    torch.manual_seed(7)
    return Net().eval()


@cache
def program() -> Program:
    flat, example = Flat(model()).eval(), IMAGES[:4].clone()
    with torch.no_grad():
        exported = torch.export.export(flat, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    return Program(flat, (example,), ("images",), (0,), (0, 0), exported)


@cache
def predictor(back_end: str, sizes: tuple[int, ...] = (4,), streams: int = 1) -> OptimizedPredictor:
    if backend_named(back_end).missing() is not None:
        pytest.skip(f"{back_end} is not installed")
    with torch.no_grad():
        outputs = output_structure(model()(IMAGES[:4]))
        flat = outputs.flatten(model()(IMAGES[:4]))
    form = input_structure(IMAGES)
    plan = Plan(
        configurations=tuple(Configuration(backend=back_end, batch=size, streams=streams) for size in sizes),
        costs=tuple(1.0 + size for size in sizes),
        inputs=(spec_of("images", IMAGES, 0),),
        outputs=tuple(spec_of(name, tensor, 0) for name, tensor in zip(("logits", "labels"), flat, strict=True)),
        input_form=form.root,
        output_form=outputs.root,
        call="single",
        parameters=("images",),
        weights=fingerprint(model()),
    )
    executors = [backend_named(back_end).build(program(), configuration) for configuration in plan.configurations]
    return OptimizedPredictor(plan, executors, outputs=outputs, probes=[IMAGES[:6]])


@pytest.fixture(params=["eager", *WRITES])
def fast(request: pytest.FixtureRequest) -> OptimizedPredictor:
    return predictor(request.param)


def test_a_sample_has_the_same_bits_in_every_batch(fast: OptimizedPredictor) -> None:
    with torch.no_grad():
        plain = model()(IMAGES)
    whole = fast(IMAGES)
    torch.testing.assert_close(whole["logits"], plain["logits"])
    random = torch.Generator().manual_seed(2)
    for samples in (1, 2, 3, 4, 5, 8, 13, 24):
        order = torch.randperm(24, generator=random)[:samples]
        for images in (IMAGES[order], IMAGES[order].to(memory_format=torch.channels_last)):
            assert same_bits(fast(images)["logits"], whole["logits"][order])


@pytest.mark.parametrize("back_end", ["eager", "onnxruntime", "openvino"])
@pytest.mark.parametrize("samples", [3, 4, 5, 8, 13])
def test_large_outputs_are_written_into_their_place(
    back_end: str, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "_LARGE", 1)
    fast = predictor(back_end)
    whole = fast(IMAGES)
    anew = Execution(fast.plan, dict.fromkeys(fast.execution_sizes, fast.executors[0]))
    written = []
    own = type(fast.executors[0]).run_into

    def counted(executor: Executor, chunk: Chunk, outputs: Chunk) -> bool:
        written.append(own(executor, chunk, outputs))
        return written[-1]

    monkeypatch.setattr(type(fast.executors[0]), "run_into", counted)
    logits, labels = anew([IMAGES[:samples]])
    assert same_bits(logits, whole["logits"][:samples]) and same_bits(labels, whole["labels"][:samples])
    assert logits.is_contiguous() and not logits.requires_grad
    full = samples // 4 if samples > 4 else 0  # a call of one execution has its outputs to itself
    assert written == [back_end == "onnxruntime"] * full


def test_the_callers_modes_and_threads_do_not_matter(fast: OptimizedPredictor) -> None:
    expected = fast(IMAGES[:5])
    found = []
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found.append(fast(IMAGES[:5]))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        found.append(fast(IMAGES[:5]))
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    others = [threading.Thread(target=lambda: found.append(fast(IMAGES[:5]))) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert len(found) == 6
    for each in found:
        assert same_bits(each["logits"], expected["logits"]) and not each["logits"].is_inference()
        assert each["logits"].dtype is torch.float32 and each["labels"].dtype is torch.int64


def test_streams_give_the_same_bits() -> None:
    one, two = predictor("openvino"), predictor("openvino", streams=2)
    assert same_bits(two(IMAGES)["logits"], two(IMAGES.flip(0))["logits"].flip(0))
    torch.testing.assert_close(one(IMAGES)["logits"], two(IMAGES)["logits"])


@pytest.mark.parametrize("back_end", WRITES)
def test_an_artifact_gives_the_same_bits_in_a_fresh_process_without_the_model(tmp_path: Path, back_end: str) -> None:
    fast = predictor(back_end)
    path = fast.save(tmp_path / "model.evalmode")
    torch.save({"images": IMAGES, "logits": fast(IMAGES)["logits"]}, tmp_path / "expected.pt")
    other = {"onnxruntime": "openvino", "openvino": "onnxruntime"}[back_end]
    code = f"""
import sys, torch, evalmode
fast = evalmode.load({str(path)!r})
expected = torch.load({str(tmp_path / "expected.pt")!r})
assert torch.equal(fast(expected["images"])["logits"], expected["logits"])
assert fast(expected["images"][:3])["labels"].shape == (3,)
unused = {{{other!r}, "onnxscript", "transformers"}} & set(sys.modules)
assert not unused, unused
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    again = evalmode.load(path)
    assert again.matches(model())
    assert same_bits(again(IMAGES)["logits"], fast(IMAGES)["logits"])


@pytest.mark.parametrize("back_end", WRITES)
def test_a_damaged_payload_never_reaches_the_back_end(tmp_path: Path, back_end: str) -> None:
    path = predictor(back_end).save(tmp_path / "model.evalmode")
    whole = path.read_bytes()
    (payload,) = (each for each in inspect_artifact(path).sections if each.name == "payload.0")
    for position in range(payload.offset, payload.offset + payload.length, max(1, payload.length // 60)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(bytes(damaged))
        with pytest.raises(ArtifactError, match="digest"):
            evalmode.load(path)


def test_eager_is_saved_as_another_plan_or_not_at_all(tmp_path: Path) -> None:
    eager = predictor("eager")
    with pytest.raises(ArtifactError, match="eager cannot be written into a file"):
        eager.save(tmp_path / "model.evalmode")

    def second() -> Any:
        found = predictor("onnxruntime")
        predictor.cache_clear()  # it is closed once it is saved
        return found

    replaced = OptimizedPredictor(eager.plan, eager.executors, probes=eager.probes, serialisable=second)
    with pytest.warns(evalmode.errors.EvalmodeWarning, match="holds onnxruntime"):
        path = replaced.save(tmp_path / "model.evalmode")
    torch.testing.assert_close(evalmode.load(path)(IMAGES)["logits"], eager(IMAGES)["logits"])


@pytest.mark.parametrize("back_end", ["onnxruntime", "openvino"])
def test_a_plan_that_is_not_its_payloads_is_refused_before_it_is_built(
    back_end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rewritten(predictor(back_end).save(tmp_path / "m.evalmode"), plan__configurations__0__batch=1 << 12)

    def never(*_: object) -> Executor:
        raise AssertionError

    backend = dataclasses.replace(backend_named(back_end), load=never)
    monkeypatch.setattr(artifact, "backend_of", lambda _: backend)
    with pytest.raises(ArtifactError, match=r"has the inputs float32\[4, 3, 16, 16\][\s\S]*float32\[4096, 3, 16, 16\]"):
        evalmode.load(path)


@pytest.mark.parametrize("back_end", ["eager", *WRITES])
@pytest.mark.parametrize("streams", [1, 2])
def test_a_default_device_of_the_caller_is_not_asked(back_end: str, streams: int, tmp_path: Path) -> None:
    if streams == 2 and not backend_named(back_end).streams:
        pytest.skip(f"{back_end} has no streams")
    fast = predictor(back_end, streams=streams)
    many = torch.cat([IMAGES] * 4)
    expected = fast(many)["logits"].clone()
    path = fast.save(tmp_path / "m.evalmode") if back_end != "eager" else None
    torch.set_default_device("meta")
    try:
        again = evalmode.load(path, allow_native=True) if path is not None else fast
        found = again(many)
        threaded: list[Any] = []
        threads = [threading.Thread(target=lambda: threaded.append(again(many))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_default_device(None)
    for outputs in (found, *threaded):
        assert same_bits(outputs["logits"], expected)
    assert len(threaded) == 3


@pytest.mark.parametrize("back_end", ["eager", "inductor", *WRITES])
def test_outputs_are_contiguous_whatever_the_number_of_samples(back_end: str, tmp_path: Path) -> None:
    if backend_named(back_end).missing() is not None:
        pytest.skip(f"{back_end} is not installed")

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 6, 3)

        def forward(self, signal: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.conv(signal).transpose(1, 2),)

    signal = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(0))
    net = Turned().eval()
    with torch.no_grad():
        exported = torch.export.export(net, (signal,))
        (output,) = net(signal)
    form, outputs = input_structure(signal), output_structure(output)
    plan = Plan(
        configurations=(Configuration(backend=back_end, batch=8),),
        costs=(1.0,),
        inputs=(spec_of("signal", signal, 0),),
        outputs=(spec_of("output", output, 0),),
        input_form=form.root,
        output_form=outputs.root,
        call="single",
        parameters=("signal",),
        weights=fingerprint(net),
    )
    executor = backend_named(back_end).build(
        Program(net, (signal,), ("signal",), (0,), (0,), exported), plan.configurations[0]
    )
    fast = OptimizedPredictor(plan, [executor], outputs=outputs, probes=[signal])
    for samples in (1, 8, 9):
        assert fast(torch.cat([signal, signal])[:samples]).is_contiguous()
    if back_end in WRITES:
        again = evalmode.load(fast.save(tmp_path / "m.evalmode"), allow_native=True)
        assert same_bits(again(signal), fast(signal))
