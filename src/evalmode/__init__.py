"""evalmode: same sample, same answer (alone, in any batch, under any load), or the line that breaks it.

    import evalmode

    print(evalmode.check(model, batch))   # tests the evaluation contract on any nn.Module

    with evalmode.evaluating(model):      # the switch, and the exact way back
        outputs = model(batch)

The public names are loaded on first use, so that importing this package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from evalmode.certificate import Certificate as Certificate
    from evalmode.certification.retest import verify as verify
    from evalmode.certification.retested import Verification as Verification
    from evalmode.certification.whole_way import certify as certify
    from evalmode.checking.runner import CheckReport as CheckReport
    from evalmode.checking.runner import check as check
    from evalmode.evaluation.comparison import Comparison as Comparison
    from evalmode.evaluation.comparison import compare as compare
    from evalmode.evaluation.evaluator import evaluate as evaluate
    from evalmode.evaluation.result import Evaluation as Evaluation
    from evalmode.mode.freeze import freeze as freeze
    from evalmode.mode.freeze import is_frozen as is_frozen
    from evalmode.mode.freeze import unfreeze as unfreeze
    from evalmode.mode.switch import evaluating as evaluating
    from evalmode.optimization.optimizer import optimize as optimize
    from evalmode.optimization.optimizer import refresh as refresh
    from evalmode.optimization.tolerance import Tolerance as Tolerance
    from evalmode.predictor.artifact import load as load
    from evalmode.predictor.protocol import Predictor as Predictor
    from evalmode.task.definition import Task as Task

_HOMES = {
    "Certificate": "evalmode.certificate",
    "CheckReport": "evalmode.checking.runner",
    "Comparison": "evalmode.evaluation.comparison",
    "Evaluation": "evalmode.evaluation.result",
    "Predictor": "evalmode.predictor.protocol",
    "Task": "evalmode.task.definition",
    "Tolerance": "evalmode.optimization.tolerance",
    "Verification": "evalmode.certification.retested",
    "certify": "evalmode.certification.whole_way",
    "check": "evalmode.checking.runner",
    "compare": "evalmode.evaluation.comparison",
    "evaluate": "evalmode.evaluation.evaluator",
    "evaluating": "evalmode.mode.switch",
    "freeze": "evalmode.mode.freeze",
    "is_frozen": "evalmode.mode.freeze",
    "load": "evalmode.predictor.artifact",
    "optimize": "evalmode.optimization.optimizer",
    "refresh": "evalmode.optimization.optimizer",
    "unfreeze": "evalmode.mode.freeze",
    "verify": "evalmode.certification.retest",
}

__all__ = [*sorted(_HOMES), "__version__"]  # noqa: PLE0604 - the table above is the one list of public names


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'evalmode' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
