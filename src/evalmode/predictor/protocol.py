"""The one thing that evaluation and serving run: called like `forward`, always in evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from evalmode.certificate import Certificate
from evalmode.errors import SwitchError
from evalmode.predictor.signature import Signature

__all__ = ["Predictor"]


class Predictor(ABC):
    """A model for evaluation alone: from a batch to outputs, with its signature and its certificate.

    A plain module wraps into one with `evalmode.predictor.module_backed.ModulePredictor`. Subclasses are final.
    """

    @property
    @abstractmethod
    def signature(self) -> Signature | None:
        """What it takes; None if no batch has shown it yet."""

    @property
    @abstractmethod
    def certificate(self) -> Certificate | None:
        """What was tested on it; None if nothing was."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs, called as the model's `forward` is."""

    @abstractmethod
    def predict(self, batch: Any) -> Any:
        """The outputs of one batch, called by the one calling rule."""

    @property
    def training(self) -> bool:
        """Always False."""
        return False

    def eval(self) -> Predictor:
        """Itself: a predictor is always in evaluation."""
        return self

    def train(self, mode: bool = True) -> Predictor:
        """Explain that a predictor cannot train; `train(False)` is `eval()`.

        Raises:
            SwitchError: always, unless `mode` is False.
        """
        if not mode:
            return self
        raise SwitchError(
            f"a {type(self).__name__} cannot train: it is made for evaluation and serving",
            expected="the nn.Module that it was made from",
            fix="call train() on that module; make a new predictor from it afterwards",
        )
