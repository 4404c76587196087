"""Every exception and warning of evalmode.

::

    EvalmodeError
    ├── UsageError (ValueError)              the call is wrong, whatever the model
    │   ├── NotAModuleError (TypeError)      something else than a torch.nn.Module was given
    │   ├── PatternError                     a name pattern, type or module matches nothing in the model
    │   ├── BatchError                       the batch does not fit the calling rule or the model
    │   │   ├── NonFiniteOutputError         the model's output for a sample is NaN or infinite
    │   │   ├── RowCountError                outputs or targets have not one row for each sample
    │   │   └── UnreadColumnError            a column of the data is looked up that cannot be read
    │   ├── TaskError                        a task file, import path or task function is wrong
    │   └── UndefinedFigureError             the samples leave a figure undefined, as AUROC of one class
    ├── SwitchError (RuntimeError)           a model cannot be switched as asked
    │   ├── FrozenModeError                  a graph was traced or exported in training mode
    │   ├── ConflictingModesError            evaluations in flight want different modes of one module
    │   └── BackwardInEvaluationError        backward() was called inside evaluation
    ├── ModelRunError (RuntimeError)         the model itself failed; the cause is kept
    ├── ContractBrokenError (AssertionError) a report with broken clauses was asked to raise
    ├── OptimizationError (RuntimeError)     no optimised form of a model can be made or used
    │   ├── BackendError                     a back end refuses a program or a payload
    │   ├── UnstableModelError               a sample's bits depend on its companions even at one fixed shape
    │   └── StalePredictorError              the model's weights are no longer those a predictor was built from
    ├── ArtifactError (ValueError)           an artifact cannot be written, read or trusted
    │   └── OtherOutputsError                it gives other outputs here than where it was written
    ├── CertificateError (ValueError)        a certificate cannot be read or written
    ├── JournalError (RuntimeError)          a journal is in use, of another evaluation, damaged, or cannot be written
    ├── PredictionsError (ValueError)        a file of predictions cannot be written, read or trusted
    ├── ComparisonError (ValueError)         two results cannot be compared: other samples, metrics, or nothing kept
    └── MissingExtraError (ImportError)      an optional package is not installed

    EvalmodeWarning (UserWarning)            nothing is wrong yet, but it may surprise

A message is a page in small: what was got and where, what was expected, the fix, and where to read more.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "ArtifactError",
    "BackendError",
    "BackwardInEvaluationError",
    "BatchError",
    "CertificateError",
    "ComparisonError",
    "ConflictingModesError",
    "ContractBrokenError",
    "EvalmodeError",
    "EvalmodeWarning",
    "FrozenModeError",
    "JournalError",
    "MissingExtraError",
    "ModelRunError",
    "NonFiniteOutputError",
    "NotAModuleError",
    "OptimizationError",
    "OtherOutputsError",
    "PatternError",
    "PredictionsError",
    "RowCountError",
    "StalePredictorError",
    "SwitchError",
    "TaskError",
    "UndefinedFigureError",
    "UnreadColumnError",
    "UnstableModelError",
    "UsageError",
]


class EvalmodeError(Exception):
    """Root of every error that evalmode raises.

    Parameters: `got` says where and what was found; `expected`, `fix` and `explain` (a code or clause name) follow on
    lines of their own and may be left out.

    Example:
        >>> print(EvalmodeError("`encoder.bn1` is odd", expected="even", fix="add one", explain="EM101"))
        `encoder.bn1` is odd
          expected: even
          fix: add one
          explain: evalmode explain EM101
    """

    def __init__(
        self, got: str, *, expected: str | None = None, fix: str | None = None, explain: str | None = None
    ) -> None:
        self.got = got
        self.expected = expected
        self.fix = fix
        self.explain = explain
        lines = [got]
        if expected is not None:
            lines.append(f"  expected: {expected}")
        if fix is not None:
            lines.append(f"  fix: {fix}")
        if explain is not None:
            lines.append(f"  explain: evalmode explain {explain}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:  # keyword arguments do not survive Exception's own pickling
        return _rebuild, (type(self), self.got, self.expected, self.fix, self.explain)


def _rebuild(
    kind: type[EvalmodeError], got: str, expected: str | None, fix: str | None, explain: str | None
) -> EvalmodeError:
    return kind(got, expected=expected, fix=fix, explain=explain)


class UsageError(EvalmodeError, ValueError):
    """The call is wrong, whatever the model."""


class NotAModuleError(UsageError, TypeError):
    """Something else than a `torch.nn.Module` was given where a model was expected."""


class PatternError(UsageError):
    """A name pattern, type or module matches nothing in the model."""


class BatchError(UsageError):
    """The batch does not fit the calling rule or the model."""


class NonFiniteOutputError(BatchError):
    """The model's output for a sample is NaN or infinite."""


class UnreadColumnError(BatchError):
    """A column of the data is looked up that cannot be read; `reasons` say why, by the samples' places in the data."""

    def __init__(
        self,
        got: str,
        *,
        expected: str | None = None,
        fix: str | None = None,
        explain: str | None = None,
        reasons: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(got, expected=expected, fix=fix, explain=explain)
        self.reasons = dict(reasons or {})


class TaskError(UsageError):
    """A task file, an import path or a function of a task is wrong."""


class RowCountError(BatchError):
    """Outputs or targets have not one row for each sample: which row is whose could not be told."""


class UndefinedFigureError(UsageError):
    """The samples leave a figure undefined, as AUROC where all targets are one class: no number would be honest."""


class SwitchError(EvalmodeError, RuntimeError):
    """A model cannot be switched as asked."""


class FrozenModeError(SwitchError):
    """A graph was traced, scripted or exported in training mode: no switch reaches it."""


class ConflictingModesError(SwitchError):
    """Evaluations in flight at the same time want different modes of one module."""


class BackwardInEvaluationError(SwitchError):
    """`backward()` was called inside evaluation, where it must have no effect."""


class ModelRunError(EvalmodeError, RuntimeError):
    """The model itself failed to run; the model's own error is kept as the cause."""


class ContractBrokenError(EvalmodeError, AssertionError):
    """A report with broken clauses was asked to raise."""


class OptimizationError(EvalmodeError, RuntimeError):
    """No optimised form of a model can be made or used."""


class BackendError(OptimizationError):
    """A back end refuses a program or a payload; its own error is the cause."""


class UnstableModelError(OptimizationError):
    """A sample's bits depend on its companions or its position even at one fixed execution shape."""


class StalePredictorError(OptimizationError):
    """The model's weights are no longer those that a predictor was built from."""


class ArtifactError(EvalmodeError, ValueError):
    """An artifact cannot be written, read or trusted."""


class OtherOutputsError(ArtifactError):
    """An artifact gives other outputs here than where it was written."""


class CertificateError(EvalmodeError, ValueError):
    """A certificate cannot be read or written."""


class JournalError(EvalmodeError, RuntimeError):
    """A journal is in use, belongs to another evaluation, is damaged, or cannot be written."""


class PredictionsError(EvalmodeError, ValueError):
    """A file of predictions cannot be written, read or trusted."""


class ComparisonError(EvalmodeError, ValueError):
    """Two results cannot be compared: they hold other samples, other metrics, or no values per sample."""


class MissingExtraError(EvalmodeError, ImportError):
    """An optional package is not installed; the message gives the pip command."""


class EvalmodeWarning(UserWarning):
    """Nothing is wrong yet, but it may surprise."""
