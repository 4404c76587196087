"""`model.evalmode`: a predictor in one file, and the way back.

The file holds the plan, the payload of each execution size, the signature, the certificate, and a few probes with the
outputs that they gave. It is data: reading it runs nothing that is in it, and needs neither the model's source nor a
package of a back end that it does not use. The exception is a payload of machine code, which has to be allowed.

One digest lies over all bytes. It shows that the file is whole. It does not show where the file is from: whoever can
write a file can write its digest. Load native code only from where you would run a program.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

import evalmode
from evalmode.backends.backend import Backend, Executor
from evalmode.backends.instructions import instruction_sets
from evalmode.certificate import Certificate
from evalmode.errors import (
    ArtifactError,
    EvalmodeWarning,
    MissingExtraError,
    OtherOutputsError,
    UsageError,
)
from evalmode.observe.fingerprint import digest_of, environment_record
from evalmode.predictor.artifact_check import PROBES, probes_and_outputs, require_payloads
from evalmode.predictor.artifact_file import read_sections, write_sections
from evalmode.predictor.contents import of_another_plan, sections_of, serialisable, tensors_as_bytes
from evalmode.predictor.golden import TOLERANCES, disagreement, instability
from evalmode.predictor.manifest import Manifest, backend_of, instructions_of, manifest_from, moved, same_machine
from evalmode.predictor.non_finite import broken_samples
from evalmode.predictor.optimized import OptimizedPredictor
from evalmode.predictor.ordinary import ordinary_tensors
from evalmode.predictor.plan import Plan

__all__ = ["inspect_artifact", "load", "save_artifact"]


def save_artifact(predictor: OptimizedPredictor, path: str | os.PathLike[str], *, verify: bool = True) -> Path:
    """Write `predictor` to `path`, atomically.

    Where its back end does not serialise, the fastest verified plan that does takes its place, and a warning says so.

    With `verify` it is first made anew from the bytes, and has to give the same bits on the probes.

    Raises:
        ArtifactError: no plan of this model can be written, or it is not the same when it is read again.
    """
    chosen, payloads = serialisable(predictor)
    if chosen is predictor:
        written = _written(chosen, payloads, path, verify, chosen.certificate, "")
        _warn_of_refusals(chosen, written)
        return written
    try:
        certificate = of_another_plan(predictor.certificate, chosen.certificate)
        written = _written(chosen, payloads, path, verify, certificate, str(predictor.plan))
    finally:
        chosen.close()
    _warn_of_refusals(chosen, written)
    warnings.warn(
        f"{predictor.plan} cannot be written into a file: {written.name} holds {chosen.plan}, the fastest verified "
        "plan that can",
        EvalmodeWarning,
        stacklevel=3,
    )
    return written


def load(
    path: str | os.PathLike[str], *, allow_native: bool = False, device: str | torch.device | None = None
) -> OptimizedPredictor:
    """The predictor that `save` wrote to `path`, tested anew.

    Its golden outputs are run again: on the machine and with the versions that wrote it they have the same bits;
    elsewhere they are within the tolerance that it carries, and whether a sample's bits depend on the batch is measured
    again.

    Parameters:
        allow_native: whether to load machine code that the file brings (AOTInductor). It can do whatever a program can:
            allow it only for files from where you would run one. Files of data alone need no leave.
        device: another device of the same kind ("cuda:1").

    Raises:
        UsageError: `device` is none.
        ArtifactError: the file is damaged, foreign or newer; it brings native code, which was not allowed; this machine
            cannot run it; or it gives other outputs here (`OtherOutputsError`).
        MissingExtraError: its back end is not installed.

    Example:
        >>> fast = load("model.evalmode")  # doctest: +SKIP
    """
    data, sections = read_sections(path)
    shown = repr(os.fspath(path))
    manifest = manifest_from(data, shown)
    if device is not None:
        manifest = moved(manifest, _device(device), shown)
    with ordinary_tensors(manifest.plan.device.type):
        return _restored(manifest, sections, shown, allow_native=allow_native)


def inspect_artifact(path: str | os.PathLike[str]) -> Manifest:
    """What an artifact says about itself, without loading its payload; its digest is compared.

    Raises:
        ArtifactError: the file is damaged, foreign or newer.
    """
    data, _ = read_sections(path, wanted=())
    return manifest_from(data, repr(os.fspath(path)))


def _written(
    predictor: OptimizedPredictor,
    payloads: list[bytes],
    path: str | os.PathLike[str],
    verify: bool,
    certificate: Certificate | None,
    instead_of: str,
) -> Path:
    plan = _as_written(predictor.plan)
    if predictor.probes is None:
        raise ArtifactError(
            f"{predictor!r} has no probes", expected="inputs that an artifact is tested with", fix="pass probes="
        )
    _require_answered(plan, predictor.probes)
    outputs = predictor.run_flat(predictor.probes)
    runs = {each.backend for each in plan.configurations}
    sections, names = sections_of(payloads)
    manifest = Manifest(
        written_by=evalmode.__version__,
        plan=plan,
        payloads=names,
        versions={name: backend_of(name).version() for name in runs},
        environment=environment_record(plan.device),
        instructions=instructions_of(plan.device),
        instruction_sets=instruction_sets() if any(backend_of(name).native_code for name in runs) else (),
        golden=predictor.golden if predictor.golden is not None else _tolerance(plan),
        outputs_digest=digest_of(outputs),
        certificate=certificate,
        instead_of=instead_of,
    )
    sections[PROBES] = tensors_as_bytes(predictor.probes, outputs)
    if verify:
        _require_same_when_read(manifest, sections)
    encoded = msgspec.to_builtins(manifest)
    encoded.pop("sections")
    return write_sections(path, encoded, sections)


def _warn_of_refusals(predictor: OptimizedPredictor, written: Path) -> None:
    """Say that samples which the model itself answers beside the plan are refused once the file is loaded."""
    if predictor.plan.non_finite is not None and predictor.plan.non_finite.answer == "plain":
        name = predictor.plan.configurations[0].backend
        warnings.warn(
            f"{name} does not answer NaN and infinity as the model does: here the model answers such samples itself; "
            f"{written.name} does not hold it, and refuses them",
            EvalmodeWarning,
            stacklevel=4,
        )


def _as_written(plan: Plan) -> Plan:
    """The plan of a file, which does not hold the model: what the model would answer is refused."""
    if plan.non_finite is None or plan.non_finite.answer != "plain":
        return plan
    return msgspec.structs.replace(plan, non_finite=msgspec.structs.replace(plan.non_finite, answer="refuse"))


def _require_answered(plan: Plan, probes: Sequence[Tensor]) -> None:
    if plan.non_finite is None or plan.non_finite.answer != "refuse":
        return
    if broken_samples(probes, [tensor.axis for tensor in plan.inputs], plan.non_finite.minus) is not None:
        raise ArtifactError(
            f"{plan} cannot be written into a file: samples like those it was made with hold NaN or infinity, which "
            f"only the model itself answers beside {plan.configurations[0].backend}",
            expected="a batch of finite samples, or a back end that answers all of them as the model does",
        )


def _require_same_when_read(manifest: Manifest, sections: Mapping[str, bytes]) -> None:
    again = manifest_from(msgspec.json.encode(manifest), "the new artifact")
    _restored(again, sections, "the new artifact", allow_native=True).close()


def _restored(
    manifest: Manifest, sections: Mapping[str, bytes], shown: str, *, allow_native: bool
) -> OptimizedPredictor:
    plan = manifest.plan
    backends = {each.backend: _usable(each.backend, manifest, shown, allow_native) for each in plan.configurations}
    here = same_machine(manifest)
    kept, golden = probes_and_outputs(manifest, sections, shown)
    require_payloads(manifest, sections, backends, shown)
    probes = [probe.to(plan.device) for probe in kept]
    executors: list[Executor] = []
    try:
        for configuration, name in zip(plan.configurations, manifest.payloads, strict=True):
            build = backends[configuration.backend].load
            executors.append(build(sections[name], configuration, len(plan.outputs)))  # type: ignore[misc]
        predictor = OptimizedPredictor(
            plan, executors, certificate=manifest.certificate, probes=probes, golden=manifest.golden
        )
        wrong = disagreement(predictor, golden, None if here else manifest.golden)
        if not wrong and not here and plan.stable:
            wrong = instability(predictor)
    except BaseException as error:
        for executor in executors:
            executor.close()
        if isinstance(error, ArtifactError | MissingExtraError) or not isinstance(error, Exception):
            raise
        raise ArtifactError(f"the payload of {shown} cannot be run: {_first_line(error)}") from error
    if wrong:
        predictor.close()
        raise OtherOutputsError(
            f"{shown} does not do here what it did where it was written: {wrong}",
            expected="the same bits" if here else "outputs within rounding, and the same bits in any batch",
            fix="optimise the model on this machine",
        )
    return predictor


def _usable(name: str, manifest: Manifest, shown: str, allow_native: bool) -> Backend:
    """The back end, if the artifact may be, and can be, run on it here."""
    backend = backend_of(name)
    if backend.load is None:
        raise ArtifactError(f"{shown} holds a payload for {name}, which reads none", fix="save it anew")
    if backend.native_code and not allow_native:
        raise ArtifactError(
            f"{shown} brings machine code ({name}), which could do anything",
            expected="leave to run it",
            fix="if you trust where it is from: load(path, allow_native=True), or --allow-native",
        )
    missing = backend.missing()
    if missing is not None:
        raise MissingExtraError(f"{shown} runs on {name}: {missing}")
    device = manifest.plan.device
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ArtifactError(
            f"{shown} runs on {device}, which this machine has not", fix='choose another: load(path, device="cuda:0")'
        )
    for configuration in manifest.plan.configurations:
        if configuration.backend == name and configuration.precision not in backend.precisions(device.type):
            raise ArtifactError(
                f"{shown} runs {name} in {configuration.precision} on {device}, which this machine cannot",
                expected=f"one of {', '.join(backend.precisions(device.type)) or 'none: the device is missing'}",
                fix="optimise the model on this machine",
            )
    differing = [
        f"{what}: {there}, here {here}"
        for what, there, here in (
            ("instructions", manifest.instructions, instructions_of(device)),
            (name, manifest.versions.get(name, "unknown"), backend.version()),
        )
        if there != here
    ]
    if lacking := set(manifest.instruction_sets) - set(instruction_sets()):
        differing.append(f"instructions that this processor has not: {', '.join(sorted(lacking))}")
    if backend.native_code and differing:
        raise ArtifactError(
            f"the machine code of {shown} is for another machine ({'; '.join(differing)})",
            fix="optimise the model on this machine",
        )
    return backend


def _device(wanted: str | torch.device) -> torch.device:
    try:
        return torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device is {wanted!r}", expected="a device of torch, such as 'cpu' or 'cuda:1'") from error


def _tolerance(plan: Plan) -> float:
    return max(TOLERANCES.get(configuration.precision, TOLERANCES["bf16"]) for configuration in plan.configurations)


def _first_line(error: BaseException) -> str:
    got: Any = getattr(error, "got", None) or str(error)
    return f"{type(error).__name__}: {(got.strip().splitlines() or [''])[0]}"
