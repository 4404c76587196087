"""How an evaluation calls a module: by the rule, without its checks once they have passed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from evalmode.evaluation.devices import out_of_memory
from evalmode.predictor.calling import arguments_of, call

__all__ = ["Calling"]


class Calling:
    """Calls a module by the calling rule, which is checked for the first batch of a kind and where a call fails."""

    def __init__(self, module: nn.Module, forward: Callable[[Any, Any], Any] | None) -> None:
        self.module, self.forward = module, forward
        self.kind: type | None = None

    def __call__(self, inputs: Any) -> Any:
        if type(inputs) is not self.kind:
            outputs = call(self.module, inputs, self.forward)
            self.kind = type(inputs)
            return outputs
        try:
            if self.forward is not None:
                return self.forward(self.module, inputs)
            positional, named = arguments_of(inputs)
            return self.module(*positional, **named)
        except Exception as error:
            if out_of_memory(error):
                raise
            return call(self.module, inputs, self.forward)  # it fails again, and says by what
