"""`evaluate`: a test-set result that is exact, repeatable, and honest about its uncertainty."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from evalmode.evaluation.choice import MetricChoice, MetricFunction
from evalmode.evaluation.options import Options
from evalmode.evaluation.progress import OnProgress
from evalmode.evaluation.result import Evaluation
from evalmode.evaluation.split import Split
from evalmode.evaluation.work import Work
from evalmode.predictor.protocol import Predictor
from evalmode.task import Task

__all__ = ["evaluate"]


def evaluate(
    model_or_predictor: nn.Module | Predictor | Task,
    data: Any = None,
    *,
    metrics: MetricChoice = None,
    split: Split | None = None,
    forward: Callable[[Any, Any], Any] | None = None,
    prediction: Callable[[Any], Any] | None = None,
    loss: MetricFunction | None = None,
    batch_size: int | Literal["auto"] = "auto",
    confidence: float = 0.95,
    slices: Any = None,
    groups: str | Sequence[Any] | None = None,
    ids: str | Sequence[Any] | None = None,
    journal: str | os.PathLike[str] | None = None,
    keep_predictions: str | os.PathLike[str] | bool | None = None,
    on_bad_sample: Literal["error", "skip"] = "error",
    device: str | torch.device | None = None,
    limit: float | None = None,
    progress: bool | OnProgress = True,
    workers: int = 0,
    exact: bool = True,
) -> Evaluation:
    """The figures of a module, a predictor or a task on `data`, each with its interval.

    Every sample counts once. Samples run at fixed execution shapes, so that with a stable predictor, and with nearly
    every plain module, the result is the same bit for bit whatever the batch size, the workers, the order in which
    samples are read, the memory, or an interruption. What could not be kept exact is said in `record.notes`. The module
    is left as it was found; it runs inside `evaluating`.

    Parameters:
        data: a dataset, a DataLoader (its dataset and collate are taken), a pair (inputs, targets) or mapping of
            arrays, a Hugging Face dataset, or the path of a Parquet file. By itself the test data of a task.
        metrics: names, `Metric`s, functions (outputs, target) that give one value per sample, metrics of torchmetrics,
            or a mapping of names to these. By itself what fits outputs and targets, and `inferred` says which.
        split, forward, prediction, loss: as in a task.
        batch_size: how many samples are read at a time. How many run together is for the plan, or the shape of a
            sample, to decide; only with `exact=False` it is this number.
        slices: parts with figures of their own: "class", a column, ("column", 4) for quarters, predicates, arrays.
        groups: the column, or the values, of what samples belong to, as the patient of an image: whole groups are
            resampled for the intervals.
        ids: the column, or the values, that name the samples. By itself their place in the data.
        journal: a file that keeps what was done: after a kill or Ctrl-C the same call goes on from there.
        keep_predictions: a Parquet file to write every sample to; True keeps scores in memory only.
        on_bad_sample: "skip" leaves out, counts and lists samples that cannot be read, run or measured.
        limit: how many samples at most; a stream without length needs it (`math.inf`: to its end).
        progress: show a bar on a terminal; a function is called with `Progress` a few times a second.
        workers: processes that read samples; without any, a thread reads ahead.
        exact: False runs batches as they come from a DataLoader that shuffles, repeats or pads.

    Raises:
        TaskError: data, metrics or functions do not fit; the message has the fix.
        BatchError: a sample cannot be read, run or measured; the message has its id.
        StalePredictorError: the model that a predictor was built from has other weights now.
        JournalError: the journal is of another evaluation, in use, damaged, or cannot be written.

    Example:
        >>> inputs = torch.linspace(-1, 1, 40).reshape(10, 4)
        >>> result = evaluate(nn.Linear(4, 3), (inputs, torch.arange(10) % 3), progress=False)
        >>> result.record.samples, [metric.name for metric in result.record.metrics]
        (10, ['accuracy', 'log loss'])
    """
    started, asked = time.perf_counter(), locals()
    options = Options(**{name: asked[name] for name in Options.__dataclass_fields__})
    return Work(model_or_predictor, data, options, started).result(progress)
