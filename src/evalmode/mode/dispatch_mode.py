"""The dispatch mode that all of ours are: without what torch wraps around one for its compiler."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DispatchMode"]


class DispatchMode(TorchDispatchMode):
    """A `TorchDispatchMode` whose `__torch_dispatch__` is called as it stands.

    torch wraps that of other modes so that its compiler skips it: the wrapper loads the compiler (2 to 6 seconds, once
    a process) and costs on each operator. What runs under a mode of ours is not compiled, so neither is needed.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
