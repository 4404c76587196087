"""What an artifact claims, held against what it brings, before anything of it is built.

A right digest does not make a file honest. The plan has to fit the probes and the golden outputs, whose bytes are
there, the payloads have to state the tensors of the plan, and an execution has to fit into the memory of this machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from evalmode.backends.backend import Backend
from evalmode.backends.packing import TensorRecord
from evalmode.errors import ArtifactError, BackendError
from evalmode.observe.fingerprint import digest_of
from evalmode.observe.tree import describe
from evalmode.predictor.manifest import Manifest
from evalmode.predictor.plan import Plan, TensorPlan

__all__ = ["PROBES", "probes_and_outputs", "require_payloads"]

PROBES = "probes"
"""The section of the probes and of the golden outputs."""


def probes_and_outputs(
    manifest: Manifest, sections: Mapping[str, bytes], shown: str
) -> tuple[list[Tensor], list[Tensor]]:
    """The probes and the golden outputs, which are what the plan says.

    Raises:
        ArtifactError: they cannot be read, or are not those of the manifest and its plan.
    """
    plan = manifest.plan
    try:
        tensors = safetensors.torch.load(sections[PROBES])
        probes = [tensors.pop(f"input.{number}") for number in range(len(plan.inputs))]
        golden = [tensors.pop(f"output.{number}") for number in range(len(plan.outputs))]
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        told = (str(error).strip().splitlines() or [""])[0]
        raise ArtifactError(f"the probes of {shown} cannot be read: {type(error).__name__}: {told}") from error
    if tensors or digest_of(golden) != manifest.outputs_digest:
        raise ArtifactError(f"the golden outputs of {shown} are not those that its manifest names")
    samples = _samples(plan, probes, shown)
    for kind, plans, found in (("probe", plan.inputs, probes), ("golden output", plan.outputs, golden)):
        for expected, tensor in zip(plans, found, strict=True):
            _require_fit(kind, expected, tensor, samples, shown)
    return probes, golden


def require_payloads(
    manifest: Manifest, sections: Mapping[str, bytes], backends: Mapping[str, Backend], shown: str
) -> None:
    """Nothing where every payload is there and states the tensors of the plan, and an execution fits into memory.

    Raises:
        ArtifactError: it is not so.
    """
    plan = manifest.plan
    wanted = {*manifest.payloads, PROBES}
    if sections.keys() != wanted or PROBES in manifest.payloads:
        missing = sorted(wanted - sections.keys())
        raise ArtifactError(
            f"{shown} has no section {missing[0]!r}"
            if missing
            else f"{shown} has the sections {', '.join(sorted(sections))}",
            expected=f"{PROBES}, and the payloads {', '.join(sorted(set(manifest.payloads)))}",
        )
    _require_memory(plan, shown)
    for configuration, name in zip(plan.configurations, manifest.payloads, strict=True):
        interface_of = backends[configuration.backend].interface
        if interface_of is None:
            continue
        try:
            inputs, outputs = interface_of(sections[name]).tensors(len(plan.outputs))
        except BackendError as error:
            raise ArtifactError(f"{name} of {shown} cannot be run: {error.got}") from error
        for kind, plans, records in (("inputs", plan.inputs, inputs), ("outputs", plan.outputs, outputs)):
            expected = tuple(TensorRecord(tensor.dtype, tensor.at(configuration.batch)) for tensor in plans)
            if records != expected:
                raise ArtifactError(
                    f"{name} of {shown} has the {kind} {_listed(records)}",
                    expected=f"{_listed(expected)}, as its plan says of {configuration}",
                )


def _samples(plan: Plan, probes: list[Tensor], shown: str) -> int:
    """How many samples the probes hold; of inputs that count none, as many as the plan runs."""
    counted = {
        tensor.shape[plan.axis]
        for plan, tensor in zip(plan.inputs, probes, strict=True)
        if plan.axis is not None and plan.axis < tensor.dim()
    }
    if len(counted) > 1 or 0 in counted:
        raise ArtifactError(
            f"the probes of {shown} hold {' and '.join(map(str, sorted(counted)))} samples",
            expected="as many in each of them, and at least one",
        )
    return counted.pop() if counted else plan.sizes[0]


def _require_fit(kind: str, expected: TensorPlan, tensor: Tensor, samples: int, shown: str) -> None:
    if tensor.dtype != expected.torch_dtype or tuple(tensor.shape) != expected.at(samples):
        raise ArtifactError(
            f"the {kind} {expected.name!r} of {shown} is {describe(tensor)}",
            expected=f"{expected.dtype}{list(expected.at(samples))}, as its plan says of {samples} samples",
        )


def _require_memory(plan: Plan, shown: str) -> None:
    """An execution of the largest size holds its inputs and outputs at once."""
    size = plan.sizes[-1]
    needed = sum(math.prod(tensor.at(size)) * tensor.torch_dtype.itemsize for tensor in (*plan.inputs, *plan.outputs))
    there = _memory(plan.device)
    if needed > there:
        raise ArtifactError(
            f"the tensors of an execution of {size:,} samples of {shown} have {needed / 2**30:,.1f} GiB",
            expected=f"at most the memory of this machine, {there / 2**30:,.1f} GiB",
        )


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return 1 << 40


def _listed(records: tuple[TensorRecord, ...]) -> str:
    return ", ".join(f"{record.dtype}{list(record.shape)}" for record in records) or "nothing"
