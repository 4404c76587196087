"""A user's function that fails is told as such, wherever it is called, with its own error as the cause."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from evalmode.errors import TaskError, UsageError
from evalmode.evaluation.evaluator import evaluate

MODEL = nn.Linear(4, 3).eval()
INPUTS, TARGETS = torch.randn(12, 4), torch.arange(12) % 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"split": lambda batch: (batch["x"], batch["y"])}, r"split\(batch\) fails with TypeError"),
        ({"prediction": lambda outputs: outputs["logits"]}, r"prediction\(outputs\) fails with (TypeError|IndexError)"),
        ({"loss": lambda outputs, target: functional.mse_loss(outputs, target.none)}, r"loss\(outputs, target\) fails"),
    ],
)  # fmt: skip
def test_a_function_that_fails_is_named_with_its_error(options, told):
    with pytest.raises(TaskError, match=told) as raised:
        evaluate(MODEL, (INPUTS, TARGETS), progress=False, **options)
    assert isinstance(raised.value.__cause__, TypeError | IndexError | AttributeError)


@pytest.mark.parametrize("confidence", ["0.95", None, True, 0, 1])
def test_a_confidence_that_is_no_share_is_refused(confidence):
    with pytest.raises(UsageError, match="confidence is"):
        evaluate(MODEL, (INPUTS, TARGETS), progress=False, confidence=confidence)


def test_arrays_that_run_backwards_are_data():
    inputs, targets = INPUTS.numpy(), TARGETS.numpy()
    backwards = evaluate(MODEL, (inputs[::-1], targets[::-1]), progress=False)
    copied = evaluate(MODEL, (inputs[::-1].copy(), targets[::-1].copy()), progress=False)
    assert backwards.record.metrics == copied.record.metrics
    assert np.array_equal(backwards.samples.target, targets[::-1])
