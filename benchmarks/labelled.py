"""Labelled data for the rows of benchmarks/optimize.py in bf16, whose tolerance is one in decisions.

Random weights decide by differences as small as rounding. So the last layer is fitted, by ridge regression on the
model's own features, to a task that the features can tell apart; then the decisions have margins, as a trained model's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from eleven_models import Case
from torch import Tensor, nn

SAMPLES, _TRAINING, _CLASSES = 288, 128, 10
_STEP = 8


def labelled(case: Case, model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Inputs and targets to judge by; the last layer of `model` is fitted to others like them.

    A language model keeps its layers, and has no target: its decisions are the next tokens.

    Shapes: inputs `(288, ...)`; targets `(288,)`, for segmentation `(288, H, W)`, for the language model None.
    """
    generator = torch.Generator().manual_seed(1)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    inputs = case.inputs(SAMPLES + _TRAINING)
    torch.set_rng_state(state)
    head, outputs = _head(model, inputs[:1])
    if outputs.dim() == 3:
        return inputs[:SAMPLES], None
    if outputs.dim() == 4:
        blobs = torch.randn(len(inputs), 3, 8, 8, generator=generator)
        inputs = inputs / 2 + nn.functional.interpolate(blobs, size=inputs.shape[2:], mode="bilinear")
        target = (nn.functional.interpolate(blobs, size=outputs.shape[2:], mode="bilinear").mean(1) > 0).long()
    else:
        classes = min(outputs.shape[1], _CLASSES)
        target = torch.arange(len(inputs)) % classes
        inputs = _of_classes(inputs, target, classes, generator)
    _fit(model, head, inputs[SAMPLES:], target[SAMPLES:])
    return inputs[:SAMPLES], target[:SAMPLES]


def share_right(outputs: Tensor, target: Tensor) -> Tensor:
    """The share of each sample's decisions that are right. Shapes: `(N, C, ...)` and `(N, ...)` give `(N,)`."""
    return (outputs.argmax(1) == target).reshape(len(target), -1).double().mean(1)


def _of_classes(inputs: Tensor, target: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """Tokens from a share of the vocabulary that is the class's own; values around a pattern of the class."""
    if not inputs.is_floating_point():
        share = int(inputs.max()) // classes
        return inputs % share + 1 + (target * share)[:, None]
    if inputs.dim() == 4:
        coarse = torch.randn(classes, inputs.shape[1], 7, 7, generator=generator)
        pattern = nn.functional.interpolate(coarse, size=inputs.shape[2:], mode="bilinear")
    else:
        pattern = torch.randn(classes, *inputs.shape[1:], generator=generator)
    return inputs / 4 + pattern[target]


def _head(model: nn.Module, sample: Tensor) -> tuple[nn.Linear | nn.Conv2d, Tensor]:
    """The last linear layer that runs, and what the model answers."""
    ran: list[nn.Linear | nn.Conv2d] = []
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(lambda layer, *_: ran.append(layer)) for layer in layers]
    with torch.inference_mode():
        outputs: Tensor = model(sample)
    for handle in handles:
        handle.remove()
    return ran[-1], outputs


def _fit(model: nn.Module, head: nn.Linear | nn.Conv2d, inputs: Tensor, target: Tensor) -> None:
    """The head's weights by ridge regression; classes that do not occur are never answered."""
    features = torch.cat(list(_features(model, head, inputs))).double()
    classes = int(target.max()) + 1
    wanted = nn.functional.one_hot(target.flatten(), classes).double() * 10
    if len(features) > 20_000:
        chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(2))[:20_000]
        features, wanted = features[chosen], wanted[chosen]
    center, mean = features.mean(0), wanted.mean(0)
    features, wanted = features - center, wanted - mean
    gram = features.T @ features
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weight = torch.linalg.solve(gram + ridge, features.T @ wanted).T
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:classes] = weight.reshape(classes, *head.weight.shape[1:]).to(head.weight.dtype)
        if head.bias is None:
            raise ValueError("the last layer has no bias to fit")
        head.bias.fill_(-10.0)
        head.bias[:classes] = (mean - weight @ center).to(head.bias.dtype)


def _features(model: nn.Module, head: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
    """What reaches the head, a row for each position of each sample."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        for start in range(0, len(inputs), _STEP):
            model(inputs[start : start + _STEP])
            values = seen.pop()
            if values.dim() == 4:
                values = values.movedim(1, -1)
            yield values.reshape(-1, values.shape[-1])
    handle.remove()
