"""A plain `nn.Module` as a predictor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from torch import nn

from evalmode.certificate import Certificate
from evalmode.mode.derived import staleness_unchecked
from evalmode.mode.discover import require_modules
from evalmode.mode.switch import evaluating
from evalmode.predictor.calling import call
from evalmode.predictor.protocol import Predictor
from evalmode.predictor.signature import Signature, signature_of

__all__ = ["ModulePredictor"]


@final
class ModulePredictor(Predictor):
    """Runs a module under `evaluating`, so that the module's own state is the same before and after each call.

    Parameters: `batch` shows the signature; `forward` overrides the calling rule of `predict`; `certificate` is what
    was tested on the module.

    Raises:
        NotAModuleError: `model` is no `nn.Module` instance.

    Example:
        >>> import torch
        >>> predictor = ModulePredictor(nn.Sequential(nn.Dropout(0.5)), batch=torch.ones(2, 3))
        >>> predictor(torch.ones(1, 3)).tolist()
        [[1.0, 1.0, 1.0]]
        >>> str(predictor.signature)
        'single(input: float32[*, 3])'
        >>> predictor.eval() is predictor
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batch: Any = None,
        forward: Callable[[Any, Any], Any] | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        (self._model,) = require_modules((model,), "ModulePredictor")
        self._forward = forward
        self._certificate = certificate
        self._signature = signature_of(batch) if batch is not None else None

    @property
    def model(self) -> nn.Module:
        """The module itself."""
        return self._model

    @property
    def signature(self) -> Signature | None:
        """What the given batch has shown; None without one."""
        return self._signature

    @property
    def certificate(self) -> Certificate | None:
        """What was tested on the module; None if nothing was."""
        return self._certificate

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's outputs, in evaluation."""
        with staleness_unchecked(), evaluating(self._model):
            return self._model(*args, **kwargs)

    def predict(self, batch: Any) -> Any:
        """The module's outputs on one batch, in evaluation.

        Raises:
            BatchError: the batch cannot be meant for this module.
            ModelRunError: the module failed; its own error is the cause.
        """
        with staleness_unchecked(), evaluating(self._model):
            return call(self._model, batch, self._forward)
