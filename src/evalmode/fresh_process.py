"""The same inputs through the same model in a fresh process: what depends on this process's history shows there.

Hash order, addresses, the order of imports and what ran before differ from one process to the next. The process loads
the task by its reference and runs the inputs that this one ran; it works while this one goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import torch
from torch import nn

from evalmode.certificate import Certificate, ClauseResult
from evalmode.clause import Verdict
from evalmode.finding import Finding
from evalmode.observe.fingerprint import fingerprint
from evalmode.observe.fp32_precision import fp32_precisions, set_fp32_precisions
from evalmode.observe.streams import seed_streams
from evalmode.observe.tree import map_tensors, same_bits, tensor_leaves
from evalmode.predictor.calling import call
from evalmode.task import Task, load_task

__all__ = ["FreshProcess", "FreshResult", "load_seeded", "seeded_outputs", "with_fresh_process"]

_TIMEOUT = 600.0
_SEED = 0
_REQUEST, _INPUTS, _ANSWER = "request.json", "inputs.pt", "answer.pt"


@dataclass(frozen=True, slots=True)
class FreshResult:
    """What the fresh process gave. `skipped` says why nothing was compared, and is empty where something was.

    `difference` is the largest absolute difference of any output, 0.0 where all bits are the same.
    """

    same: bool = False
    difference: float = 0.0
    skipped: str = ""


def load_seeded(reference: str, weights: str | None = None, *, for_data: bool = False) -> Task:
    """The task that `reference` names, built from the same random numbers in every process: weights made anew agree.

    Where it is wanted `for_data`, a model that cannot be built without weights is left out.

    Raises:
        TaskError: it cannot be loaded.
    """
    seed_streams(_SEED)
    return load_task(reference, weights=weights, for_data=for_data)


def seeded_outputs(module: nn.Module, inputs: Any, forward: Callable[[Any, Any], Any] | None) -> list[torch.Tensor]:
    """The output tensors after a plain `eval()`, every random stream seeded. The caller puts state and streams back."""
    module.eval()
    seed_streams(_SEED)
    with torch.no_grad():
        outputs = call(module, inputs, forward)
    return [tensor.detach().cpu() for _, tensor in tensor_leaves(outputs)]


class FreshProcess:
    """A process that loads `reference` and runs `inputs`; a context manager, so that it never outlives its caller.

    Example:
        >>> with FreshProcess("examples/digits/task.py", None, inputs, "cpu") as process:  # doctest: +SKIP
        ...     result = process.result(fingerprint(module), outputs)
    """

    def __init__(self, reference: str, weights: str | None, inputs: Any, device: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="evalmode-")
        self._reference, self._weights, self._device = reference, weights, device
        self._inputs = inputs
        self._process: subprocess.Popen[bytes] | None = None
        self._refused = ""

    def __enter__(self) -> Self:
        folder = Path(self._folder.name)
        try:
            torch.save(map_tensors(lambda tensor: tensor.detach().cpu(), _plain(self._inputs)), folder / _INPUTS)
            torch.load(folder / _INPUTS, weights_only=True)
        except Exception as error:  # noqa: BLE001 - whatever cannot be written is said, not run
            self._refused = f"the inputs cannot be handed over ({type(error).__name__})"
            return self
        request = {
            "reference": self._reference,
            "weights": self._weights,
            "device": self._device,
            "threads": torch.get_num_threads(),
            "fp32_precisions": fp32_precisions(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }
        (folder / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
        with (folder / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "evalmode.fresh_process", self._folder.name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def result(self, weights: str, outputs: list[torch.Tensor]) -> FreshResult:
        """What the process found, beside this process's `fingerprint` and outputs. Waits for it to end."""
        if self._process is None:
            return FreshResult(skipped=self._refused)
        try:
            status = self._process.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            return FreshResult(skipped=f"it took longer than {_TIMEOUT:.0f} s")
        folder = Path(self._folder.name)
        if status != 0 or not (folder / _ANSWER).is_file():
            lines = (folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return FreshResult(skipped=f"it failed: {lines[-1]}" if lines else f"it ended with status {status}")
        answer = torch.load(folder / _ANSWER, weights_only=True)
        if answer["weights"] != weights:
            return FreshResult(skipped="model() builds other weights there; save the weights, or seed model()")
        return _compared(answer["outputs"], outputs)


def _compared(there: list[torch.Tensor], here: list[torch.Tensor]) -> FreshResult:
    if _all_same(there, here):
        return FreshResult(same=True)
    if [tensor.shape for tensor in there] != [tensor.shape for tensor in here]:
        return FreshResult(difference=float("inf"))
    differences = [
        float((one.double() - other.double()).abs().max())
        for one, other in zip(there, here, strict=True)
        if one.numel() and not one.is_complex()
    ]
    return FreshResult(difference=max(differences, default=float("nan")))


def _all_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(same_bits(one, other) for one, other in zip(first, second, strict=True))


def _plain(tree: Any) -> Any:
    """Mappings of any kind as dicts, so that the inputs load without unpickling classes."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    if type(tree) in {list, tuple}:
        return type(tree)(_plain(value) for value in tree)
    return tree


def _run(folder: Path) -> None:
    request = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    set_fp32_precisions(tuple(request["fp32_precisions"]))
    torch.use_deterministic_algorithms(request["deterministic"])
    task = load_seeded(request["reference"], request["weights"])
    module = task.model
    if not isinstance(module, nn.Module):
        raise TypeError(f"a {type(module).__name__} instead of a module")
    module = module.to(request["device"])
    weights = fingerprint(module)
    inputs = map_tensors(lambda tensor: tensor.to(request["device"]), torch.load(folder / _INPUTS, weights_only=True))
    outputs = seeded_outputs(module, inputs, task.forward)
    torch.save({"weights": weights, "outputs": outputs}, folder / f"{_ANSWER}.part")
    os.replace(folder / f"{_ANSWER}.part", folder / _ANSWER)


if __name__ == "__main__":
    _run(Path(sys.argv[1]))


def with_fresh_process(certificate: Certificate, fresh: FreshResult) -> Certificate:
    """The clause `deterministic` with what the fresh process gave."""
    findings = certificate.findings
    clauses: list[ClauseResult] = []
    for result in certificate.clauses:
        if result.clause == "deterministic" and result.verdict is Verdict.KEPT:
            if fresh.skipped:
                note = f"not compared with a fresh process: {fresh.skipped}"
                result = msgspec.structs.replace(result, notes=(*result.notes, note))
            elif fresh.same:
                evidence = "same bits again, here and in a fresh process"
                result = msgspec.structs.replace(result, evidence=evidence, probes=result.probes + 1)
            else:
                evidence = "same bits again here, other bits in a fresh process"
                result = msgspec.structs.replace(
                    result, verdict=Verdict.BROKEN, evidence=evidence, probes=result.probes + 1
                )
                findings = (*findings, _fresh_finding(fresh))
        clauses.append(result)
    return msgspec.structs.replace(certificate, clauses=tuple(clauses), findings=findings)


def _fresh_finding(fresh: FreshResult) -> Finding:
    return Finding(
        code="EM182",
        clause="deterministic",
        summary="the same input gives other bits in a fresh process",
        seen=f"the same weights and inputs; outputs differ by up to {fresh.difference:.2g}",
        fix="look for hash order (iterate over sorted(...) instead of a set), id(), time, and state from earlier calls",
    )
