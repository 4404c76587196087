"""A certificate and an evaluation with everything in them, from scikit-learn's digits; and a browser."""

from __future__ import annotations

import base64
import fcntl
import io
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from evalmode.certificate import (
    BadSampleRecord,
    CalibrationBin,
    Certificate,
    ClauseResult,
    ConfusionRecord,
    Environment,
    EvaluationRecord,
    MetricRecord,
    ModelRecord,
    OptimizationRecord,
    PlanRecord,
    SampleRecord,
    SliceRecord,
)
from evalmode.clause import CLAUSES, Verdict
from evalmode.finding import Finding, Place, Severity

CHROMIUM = Path("/usr/bin/chromium")


def proportion(name: str, right: np.ndarray) -> MetricRecord:
    count, total = int(right.sum()), len(right)
    between = stats.binomtest(count, total).proportion_ci(0.95, "exact")
    return MetricRecord(
        name=name,
        value=count / total,
        low=between.low,
        high=between.high,
        method="Clopper-Pearson",
        count=count,
        total=total,
    )


def png(pixels: np.ndarray) -> str:
    """Greyscale, 8 bits; Pillow and matplotlib are not needed for it."""
    import struct
    import zlib

    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(np.uint8))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    out = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    out.seek(0, os.SEEK_END)
    out.write(chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)))
    out.write(chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return base64.b64encode(out.getvalue()).decode()


@pytest.fixture(scope="session")
def evaluation() -> EvaluationRecord:
    """A small classifier of digits, trained on too few of them, so that there is something to see."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    digits = load_digits()
    inputs, target = digits.data / 16, digits.target
    model = LogisticRegression(C=0.5, max_iter=500).fit(inputs[:150], target[:150])
    inputs, target, images = inputs[600:1140], target[600:1140], digits.images[600:1140]
    scores = model.predict_proba(inputs)
    answer, sure = scores.argmax(1), scores.max(1)
    right, loss = answer == target, -np.log(scores[np.arange(len(target)), target])
    edges = np.linspace(0, 1, 11)
    place = np.clip(np.digitize(sure, edges) - 1, 0, 9)
    slices = [
        SliceRecord(
            by="class",
            name=str(digit),
            samples=int((target == digit).sum()),
            metrics=(proportion("accuracy", right[target == digit]),),
            p_value=float(min(1.0, 10 * stats.fisher_exact(_table(right, target == digit)).pvalue)),
        )
        for digit in range(10)
    ]
    slices.append(SliceRecord(by="ink", name="lowest quarter", samples=3, note="too small to test"))
    worst = np.argsort(-loss)[:12]
    return EvaluationRecord(
        samples=540,
        batch_size=64,
        seconds=0.21,
        plan="openvino fp32, executions of 64 samples, 2 threads",
        same_answers=540,
        execution_sizes=(64,),
        data="5f0c" * 16,
        metrics=(
            proportion("accuracy", right),
            MetricRecord(
                name="log loss",
                value=loss.mean(),
                low=loss.mean() - 0.04,
                high=loss.mean() + 0.05,
                method="BCa bootstrap",
            ),
        ),
        slices=tuple(sorted(slices, key=lambda item: item.metrics[0].value if item.metrics else 2)),
        confusion=ConfusionRecord(
            labels=tuple(map(str, range(10))),
            counts=tuple(
                tuple(int(((target == one) & (answer == other)).sum()) for other in range(10)) for one in range(10)
            ),
        ),
        calibration=tuple(
            CalibrationBin(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                count=int((place == index).sum()),
                confidence=float(sure[place == index].mean()) if (place == index).any() else None,
                accuracy=float(right[place == index].mean()) if (place == index).any() else None,
            )
            for index in range(10)
        ),
        worst=tuple(
            SampleRecord(
                id=str(index),
                target=str(target[index]),
                prediction=str(answer[index]),
                loss=float(loss[index]),
                image=png(images[index] * 15.9),
            )
            for index in worst
        ),
        skipped=2,
        bad=(
            BadSampleRecord(id="17", reason="cannot be decoded: truncated PNG"),
            BadSampleRecord(id="301", reason="NaN"),
        ),
    )


def _table(right: np.ndarray, chosen: np.ndarray) -> list[list[int]]:
    return [[int((right & one).sum()), int((~right & one).sum())] for one in (chosen, ~chosen)]


EVIDENCE = {
    "mode-complete": "15 modules, none out of reach of eval()",
    "no-randomness": "0 random draws",
    "running-statistics": "3 layers, within 0.07 sd of the training data",
    "no-state-change": "23 tensors, same bits afterwards",
    "no-gradients": "no graph; backward() had no effect",
    "deterministic": "same bits again, here and in a fresh process",
    "batch-independent": "same bits beside other companions, at any position",
    "finite": "9 edge inputs",
    "restores": "modes, random streams, buffers, .grad: same bits",
    "faithful": "openvino: 0.9x the error of plain fp32",
}
MEASURED = {
    "size classes": [[1], [2, 3], [4, 5], [8, 16, 32]],
    "largest difference": 1.07e-06,
    "differences between classes": [[], [9.5e-07], [9.5e-07, 4.8e-07], [1.07e-06, 7.2e-07, 4.8e-07]],
    "answers that change": 0,
    "answers compared": 8,
}


@pytest.fixture(scope="session")
def certificate(evaluation: EvaluationRecord) -> Certificate:
    """A kept certificate with plans, sizes and an evaluation."""
    note = "rounding: sizes 1 | 2-3 | 4-5 | 8-32 differ by up to 1.1e-06, first in features.3; at one size: 0 bits"
    return Certificate(
        created="2026-11-28T01:00:00+00:00",
        subject="examples/digits/task.py",
        model=ModelRecord(name="DigitsNet", modules=15, parameters=23_114, bytes=92_968, fingerprint="9b1e" * 16),
        environment=Environment(
            evalmode="0.1.0",
            python="3.11.7",
            torch="2.13.0",
            device="cpu",
            processor="AMD EPYC",
            cores=2,
            threads=2,
            platform="Linux-6.1-x86_64",
        ),
        inputs="float32[16, 1, 8, 8]",
        probes="default",
        clauses=tuple(
            ClauseResult(
                clause=name,
                verdict=Verdict.KEPT,
                probes=12 + len(name),
                evidence=EVIDENCE[name],
                notes=(note,) if name == "batch-independent" else (),
                measured=MEASURED if name == "batch-independent" else {},
            )
            for name in CLAUSES
        ),
        inferred=("the batch holds 16 samples along axis 0", "split: a batch of two is (inputs, target)"),
        optimization=optimization(),
        evaluation=evaluation,
        seconds=41.2,
        forward_passes=212,
    )


def optimization() -> OptimizationRecord:
    apart = "error 41,000x that of plain fp32, tolerance 8x"
    late = "not tried: its build takes about 9 s, 0 s were left"
    tried = [
        ("plain eval()", "", "plain", "", 37_500.0, 1.0, 1.0, 4_600_000, None),
        ("openvino fp32", "openvino", "chosen", "", 112_000.0, 2.99, 0.91, 2_100_000, 1.6),
        ("onnxruntime fp32", "onnxruntime", "verified", "", 98_000.0, 2.6, 0.62, 3_780_000, 8.0),
        ("inductor fp32", "inductor", "verified", "", 68_000.0, 1.8, 1.1, 3_900_000, 31.0),
        ("eager fp32 nhwc", "eager", "verified", "", 51_000.0, 1.4, 0.97, 4_100_000, 0.1),
        ("openvino bf16", "openvino", "rejected", apart, 190_000.0, 5.1, 41_000.0, 1_300_000, 1.9),
        ("tensorrt fp16", "tensorrt", "not installed", "pip install tensorrt", None, None, None, None, None),
        ("aot_inductor fp32", "aot_inductor", "not tried", late, None, None, None, None, 0.0),
    ]
    plans = tuple(
        PlanRecord(
            name=name,
            backend=backend,
            outcome=outcome,
            reason=reason,
            samples_per_second=rate,
            speedup=speedup,
            error=error,
            peak_bytes=peak,
            build_seconds=build,
        )
        for name, backend, outcome, reason, rate, speedup, error, peak, build in tried
    )
    return OptimizationRecord(
        tolerance="fp32",
        objective="throughput",
        batch_sizes=(64,),
        execution_sizes=(64,),
        stable=True,
        plans=plans,
        notes=("passes: remove-dropout 2, fold-batch-norm 3; 14 operators became 9",),
        seconds=24.9,
    )


@pytest.fixture(scope="session")
def broken(certificate: Certificate) -> Certificate:
    """The same model with two clauses broken, one allowed, one undecided and one not tested."""
    import msgspec

    findings = (
        Finding(
            "EM171",
            "batch-independent",
            "a sample's answer depends on the others in its batch",
            Place("neck.scale", "net.py", 41, "return x / x.abs().amax()"),
            seen="logits move by 0.31, 3 of 8 answers change; fp64 agrees: no rounding",
            fix="x / x.abs().amax((1, 2, 3), keepdim=True)",
        ),
        Finding(
            "EM122",
            "no-randomness",
            "functional dropout is on in evaluation mode",
            Place("head", "net.py", 57, "x = F.dropout(x, 0.1)"),
            seen="1 draw by aten::native_dropout",
            fix="F.dropout(x, 0.1, training=self.training)",
        ),
        Finding("EM101", "mode-complete", "a module in a plain list", Place("blocks"), severity=Severity.ALLOWED),
    )
    changes = {
        "batch-independent": (Verdict.BROKEN, ""),
        "no-randomness": (Verdict.BROKEN, ""),
        "mode-complete": (Verdict.ALLOWED, "1 finding, allowed at blocks"),
        "finite": (Verdict.UNDECIDED, "an operator has no fp64"),
        "faithful": (Verdict.NOT_TESTED, "no plan was chosen"),
    }
    clauses = tuple(
        msgspec.structs.replace(
            result,
            verdict=changes[result.clause][0],
            evidence=changes[result.clause][1],
            probes=0 if result.clause == "faithful" else result.probes,
            measured={},
            notes=(),
        )
        if result.clause in changes
        else result
        for result in certificate.clauses
    )
    return msgspec.structs.replace(
        certificate, clauses=clauses, findings=findings, optimization=None, evaluation=None, subject="net.py"
    )


@pytest.fixture(scope="session")
def chromium() -> Path:
    """Debian's Chromium, installed where it is missing and may be; tests are skipped, and that is said, elsewhere."""
    with (Path(tempfile.gettempdir()) / "evalmode-chromium.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several pytest processes installs, the others wait
        if not CHROMIUM.exists():
            _install_chromium()
    return CHROMIUM


def _install_chromium() -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        _skip("not root on Debian: apt-get install chromium")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-q"], env=quiet, capture_output=True, check=False, timeout=120)
    command = ["apt-get", "install", "-q", "-y", "--no-install-recommends", "chromium"]
    run = subprocess.run(command, env=quiet, capture_output=True, check=False, timeout=600)
    if run.returncode or not CHROMIUM.exists():
        _skip(f"apt-get install chromium failed: {run.stderr[-300:].decode(errors='replace')}")


def _skip(why: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"NO BROWSER TEST OF THE REPORT WAS RUN: {why}", stacklevel=2)
    pytest.skip(f"NO BROWSER TEST OF THE REPORT WAS RUN: {why}")


@pytest.fixture(scope="session")
def browser(chromium: Path) -> Iterator[object]:
    """One headless browser for all tests of a process. The pages are files of our own, so root needs no sandbox."""
    from playwright.sync_api import sync_playwright

    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=str(chromium), args=arguments)
        yield running
        running.close()
