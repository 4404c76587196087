"""Forward passes that turn finite inputs into NaN or infinity."""

from __future__ import annotations

from typing import Any

import torch
from tests.zoo.faults.fault import fault, taken
from torch import nn

CLAUSE = "finite"


def _rows(module: nn.Module, x: torch.Tensor) -> bool:
    return x.dim() >= 2 and x.shape[-1] >= 2


@fault(CLAUSE, "EM191", "nonfinite", suits=_rows)
def divided_by_its_own_norm(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x / x.norm(dim=-1, keepdim=True)  # planted
    return outputs(x)


@fault(CLAUSE, "EM191", "nonfinite", suits=_rows)
def divided_by_its_own_deviation(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)  # planted
    return outputs(x)


@fault(CLAUSE, "EM191", "nonfinite")
def exponential_overflows(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x + torch.exp(1e4 * x.abs())  # planted
    return outputs(x)


@fault(CLAUSE, "EM191", "nonfinite")
def logarithm_of_zero(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = torch.log(x.relu())  # planted
    return outputs(x)


@fault(CLAUSE, "EM191", "nonfinite", suits=_rows)
def softmax_fully_masked(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    level = x.reshape(len(x), -1).mean(1).reshape(-1, *[1] * (x.dim() - 1))
    x = x.masked_fill(x <= level, float("-inf")).softmax(-1)  # planted
    return outputs(x)


@fault(CLAUSE, "EM191", "nonfinite")
def half_precision_overflows(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = (1e6 * x).half().float()  # planted
    return outputs(x)


@fault(CLAUSE, "EM191", "nonfinite")
def square_root_of_a_negative(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = torch.sqrt(x)  # planted
    return outputs(x)
