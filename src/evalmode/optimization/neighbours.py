"""Layers that run one right after the other, in a model that has no graph: read from `nn.Sequential`, then observed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evalmode.mode.discover import discover

__all__ = ["Neighbours", "has_hooks", "neighbours_in", "replace_child"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Two children in a row of one `nn.Sequential`; `problem` says why the first must not take over the second's work.

    `dims` is the number of axes of what passes between them.
    """

    holder: nn.Sequential
    first: Any
    second: Any
    path: str
    problem: str = ""
    dims: int = 0

    def fuse(self, module: nn.Module) -> None:
        """Let the holder run `module` in place of both.

        Its children stay as they are: other code may call one of them by itself, on a branch that no example took.
        """
        holder: Any = self.holder
        if not isinstance(holder, _Fused):
            own = type(holder)
            made = {"__module__": own.__module__, "__qualname__": own.__qualname__}
            holder.__class__ = type(own.__name__, (_Fused, own), made)  # its own methods stay
            holder.steps = list(holder.children())
        module.training = False
        place = next(number for number, step in enumerate(holder.steps) if step is self.first)
        holder.steps[place : place + 2] = [module]


class _Fused(nn.Sequential):
    """A `Sequential` that runs `steps` in place of its children."""

    steps: list[nn.Module]

    def forward(self, input: Any) -> Any:  # noqa: A002 - its name in torch
        """What its children would give."""
        for step in self.steps:
            input = step(input)  # noqa: A001 - as above
        return input


def neighbours_in(
    model: nn.Module, inputs: Sequence[Tensor], firsts: tuple[type, ...], seconds: tuple[type, ...]
) -> list[Neighbours]:
    """Every pair of a module of exactly one of the types `firsts`, and one of `seconds` right after it.

    The model is run on `inputs` to see that it calls them so.
    """
    found = discover(model)
    paths = found.paths()
    held: dict[int, int] = {}
    for module in found.modules:
        for child in module.children():
            held[id(child)] = held.get(id(child), 0) + 1
    loose = found.hidden()
    pairs: list[Neighbours] = []
    for holder in found.modules:
        if not isinstance(holder, nn.Sequential) or type(holder).forward is not nn.Sequential.forward:
            continue
        children = list(holder.named_children())
        for (_, first), (key, second) in itertools.pairwise(children):
            if type(first) in firsts and type(second) in seconds:
                path = f"{paths.get(id(second), key)}".removeprefix("model.")
                problem = ""
                if held[id(first)] > 1 or held[id(second)] > 1 or {id(first), id(second)} & loose:
                    problem = "one of them is part of the model twice"
                elif has_hooks(first) or has_hooks(second):
                    problem = "one of them has hooks or a forward of its own"
                pairs.append(Neighbours(holder, first, second, path, problem))
    return _observed(model, inputs, pairs)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than its class says: hooks, or a `forward` of the instance."""
    return "forward" in module.__dict__ or any(getattr(module, name, None) for name in _HOOKS)


def replace_child(holder: nn.Module, key: str, module: nn.Module) -> None:
    """Put `module`, in evaluation, in place of a registered child."""
    module.training = False
    holder._modules[key] = module  # noqa: SLF001 - `setattr` would refuse the names "0", "1" of a Sequential's children


@dataclass(eq=False)
class _Call:
    """A module that is running, or has run."""

    module: nn.Module
    holder: nn.Module | None
    given: object
    answer: object = None


def _observed(model: nn.Module, inputs: Sequence[Tensor], pairs: list[Neighbours]) -> list[Neighbours]:
    if not pairs:
        return pairs
    calls: list[_Call] = []
    with _watched(model, calls), torch.no_grad():
        model(*(tensor.clone() for tensor in inputs))  # it may write into them
    result = []
    for pair in pairs:
        firsts = [call for call in calls if call.module is pair.first]
        seconds = [call for call in calls if call.module is pair.second]
        problem, dims = pair.problem, 0
        together = len(firsts) == len(seconds) and all(
            one.holder is pair.holder and other.holder is pair.holder and one.answer is other.given
            for one, other in zip(firsts, seconds, strict=False)
        )
        if not problem and not firsts:
            problem = "it was not called"
        elif not problem and len({(id(call.given)) for call in firsts}) > 1:
            problem = "its layer is called more than once"
        elif not problem and not together:
            problem = "the two are not always called one right after the other"
        if seconds and isinstance(seconds[0].given, Tensor):
            dims = seconds[0].given.dim()
        result.append(Neighbours(pair.holder, pair.first, pair.second, pair.path, problem, dims))
    return result


@contextlib.contextmanager
def _watched(model: nn.Module, calls: list[_Call]) -> Iterator[None]:
    running: list[_Call] = []

    def before(module: nn.Module, arguments: tuple[object, ...]) -> None:
        holder = running[-1].module if running else None
        call = _Call(module, holder, arguments[0] if arguments else None)
        running.append(call)
        calls.append(call)

    def after(module: nn.Module, arguments: object, answer: object) -> None:
        running.pop().answer = answer

    with contextlib.ExitStack() as stack:
        for module in discover(model).modules:
            if not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after).remove)
        yield
