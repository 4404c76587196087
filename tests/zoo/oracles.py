"""What a planted defect does, seen without `evalmode`: oracles run copies of a model and compare tensors."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tests.zoo.case import Case, map_tensors, run, samples_of, seeded, take, tensors_of
from torch import nn

__all__ = ["ORACLES", "companion_effect", "differing", "same_bits", "state_of"]

EFFECT = 1e-3
"""How far an answer must move, in parts of the largest one, to count as moved: far above rounding."""


def same_bits(first: Any, second: Any) -> bool:
    """Whether two outputs hold the same bits, NaN being a value."""
    left, right = tensors_of(first), tensors_of(second)
    return len(left) == len(right) and all(
        a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
        for a, b in zip(left, right, strict=True)
    )


def distance(first: Any, second: Any) -> float:
    """How far two outputs are apart, in parts of the largest value; infinite where shapes or finiteness differ."""
    left, right = tensors_of(first), tensors_of(second)
    if [tensor.shape for tensor in left] != [tensor.shape for tensor in right]:
        return float("inf")
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if not a.numel() or not a.is_floating_point():
            continue
        if not bool((a.isfinite() == b.isfinite()).all()):
            return float("inf")
        both = a.isfinite()
        scale = float(a[both].abs().max()) if bool(both.any()) else 0.0
        apart = float((a[both] - b[both]).abs().max()) if bool(both.any()) else 0.0
        worst = max(worst, apart / scale if scale else apart)
    return worst


def output(model: nn.Module, batch: Any, seed: int = 0) -> Any:
    """The outputs of a copy of `model`, so that nothing that it keeps reaches another run."""
    with torch.random.fork_rng(devices=[]):
        seeded(seed)
        return map_tensors(run(copy.deepcopy(model), batch), torch.detach)


def random(case: Case, model: nn.Module) -> bool:
    """Other seeds give other answers, which on the clean model they do not."""
    return distance(output(model, case.batch, 1), output(model, case.batch, 2)) > EFFECT


def draws(case: Case, model: nn.Module) -> bool:
    """torch's stream is elsewhere after a pass."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        before = torch.get_rng_state()
        run(copy.deepcopy(model), case.batch)
        return not torch.equal(before, torch.get_rng_state())


def unstable(case: Case, model: nn.Module) -> bool:
    """Two passes of one model from the same seed give other answers."""
    tried = copy.deepcopy(model)
    answers = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            seeded(0)
            answers.append(map_tensors(run(tried, case.batch), torch.clone))
    return not same_bits(answers[0], answers[1])


