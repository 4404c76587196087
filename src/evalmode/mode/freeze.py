"""`freeze`: evaluation behaviour that outlives every `train()`."""

from __future__ import annotations

import torch
from torch import nn

from evalmode.mode.discover import discover, require_modules
from evalmode.mode.frozen import FrozenMode, Layer, frozen_mode, frozen_parameters, marks
from evalmode.mode.ledger import adopt_module, forget_module, read_flag, write_flag
from evalmode.mode.overrides import Override, Standing, enter_overrides, leave_overrides, overrides_of

__all__ = ["freeze", "is_frozen", "unfreeze"]


def freeze(module: nn.Module) -> nn.Module:
    """Keep `module`, and everything in it, in evaluation behaviour until `unfreeze`, whatever calls `train()`.

    Dropout stays off, running statistics are used and not updated. Its parameters get no gradient (`requires_grad` is
    off and `.grad` set aside); gradients still flow through it to what comes before. The `state_dict` is unchanged, and
    loading one keeps the module frozen. It survives `copy.deepcopy`, pickling, DistributedDataParallel, `torch.compile`
    and `SyncBatchNorm.convert_sync_batchnorm`. A parameter shared with a part that is not frozen is frozen for both.

    Returns: the module.

    Raises:
        NotAModuleError: something else than an `nn.Module` instance was given.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> _ = freeze(model[1])
        >>> _ = model.train()
        >>> [part.training for part in model]
        [True, False, True]
    """
    (module,) = require_modules((module,), "freeze")
    mark = frozen_mode(module)
    again = mark is not None and mark.layers[-1].root  # then only what was unfrozen or added since is left to do
    found = discover(module)
    parts = [part for part in found.modules if not again or frozen_mode(part) is None]
    flags = [(part, read_flag(part)) for part in found.modules]
    overriding = [part for part in found.unusual if overrides_of(part)]
    due = [Override(part) for part in overriding if read_flag(part)]
    standings: list[Standing] = []
    try:
        enter_overrides(overriding, due, found.modules, standings)
    except BaseException:  # nothing is frozen yet: as it was
        for standing in standings:
            standing.remove()
        leave_overrides(overriding, [item for item in due if item.called], [])
        for item in reversed(due):
            item.put_back()
        for part, flag in flags:
            write_flag(part, training=flag)
        raise
    before = {id(part): flag for part, flag in flags}
    held = frozen_parameters()
    for part in parts:
        _freeze_one(part, held, training=forget_module(part) or before[id(part)], root=part is module)
    return module


def unfreeze(module: nn.Module) -> nn.Module:
    """Take back the last `freeze` that covers `module`: modes, `requires_grad` and `.grad` are what they were before.

    A part of a frozen module can be unfrozen alone. What is not frozen is left as it is.

    Returns: the module.

    Raises:
        NotAModuleError: something else than an `nn.Module` instance was given.

    Example:
        >>> layer = nn.Dropout().train()
        >>> unfreeze(freeze(layer)).training
        True
    """
    (module,) = require_modules((module,), "unfreeze")
    found = discover(module)
    taken = []
    for part in found.modules:
        mark = frozen_mode(part)
        if mark is not None:
            taken.append((part, _unfreeze_one(part, mark)))
    _give_parameters_back(taken)
    returning = [
        part for part, layer in taken if frozen_mode(part) is None and layer.training and not adopt_module(part)
    ]
    overriding = [part for part in found.unusual if overrides_of(part)]
    error = leave_overrides(overriding, [Override(part) for part in overriding if part in returning], [])
    for part in returning:
        write_flag(part, training=True)
    if error is not None:
        raise error
    return module


def is_frozen(module: nn.Module) -> bool:
    """Whether `module` and everything in it is frozen.

    Example:
        >>> is_frozen(freeze(nn.Linear(2, 2)))
        True
    """
    (module,) = require_modules((module,), "is_frozen")
    return all(frozen_mode(part) is not None for part in discover(module).modules)


def _freeze_one(
    module: nn.Module, held: dict[int, tuple[bool, torch.Tensor | None]], *, training: bool, root: bool
) -> None:
    parameters = {name: p for name, p in (module.__dict__.get("_parameters") or {}).items() if p is not None}
    before = {name: held.get(id(p), (p.requires_grad, p.grad)) for name, p in parameters.items()}
    layer = Layer(
        root=root,
        training=training,
        requires_grad={name: needed for name, (needed, _) in before.items()},
        grads={name: grad for name, (_, grad) in before.items() if grad is not None},
    )
    mark = frozen_mode(module)
    if mark is None:
        write_flag(module, training=False)
        mark = FrozenMode(module, replaced=module.__dict__.get("train"))
        module.__dict__["train"] = mark
    mark.layers.append(layer)
    for name, parameter in parameters.items():
        held.setdefault(id(parameter), before[name])
        parameter.requires_grad_(False)
        parameter.grad = None


def _unfreeze_one(module: nn.Module, mark: FrozenMode) -> Layer:
    """Take back one layer of the mark, and the mark with its last."""
    layer = mark.layers.pop()
    if not mark.layers:
        if mark.replaced is None:
            del module.__dict__["train"]
        else:
            module.__dict__["train"] = mark.replaced
        marks.discard(mark)
    return layer


def _give_parameters_back(taken: list[tuple[nn.Module, Layer]]) -> None:
    """Give `requires_grad` and `.grad` back where no other freeze holds the parameter."""
    held = frozen_parameters()
    for module, layer in taken:
        for name, parameter in (module.__dict__.get("_parameters") or {}).items():
            if parameter is None or name not in layer.requires_grad or id(parameter) in held:
                continue
            parameter.requires_grad_(layer.requires_grad[name])
            grad = layer.grads.get(name)
            if grad is not None and parameter.grad is None and grad.shape == parameter.shape:
                parameter.grad = grad
