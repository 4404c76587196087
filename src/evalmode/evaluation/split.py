"""What a batch is made of: the model's inputs and the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evalmode.errors import TaskError
from evalmode.evaluation.called import called
from evalmode.observe.tree import describe

__all__ = ["TARGET_KEYS", "Split", "checked_split", "default_split"]

Split = Callable[[Any], Any]
"""From a batch to `(inputs, target)`."""

TARGET_KEYS = ("labels", "label", "targets", "target")


def default_split(batch: Any) -> tuple[Any, Any, str]:
    """Inputs, target, and in words what was inferred.

    A tuple or list of two is `(inputs, target)`; of a mapping, the key `labels`, `label`, `targets` or `target` is the
    target and the rest are the inputs.

    Raises:
        TaskError: the batch is something else; the message shows a `split` to write.

    Example:
        >>> default_split({"pixels": 1, "labels": 2})[:2]
        ({'pixels': 1}, 2)
    """
    if isinstance(batch, Mapping):
        found = [key for key in TARGET_KEYS if key in batch]
        if len(found) == 1:
            inputs = {key: value for key, value in batch.items() if key != found[0]}
            return inputs, batch[found[0]], f"split: {found[0]!r} of the batch is the target, its other keys the inputs"
        raise TaskError(
            f"a batch with the keys {', '.join(map(repr, batch))}",
            expected=f"exactly one of {', '.join(TARGET_KEYS)} as the target",
            fix='def split(batch): return {"x": batch["x"]}, batch["y"]   # in the task file',
        )
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1], "split: a batch of two is (inputs, target)"
    raise TaskError(
        f"a batch that is {describe(batch)}",
        expected="(inputs, target), or a mapping with 'labels'",
        fix="def split(batch): first, second, target = batch; return (first, second), target   # in the task file",
    )


def checked_split(split: Split, batch: Any) -> tuple[Any, Any]:
    """What the user's `split` returns.

    Raises:
        TaskError: it fails, or it is no pair.
    """
    parts = called("split(batch)", split, batch)
    if not isinstance(parts, tuple | list) or len(parts) != 2:
        raise TaskError(
            f"split(batch) returned {describe(parts)}",
            expected="a pair: what the model is called with, and the target",
            fix="return inputs, target",
        )
    return parts[0], parts[1]
