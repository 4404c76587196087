"""What of a predictor goes into a file: its payloads, its probes as bytes, and what was found of the plan."""

from __future__ import annotations

import msgspec
import safetensors
import safetensors.torch
from torch import Tensor

from evalmode.certificate import Certificate
from evalmode.errors import ArtifactError, BackendError, OptimizationError
from evalmode.predictor.optimized import OptimizedPredictor

__all__ = ["of_another_plan", "sections_of", "serialisable", "tensors_as_bytes"]


def serialisable(predictor: OptimizedPredictor) -> tuple[OptimizedPredictor, list[bytes]]:
    """The predictor that is written, which is the fastest verified one that can be, and the payload of each execution.

    Raises:
        ArtifactError: there is none.
    """
    payloads = _payloads(predictor)
    if payloads is None and predictor.serialisable is not None:
        try:
            predictor = predictor.serialisable()
        except OptimizationError as error:
            raise ArtifactError(
                f"{predictor.plan} cannot be written into a file, and no other plan takes its place: {error.got}",
                fix="pip install 'evalmode[optimize]', and let every back end be tried",
            ) from error
        payloads = _payloads(predictor)
    if payloads is None:
        names = sorted({configuration.backend for configuration in predictor.plan.configurations})
        raise ArtifactError(
            f"{' and '.join(names)} cannot be written into a file: it runs code of this process",
            expected="a plan on a back end that serialises",
            fix="optimise with one, as backends=['openvino', 'onnxruntime']",
        )
    return predictor, payloads


def of_another_plan(known: Certificate | None, chosen: Certificate | None) -> Certificate | None:
    """What is known of the model, with what was found of the plan that is written; figures of another plan go."""
    if known is None or chosen is None:
        return chosen or known
    of_plan = {result.clause: result for result in chosen.clauses}
    clauses = [of_plan.pop(result.clause, result) for result in known.clauses]
    plain = known.evaluation if known.evaluation is not None and not known.evaluation.plan else None
    return msgspec.structs.replace(
        known, clauses=(*clauses, *of_plan.values()), optimization=chosen.optimization, evaluation=plain
    )


def _payloads(predictor: OptimizedPredictor) -> list[bytes] | None:
    found = []
    for executor in predictor.executors:
        try:
            payload = executor.payload()
        except BackendError as error:
            raise ArtifactError(f"{executor.configuration} cannot be written into a file: {error.got}") from error
        except OSError as error:
            raise ArtifactError(
                f"{executor.configuration} cannot be written into a file: its own files cannot be read: {error}",
                expected="the temporary folder in which they were made",
                fix="optimise the model anew",
            ) from error
        if payload is None:
            return None
        found.append(payload)
    return found


def sections_of(payloads: list[bytes]) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """One section for each distinct payload, and the section of each execution size."""
    named: dict[bytes, str] = {}
    names = tuple(named.setdefault(payload, f"payload.{len(named)}") for payload in payloads)
    return {name: payload for payload, name in named.items()}, names


def tensors_as_bytes(probes: tuple[Tensor, ...], outputs: list[Tensor]) -> bytes:
    """Probes and their outputs, as safetensors has them.

    Raises:
        ArtifactError: there is an element type that it lacks.
    """
    named = {
        f"{kind}.{number}": tensor
        for kind, tensors in (("input", probes), ("output", outputs))
        for number, tensor in enumerate(tensors)
    }
    try:
        return safetensors.torch.save({name: tensor.detach().cpu().clone() for name, tensor in named.items()})
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"the probes or their outputs cannot be written into a file: {error}") from error
