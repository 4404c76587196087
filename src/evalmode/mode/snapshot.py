"""What a module's own `train()` or `eval()` did to tensors, and how to undo it bit for bit.

Merging W + BA and unmerging W + BA - BA does not give W back in floating point. So while an override runs, each storage
of the model is copied before the first operator that writes to it; tensors that were replaced are noted. Nothing is
copied that is not written.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, _pop_mode

from evalmode.errors import EvalmodeWarning
from evalmode.mode.dispatch_mode import DispatchMode

__all__ = ["Changes", "WriteWatch"]


@dataclass(slots=True)
class _Written:
    storage: torch.UntypedStorage
    before: torch.UntypedStorage
    after: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class _Replaced:
    """An entry of `_parameters`, `_buffers` or `__dict__` whose tensor, or whose tensor's storage, was exchanged."""

    entries: dict[str, Any]
    name: str
    tensor: torch.Tensor
    alias: torch.Tensor
    after: torch.Tensor | None = None
    after_digest: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Changes:
    """What one override changed on the way into evaluation."""

    written: dict[int, _Written] = field(default_factory=dict)
    replaced: list[_Replaced] = field(default_factory=list)
    sealed: bool = False

    def seal(self) -> None:
        """Note what the override left, so that a later change by someone else is not undone."""
        for item in self.written.values():
            item.after = _digest(item.storage)
        self.sealed = True

    def touched_since(self) -> bool:
        """Whether someone has changed these tensors since `seal`, for example by loading other weights."""
        if not self.sealed:  # the way in was interrupted: nobody else's code has run since
            return False
        return any(_digest(item.storage) != item.after for item in self.written.values()) or any(
            item.entries.get(item.name) is not item.after or _tensor_digest(item.after) != item.after_digest
            for item in self.replaced
        )

    def put_back(self) -> None:
        """Give every changed tensor the bits it had before. Safe to call twice."""
        for item in self.replaced:
            if item.tensor.data_ptr() != item.alias.data_ptr():
                item.tensor.data = item.alias
            item.entries[item.name] = item.tensor
        for written in self.written.values():
            written.storage.copy_(written.before, False)


class WriteWatch(DispatchMode):
    """Notices every write to a storage of the given modules; `current` says which override is running."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current: Changes | None = None
        self.latest: Changes | None = None
        self._entries = [
            (entries, name, tensor, tensor.detach(), tensor.data_ptr())
            for module in modules
            for entries in (
                module.__dict__.get("_parameters") or {},
                module.__dict__.get("_buffers") or {},
                vars(module),
            )
            for name, tensor in entries.items()
            if isinstance(tensor, torch.Tensor) and _has_storage(tensor)
        ]
        self._storages = {tensor.untyped_storage().data_ptr() for _, _, tensor, _, _ in self._entries}
        self._storages.discard(0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.current is not None:
            for position, argument in enumerate(func._schema.arguments):  # noqa: SLF001 - the operator's public schema
                if argument.alias_info is not None and argument.alias_info.is_write:
                    value = args[position] if position < len(args) else kwargs.get(argument.name)
                    for tensor in value if isinstance(value, list | tuple) else (value,):
                        self._before_write(tensor)
        return func(*args, **kwargs)

    def _before_write(self, tensor: object) -> None:
        if not isinstance(tensor, torch.Tensor) or not _has_storage(tensor) or self.current is None:
            return
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self._storages and key not in self.current.written:
            self.current.written[key] = _Written(storage, storage.clone())

    def watch(self) -> None:
        """Begin to watch: without torch's own `with`, whose two ends run Python that an interruption can cut short."""
        torch._C._push_on_torch_dispatch_stack(self)  # noqa: SLF001 - what TorchDispatchMode.__enter__ calls

    def leave(self) -> None:
        """Stop watching. Safe to call again."""
        stack = _get_current_dispatch_mode_stack()
        if self in stack:
            above = stack[stack.index(self) + 1 :]
            for _ in (self, *above):
                _pop_mode()
            for mode in above:  # an override that leaves a mode of its own on
                torch._C._push_on_torch_dispatch_stack(mode)  # noqa: SLF001 - as above

    def note_replaced(self, changes: Changes) -> None:
        """Add to `changes` the tensors that were exchanged, not written, since the watch was made or last asked."""
        for position, (entries, name, tensor, alias, pointer) in enumerate(self._entries):
            now = entries.get(name)
            if now is tensor and tensor.data_ptr() == pointer:
                continue
            replaced = _Replaced(entries, name, tensor, alias)
            if isinstance(now, torch.Tensor):
                replaced.after, replaced.after_digest = now, _tensor_digest(now)
            changes.replaced.append(replaced)  # first: after an interruption here it is found once more
            if isinstance(now, torch.Tensor):
                self._entries[position] = (entries, name, now, now.detach(), now.data_ptr())


def warn_touched(path: str) -> None:
    """Say that an override's effect is left to its own undoing because the weights changed meanwhile."""
    warnings.warn(
        f"`{path or 'the model'}` changed its tensors on the way into evaluation, and someone changed them again "
        "inside (other weights loaded?): they are left as its own train() leaves them, not put back",
        EvalmodeWarning,
        stacklevel=7,
    )


def _has_storage(tensor: torch.Tensor) -> bool:
    try:
        tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # meta, fake and sparse tensors have none to copy
        return False
    return tensor.layout == torch.strided and tensor.device.type != "meta"


def _tensor_digest(tensor: torch.Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None or not _has_storage(tensor) else _digest(tensor.untyped_storage())


def _digest(storage: torch.UntypedStorage) -> tuple[int, int]:
    """Two sums over the bytes: cheap, in place, and enough to notice an honest change."""
    whole = storage.nbytes() // 8
    values = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, 0, (storage.nbytes(),), (1,))
    words = values[: whole * 8].view(torch.int64)
    weights = torch.arange(1, 1 + min(whole, 4096), device=storage.device)
    rows = words[: whole - whole % 4096].view(-1, 4096) if whole >= 4096 else words.view(1, -1)
    weighted = (rows.sum(0) * weights).sum() if whole else torch.zeros((), dtype=torch.int64)
    return int(words.sum() + values[whole * 8 :].sum()), int(weighted)
