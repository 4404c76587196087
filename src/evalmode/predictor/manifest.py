"""What an artifact says about itself, and about the machine that wrote it."""

from __future__ import annotations

import msgspec
import torch

from evalmode.backends.backend import Backend
from evalmode.certificate import FORMAT_VERSION, Certificate, Environment, decoded
from evalmode.errors import ArtifactError, EvalmodeError
from evalmode.observe.fingerprint import environment_record
from evalmode.predictor.artifact_file import SectionRecord
from evalmode.predictor.plan import Plan

__all__ = ["Manifest", "backend_of", "instructions_of", "manifest_from", "moved", "same_machine"]

_DEVICES = ("cpu", "cuda")  # what the back ends run on that serialise


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an artifact says about itself.

    `payloads` names the section of each configuration of the plan, `versions` the versions of its back end,
    `instructions` the instruction set of the machine that wrote it, `instruction_sets` all of them where a payload is
    machine code for it. `golden` is how far its outputs may be off on
    another machine, `outputs_digest` the digest of the golden outputs. `instead_of` names the plan that was chosen,
    where that one could not be written and this one was taken in its place.
    """

    written_by: str
    plan: Plan
    payloads: tuple[str, ...]
    versions: dict[str, str]
    environment: Environment
    instructions: str
    instruction_sets: tuple[str, ...] = ()
    golden: float
    outputs_digest: str
    certificate: Certificate | None = None
    instead_of: str = ""
    sections: tuple[SectionRecord, ...] = ()

    def __post_init__(self) -> None:
        if len(self.payloads) != len(self.plan.configurations):
            raise ValueError("every execution size has a payload")
        if not 0 <= self.golden < 1:
            raise ValueError("a golden tolerance is at least 0 and less than 1")
        runs = {configuration.backend for configuration in self.plan.configurations}
        if self.versions.keys() != runs:
            raise ValueError(f"versions of {', '.join(sorted(self.versions)) or 'nothing'}, not of {', '.join(runs)}")
        if self.plan.device.type not in _DEVICES:
            raise ValueError(f"a plan for the device {str(self.plan.device)!r}, not one of {', '.join(_DEVICES)}")
        if self.plan.non_finite is not None and self.plan.non_finite.answer == "plain":
            raise ValueError("NaN is answered by the model, which a file does not hold: it is refused, or gives NaN")
        if self.certificate is not None and not 1 <= self.certificate.format_version <= FORMAT_VERSION:
            raise ValueError(f"certificate format {self.certificate.format_version}, not 1 to {FORMAT_VERSION}")


def manifest_from(data: bytes, shown: str) -> Manifest:
    """The manifest of the artifact `shown`.

    Raises:
        ArtifactError: it is not what `save` writes.
    """
    try:
        return decoded(data, Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"the manifest of {shown} is wrong: {error}", expected="what `save` writes", fix="save it anew"
        ) from error


def moved(manifest: Manifest, device: torch.device, shown: str) -> Manifest:
    """The same plan on another device of its kind.

    Raises:
        ArtifactError: `device` is of another kind.
    """
    if device.type != manifest.plan.device.type:
        raise ArtifactError(
            f"{shown} was built for {manifest.plan.device.type}, not for {device}",
            expected=f"a device of the kind {manifest.plan.device.type}",
            fix=f"optimise the model on {device}",
        )
    replace = msgspec.structs.replace
    configurations = tuple(replace(configuration, device=str(device)) for configuration in manifest.plan.configurations)
    return replace(manifest, plan=replace(manifest.plan, configurations=configurations))


def backend_of(name: str) -> Backend:
    """The back end of that name; its packages are not imported.

    Raises:
        ArtifactError: this version knows none.
    """
    from evalmode.backends.catalog import backend_named

    try:
        return backend_named(name)
    except EvalmodeError as error:
        raise ArtifactError(f"the plan runs on {name!r}, a back end that this version does not know") from error


def same_machine(manifest: Manifest) -> bool:
    """Whether this machine, and all that runs the plan, are as they were where the artifact was written.

    Its back ends have to be installed.
    """
    now, then = environment_record(manifest.plan.device), manifest.environment
    return (
        all(getattr(now, name) == getattr(then, name) for name in ("torch", "device", "processor", "cores", "platform"))
        and instructions_of(manifest.plan.device) == manifest.instructions
        and all(backend_of(name).version() == version for name, version in manifest.versions.items())
    )


def instructions_of(device: torch.device) -> str:
    """The instruction set of the processor; of a GPU, its architecture.

    Example:
        >>> bool(instructions_of(torch.device("cpu")))
        True
    """
    if device.type == "cuda" and torch.cuda.is_available():
        return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    return torch.backends.cpu.get_cpu_capability()
