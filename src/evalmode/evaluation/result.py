"""What an evaluation gave: its record, its samples, and the metrics that read them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np

from evalmode.atomic_file import atomic_file
from evalmode.certificate import Environment, EvaluationRecord, MetricRecord, ModelRecord
from evalmode.errors import UsageError
from evalmode.evaluation.samples import Samples
from evalmode.measure.metric import Metric
from evalmode.predictor.protocol import Predictor

__all__ = ["Evaluation", "subject_of"]


@dataclass(frozen=True)
class Evaluation:
    """A test-set result. `print(evaluation)` shows it, `evaluation["accuracy"]` is one figure with its interval.

    `record` is plain data, as a certificate keeps it; `inferred` says in words what was not stated; `samples` holds
    every sample's id, target, answer and rows, in the order of the data; `metrics` are those of the record that have a
    row per sample, by name, as `evalmode.compare` needs them.
    """

    record: EvaluationRecord
    inferred: tuple[str, ...] = ()
    samples: Samples = field(repr=False, default_factory=lambda: Samples(np.zeros(0, np.int64)))
    metrics: Mapping[str, Metric] = field(repr=False, default_factory=lambda: MappingProxyType({}))
    model: ModelRecord | None = None
    environment: Environment | None = None
    subject: str = ""

    def __getitem__(self, name: str) -> MetricRecord:
        """The figure of that name.

        Raises:
            KeyError: there is none.
        """
        for metric in self.record.metrics:
            if metric.name == name:
                return metric
        raise KeyError(
            f"{name!r} is not among {', '.join(metric.name for metric in self.record.metrics) or 'no metrics'}"
        )

    def __str__(self) -> str:
        from evalmode.terminal.evaluations import evaluation_text

        return evaluation_text(self.record, inferred=self.inferred, subject=self.subject)

    def to_json(self) -> bytes:
        """Record, model and environment as indented JSON."""
        parts = {
            "subject": self.subject,
            "evaluation": self.record,
            "inferred": self.inferred,
            "model": self.model,
            "environment": self.environment,
        }
        return msgspec.json.format(msgspec.json.encode(parts, order="deterministic"), indent=2) + b"\n"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the JSON to `path` atomically.

        Raises:
            UsageError: it cannot be written.
        """
        try:
            with atomic_file(path) as file:
                file.write(self.to_json())
        except OSError as error:
            raise UsageError(f"cannot write {os.fspath(path)!r}: {error.strerror}", fix="name another file") from error
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Evaluation:
        """The evaluation whose predictions were kept at `path` (Parquet, written by `keep_predictions`).

        Raises:
            PredictionsError: the file is missing, damaged, or was not written by an evaluation.
            MissingExtraError: pyarrow is not installed.
        """
        from evalmode.evaluation.predictions import read_predictions

        return cls(**read_predictions(path))


def subject_of(model: object) -> str:
    """What a result is of, where no task says it: what a predictor was made from, else the name of the class.

    Example:
        >>> from torch import nn
        >>> subject_of(nn.Linear(2, 1))
        'Linear'
    """
    certificate = model.certificate if isinstance(model, Predictor) else None
    return type(model).__name__ if certificate is None else certificate.subject
