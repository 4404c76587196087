"""The record of what was tested on a model: plain data, written as JSON.

A certificate is evidence on the inputs and the machine that it names, never a proof.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from evalmode.clause import Verdict
from evalmode.errors import CertificateError
from evalmode.finding import Finding

__all__ = ["Certificate", "ClauseResult", "Environment", "EvaluationRecord", "MetricRecord", "ModelRecord"]

FORMAT_VERSION = 1


class ClauseResult(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one clause. `evidence` is one line for people; `measured` holds the numbers behind it."""

    clause: str
    verdict: Verdict
    probes: int = 0
    evidence: str = ""
    notes: tuple[str, ...] = ()
    measured: dict[str, Any] = {}  # numbers, words and lists of them: msgspec reads no union of two list types


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Which model it was: class, size, and a digest of every parameter and buffer (SHA-256, hexadecimal)."""

    name: str
    modules: int
    parameters: int
    bytes: int
    fingerprint: str


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was tested."""

    evalmode: str
    python: str
    torch: str
    device: str
    processor: str
    cores: int
    threads: int
    platform: str


class MetricRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One test-set figure with its interval. `low` and `high` are None where no interval could be given; `method` says
    which interval, or why there is none. `count` of `total` is given for proportions."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    method: str = ""
    count: int | None = None
    total: int = 0


class EvaluationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the test data gave."""

    samples: int
    batch_size: int
    metrics: tuple[MetricRecord, ...] = ()
    seconds: float = 0.0


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """What was tested, on which model, inputs and machine, and what was found.

    `inputs` are the dtypes and shapes of the batch, `probes` how much was tried.
    """

    format_version: int = FORMAT_VERSION
    created: str
    subject: str
    model: ModelRecord
    environment: Environment
    inputs: str = ""
    probes: str = ""
    clauses: tuple[ClauseResult, ...] = ()
    findings: tuple[Finding, ...] = ()
    inferred: tuple[str, ...] = ()
    evaluation: EvaluationRecord | None = None
    seconds: float = 0.0
    forward_passes: int = 0

    @property
    def ok(self) -> bool:
        """No clause is broken."""
        return not any(result.verdict is Verdict.BROKEN for result in self.clauses)

    def counts(self) -> dict[Verdict, int]:
        """How many clauses got each verdict."""
        return {verdict: sum(result.verdict is verdict for result in self.clauses) for verdict in Verdict}

    def to_json(self) -> bytes:
        """The certificate as indented JSON; NaN and Inf, which JSON lacks, become null."""
        return msgspec.json.format(msgspec.json.encode(self, order="deterministic"), indent=2) + b"\n"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the JSON to `path` atomically: a reader sees the old file or the new one, never half of one."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            file.write(self.to_json())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(file.name, 0o644)
        os.replace(file.name, target)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Certificate:
        """Read a certificate.

        Raises:
            CertificateError: the file is missing, is no certificate, or was written by a newer format.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise CertificateError(f"cannot read {os.fspath(path)!r}: {error.strerror}") from error
        try:
            version = msgspec.json.decode(data, type=_Header).format_version
            if version > FORMAT_VERSION:
                raise CertificateError(
                    f"{os.fspath(path)!r} has certificate format {version}",
                    expected=f"at most {FORMAT_VERSION}",
                    fix="pip install --upgrade evalmode",
                )
            return msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise CertificateError(f"{os.fspath(path)!r} is no certificate: {error}") from error


class _Header(msgspec.Struct):
    format_version: int
