"""Forward passes whose answer depends on when, where or how often they run."""

from __future__ import annotations

import itertools
import time
from typing import Any

from tests.zoo.faults.fault import fault, taken

CLAUSE = "deterministic"
CALLS = itertools.count()
SEEN: dict[int, int] = {}


@fault(CLAUSE, "EM181", "unstable")
def time_dependent(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x * (1.0 + time.perf_counter_ns() % 9973 / 1e5)  # planted
    return outputs(x)


@fault(CLAUSE, "EM181", "unstable")
def calls_counted_outside_the_model(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    x = x * (1.0 + 0.01 * (next(CALLS) % 11))  # planted
    return outputs(x)


@fault(CLAUSE, "EM181", "unstable", also="EM154")
def identity_dependent(self: Any, *args: Any, **kwargs: Any) -> Any:
    x, outputs = taken(type(self).forward(self, *args, **kwargs))
    token = object()
    SEEN[id(token)] = len(SEEN)
    x = x * (1.0 + 0.01 * (hash((id(token), len(SEEN), time.monotonic_ns())) % 97))  # planted
    return outputs(x)