def companion_effect(case: Case, model: nn.Module) -> float:
    """How far a sample's answer moves with other companions, elsewhere in the batch, in half of it, and alone."""
    total = case.samples
    whole = output(model, case.batch)
    groups = [
        [*range(1, total), 0],
        [0] + [total - 1] * (total - 1),
        list(range(total // 2)),
        [0],
        [total - 1],
    ]
    worst = 0.0
    for group in groups:
        try:
            part = output(model, take(case.batch, group, total))
        except (RuntimeError, TypeError, ValueError, IndexError):
            return float("inf")
        worst = max(worst, distance(take(whole, group, total), part))
    return worst


def companions(case: Case, model: nn.Module) -> bool:
    return companion_effect(case, model) > EFFECT


def _companions_set_to(case: Case, model: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether the first sample's answer moves when the others' floating inputs are changed."""
    total = case.samples
    if isinstance(case.batch, list):
        other = [case.batch[0], *(change(sample) for sample in case.batch[1:])]
    else:
        other = map_tensors(
            case.batch,
            lambda tensor: torch.cat([tensor[:1], change(tensor[1:])]) if tensor.is_floating_point() else tensor,
        )
    first, second = (take(output(model, batch), [0], total) for batch in (case.batch, other))
    return distance(first, second) > EFFECT


def extremes(case: Case, model: nn.Module) -> bool:
    """A sample's answer moves when its companions take values a thousand times as large."""
    return not _companions_set_to(case, case.model, lambda rows: 1e3 * rows) and _companions_set_to(
        case, model, lambda rows: 1e3 * rows
    )


def poison(case: Case, model: nn.Module) -> bool:
    """A sample's answer moves when its companions are NaN."""
    nan = float("nan")
    return not _companions_set_to(case, case.model, lambda rows: torch.full_like(rows, nan)) and _companions_set_to(
        case, model, lambda rows: torch.full_like(rows, nan)
    )


def sizes(case: Case, model: nn.Module) -> bool:
    """A sample's answer moves between this batch and the same batch three times over."""
    total = case.samples
    group = list(range(total)) * 3
    return (
        distance(take(output(model, case.batch), group, total), output(model, take(case.batch, group, total))) > EFFECT
    )


def padding(case: Case, model: nn.Module) -> bool:
    """A sample's answer moves when columns that hold only padding are cut off."""
    if not isinstance(case.batch, Mapping) or "attention_mask" not in case.batch:
        return False
    lengths = case.batch["attention_mask"].sum(1)
    short = [sample for sample in range(case.samples) if lengths[sample] == lengths.min()]
    longest, cut = case.batch["attention_mask"].shape[1], int(lengths.min())
    group = take(case.batch, short, case.samples)
    names = ("input_ids", "attention_mask")
    trimmed = {key: value[:, :cut] if key in names else value for key, value in group.items()}
    return cut < longest and distance(output(model, group), output(model, trimmed)) > EFFECT


def changed(case: Case, model: nn.Module) -> bool:
    """The answers are not those of the clean model."""
    return distance(output(case.model, case.batch), output(model, case.batch)) > EFFECT


def state_of(model: nn.Module) -> dict[str, Any]:
    """Copies of every tensor and the text of every plain value that the modules hold."""
    held: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in {"_modules", "forward"}:
                continue
            values = value if isinstance(value, dict) else {"": value}
            for key, item in values.items():
                kept = item.detach().clone() if isinstance(item, torch.Tensor) else repr(item)
                held[f"{path}.{name}.{key}"] = kept
    return held


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names whose tensor or text is another one, or is there only once."""

    def same(name: str) -> bool:
        old, new = before.get(name), after.get(name)
        if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
            return same_bits(old, new)
        return name in before and name in after and type(old) is type(new) and bool(old == new)

    return [name for name in sorted(before.keys() | after.keys()) if not same(name)]


def state(case: Case, model: nn.Module) -> bool:
    """A pass leaves the model with another tensor or another plain value."""
    tried = copy.deepcopy(model)
    before = state_of(tried)
    run(tried, case.batch)
    return differing(before, state_of(tried)) != []


def graph(case: Case, model: nn.Module) -> bool:
    """A pass without gradients gives a tensor with a graph anywhere, moves a gradient, or leaves gradients on."""
    tried = copy.deepcopy(model)
    seen: list[bool] = []

    def look(module: nn.Module, inputs: Any, outputs: Any) -> None:
        kept = [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
        seen.append(torch.is_grad_enabled() or any(tensor.requires_grad for tensor in tensors_of(outputs) + kept))

    for module in tried.modules():
        module.register_forward_hook(look)
    mode = torch.is_grad_enabled()
    try:
        run(tried, case.batch)
        return any(seen) or any(parameter.grad is not None for parameter in tried.parameters())
    finally:
        del tried
        gc.collect()  # a suspended generator puts a mode back when it goes
        torch.set_grad_enabled(mode)


def nonfinite(case: Case, model: nn.Module) -> bool:
    """The batch, a batch of zeros or a constant one gives NaN or infinity, which on the clean model it does not."""
    batches = [case.batch]
    if any(tensor.is_floating_point() for tensor in tensors_of(case.batch)):
        batches += [_constant(case.batch, 0.0), _constant(case.batch, 1.0)]
    return any(_broken(output(model, batch)) and not _broken(output(case.model, batch)) for batch in batches)


def _constant(batch: Any, value: float) -> Any:
    return map_tensors(batch, lambda tensor: torch.full_like(tensor, value) if tensor.is_floating_point() else tensor)


def _broken(outputs: Any) -> bool:
    return any(not bool(tensor.isfinite().all()) for tensor in tensors_of(outputs) if tensor.is_floating_point())


def training(case: Case, model: nn.Module) -> bool:
    """What is in training shows: in random answers or in answers that depend on companions."""
    return random(case, model) or companions(case, model)


def _leaks_padding(case: Case, model: nn.Module) -> bool:
    try:
        return padding(case, model)
    except RuntimeError:  # it takes no other length
        return False


def harmless(case: Case, model: nn.Module) -> bool:
    """None of the other oracles sees anything, in passes that work."""
    seen = (random, draws, unstable, companions, _leaks_padding, graph, nonfinite)
    return samples_of(case.batch) > 1 and not any(oracle(case, model) for oracle in seen)


ORACLES: dict[str, Callable[[Case, nn.Module], bool]] = {
    oracle.__name__: oracle
    for oracle in (
        random,
        draws,
        unstable,
        companions,
        extremes,
        poison,
        sizes,
        padding,
        changed,
        state,
        graph,
        nonfinite,
        training,
        harmless,
    )
}
"""By name: whether a defect of this effect is at work in `model`, which was made from the clean model of `case`."""
