"""A model made flat: a copy of it, in evaluation for good, from tensors alone to tensors alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evalmode.errors import BatchError, OptimizationError
from evalmode.mode.baked import training_operators
from evalmode.mode.discover import discover
from evalmode.mode.ledger import read_flag, write_flag
from evalmode.mode.overrides import Override, Standing, enter_overrides, overrides_of
from evalmode.mode.switch import evaluating
from evalmode.optimization.tracing import quiet_torch
from evalmode.predictor.calling import arguments_of
from evalmode.predictor.structure import Structure

__all__ = ["Copied", "FlatModule", "InEvaluation", "copied_for_evaluation", "sibling"]

_CONTAINERS = (list, tuple, set, dict)


@dataclass(frozen=True, slots=True)
class Copied:
    """A model in evaluation for good; `problem` says why it is no copy but the user's own, switched for each call."""

    model: nn.Module
    problem: str = ""


class FlatModule(nn.Module):
    """Called with the tensors of a batch, in the order of `inputs.paths`; answers with those of `outputs.paths`.

    `model` is called by the calling rule, or as `forward(model, batch)` says.

    Example:
        >>> from evalmode.predictor.structure import input_structure, output_structure
        >>> form = input_structure({"input": torch.zeros(1, 2)})
        >>> flat = FlatModule(nn.ReLU(), form, output_structure(torch.zeros(1, 2)))
        >>> flat(torch.tensor([[-1.0, 2.0]]))
        (tensor([[0., 2.]]),)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: Structure,
        outputs: Structure,
        forward: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.outputs = outputs
        self.call = forward
        self.training = False

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The output tensors.

        Raises:
            OptimizationError: something else than a tensor, which `outputs` holds as a constant, depends on the data.
        """
        answer = self.answer(*tensors)
        try:
            return tuple(self.outputs.flatten(answer))
        except BatchError as error:
            raise OptimizationError(
                f"an output depends on the data and is no tensor, so it is of no sample: {error.got}",
                expected=f"{error.expected}: a plan gives the same for all data",
                fix="return it as a tensor with a row for each sample, or leave it out: "
                'forward=lambda model, batch: model(batch)["logits"]',
            ) from error

    def answer(self, *tensors: Tensor) -> Any:
        """The outputs as the model gives them."""
        batch = self.inputs.rebuild(tensors)
        if self.call is not None:
            return self.call(self.model, batch)
        positional, named = arguments_of(batch)
        return self.model(*positional, **named)


class InEvaluation(nn.Module):
    """The user's own model, switched into evaluation for each call: it stands in where no copy can be made."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._own = (model,)  # held out of registration: nothing may be done to it
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs."""
        with evaluating(self._own[0]):
            return self._own[0](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What a `forward=` function asks of the model."""
        if "_own" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["_own"][0], name)


def copied_for_evaluation(model: nn.Module) -> Copied:
    """A copy of `model` with tensors of its own, in evaluation whatever is called on it.

    Every part is switched, those too that `eval()` does not reach; what is compiled is copied as it was written. Where
    a part cannot be copied (it is held by a closure, or refuses), the answer runs the given model itself in
    `evaluating`, and says why.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        >>> copied_for_evaluation(model).model[1].training, model[1].training
        (False, True)
    """
    try:
        with quiet_torch(), torch.no_grad():  # with gradients on, the parameters of a scripted copy are no leaves
            duplicate = _as_written(copy.deepcopy(model, _detached(model)))
    except Exception as error:  # noqa: BLE001 - a model's own __deepcopy__ may raise anything
        first = (str(error).strip().splitlines() or [""])[0]
        return Copied(InEvaluation(model), f"it cannot be copied: {type(error).__name__}: {first}")
    own = discover(model)
    ids = {id(module) for module in own.modules}
    shared = [module for module in discover(duplicate).modules if id(module) in ids]
    if shared:
        path = own.paths().get(id(shared[0]), "") or type(shared[0]).__name__
        return Copied(InEvaluation(model), f"`{path}` cannot be copied: it is held by a function or a class")
    written = [operator for module in own.modules for operator in training_operators(module)]
    if written:
        with evaluating(model):  # it raises FrozenModeError with the whole story
            return Copied(InEvaluation(model), f"its graph was written in training mode: {written[0]}")
    return Copied(_switched_for_good(duplicate))


def _switched_for_good(model: nn.Module) -> nn.Module:
    """Every part in evaluation, its own `eval()` called where it has one, and without gradients."""
    found = discover(model)
    overriding = [part for part in found.unusual if overrides_of(part)]
    standings: list[Standing] = []
    try:
        due = [Override(part) for part in overriding if read_flag(part)]
        enter_overrides(overriding, due, found.modules, standings)
    finally:
        for standing in standings:
            standing.remove()
    for part in found.modules:
        write_flag(part, training=False)
        for tensor in _tensors(part):
            if tensor.is_leaf and tensor.requires_grad:
                tensor.requires_grad_(False)
    return model


def _as_written(module: nn.Module) -> nn.Module:
    """The module without `torch.compile` around it or its parts: kernels for the batch sizes at hand are no model."""
    for part in discover(module).modules:
        if isinstance(part, torch.jit.ScriptModule):
            continue
        for name, child in list(part.named_children()):
            part._modules[name] = _original(child)  # noqa: SLF001 - the child's name may be no attribute's
    return _original(module)


def _original(module: nn.Module) -> nn.Module:
    original = getattr(module, "_orig_mod", None)
    return original if isinstance(original, nn.Module) and type(module).__name__ == "OptimizedModule" else module


def sibling(module: nn.Module) -> nn.Module:
    """A copy that shares every tensor with `module`: what is done to its structure does not reach the other."""
    memo: dict[int, Any] = {}
    for part in discover(module).modules:
        for tensor in _tensors(part):
            memo[id(tensor)] = tensor
        for value in part.__dict__.values():
            if isinstance(value, Structure):
                memo[id(value)] = value
    with quiet_torch():
        return copy.deepcopy(module, memo)


def _detached(model: nn.Module) -> dict[int, Any]:
    """What to put in place of tensors that carry a graph: they cannot be copied (`weight_norm` keeps one)."""
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for module in discover(model).modules:
            for tensor in _tensors(module):
                if not tensor.is_leaf and id(tensor) not in memo:
                    memo[id(tensor)] = tensor.detach().clone()
    return memo


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Every tensor that the module itself holds: registered, an attribute, or in a plain container of one."""
    pending: list[Any] = [module.__dict__.get("_parameters"), module.__dict__.get("_buffers")]
    pending += [value for name, value in module.__dict__.items() if name not in {"_parameters", "_buffers", "_modules"}]
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, _CONTAINERS) and id(value) not in seen and len(value) <= 10_000:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, dict) else value)
