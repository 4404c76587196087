"""The three lines that everybody writes, beside `evaluating`: the same outputs, but not the same way back.

python examples/three_lines.py
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

import evalmode


def three_lines(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        outputs: Tensor = model(x)
    model.train()  # the usual way back to training
    return outputs


def switched(model: nn.Module, x: Tensor) -> Tensor:
    with evalmode.evaluating(model):
        outputs: Tensor = model(x)
    return outputs


def fine_tuned() -> nn.Module:
    """A network in training whose batch norm was frozen, so that it keeps its statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[1].eval()
    return model


def left_behind(evaluate: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> dict[str, str]:
    """What the caller finds after `evaluate`, which may have raised."""
    model = fine_tuned()
    with contextlib.suppress(RuntimeError):  # an input that does not fit: an exception in the midst of evaluation
        evaluate(model, x)
    modes = {name or "model": "train" if part.training else "eval" for name, part in model.named_modules()}
    return {**modes, "grad mode": "on" if torch.is_grad_enabled() else "off"}


def main() -> None:
    fits, does_not_fit = torch.randn(5, 4), torch.randn(5, 7)
    same = torch.equal(three_lines(fine_tuned(), fits), switched(fine_tuned(), fits))
    print(f"the same outputs, bit for bit: {same}\n")
    before = left_behind(lambda model, x: x, fits)
    columns = [
        ("before", before),
        ("three lines", left_behind(three_lines, fits)),
        ("if it raises", left_behind(three_lines, does_not_fit)),
        ("evaluating", left_behind(switched, fits)),
        ("if it raises", left_behind(switched, does_not_fit)),
    ]
    print(" " * 10 + "".join(f"{title:>14}" for title, _ in columns))
    for part, was in before.items():
        cells = (found[part] + ("" if found[part] == was else " !") for _, found in columns)
        print(f"{part:<10}" + "".join(f"{cell:>14}" for cell in cells))


if __name__ == "__main__":
    main()
