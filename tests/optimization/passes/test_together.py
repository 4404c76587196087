"""All passes over random networks: layers, norms, scales, adapters, shared parts and branches in any order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from evalmode.optimization.exporting import program_of
from evalmode.optimization.rewriting import apply_passes

WIDTH = 4
STEPS = [
    "convolution",
    "padded",
    "grouped",
    "transposed",
    "norm",
    "norm without weights",
    "norm with batch statistics",
    "scale",
    "shift",
    "number",
    "relu",
    "in place",
    "dropout",
    "identity",
    "shared",
    "branch",
    "adapter",
    "parametrized",
    "reflect",
    "permuted linear",
    "no change",
]


class Random(nn.Module):
    def __init__(self, steps, generator) -> None:
        super().__init__()
        self.steps = steps
        self.parts = nn.ModuleList(self._part(step) for step in steps)
        self.shared = nn.Conv2d(WIDTH, WIDTH, 1)
        for number, _ in enumerate(steps):
            self.register_buffer(f"constant{number}", torch.rand(WIDTH, 1, 1, generator=generator) + 0.5)

    def _part(self, step):
        conv = nn.Conv2d
        parts = {
            "convolution": lambda: conv(WIDTH, WIDTH, 1),
            "padded": lambda: conv(WIDTH, WIDTH, 3, padding=1, bias=False),
            "grouped": lambda: conv(WIDTH, WIDTH, 3, padding="same", groups=2),
            "transposed": lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1, groups=2),
            "norm": lambda: nn.BatchNorm2d(WIDTH),
            "norm without weights": lambda: nn.BatchNorm2d(WIDTH, affine=False),
            "norm with batch statistics": lambda: nn.BatchNorm2d(WIDTH, track_running_stats=False),
            "dropout": nn.Dropout2d,
            "adapter": lambda: nn.ModuleList([conv(WIDTH, WIDTH, 1), conv(WIDTH, 1, 1), conv(1, WIDTH, 1)]),
            "parametrized": lambda: nn.utils.parametrizations.weight_norm(conv(WIDTH, WIDTH, 1)),
            "reflect": lambda: conv(WIDTH, WIDTH, 3, padding=1, padding_mode="reflect"),
            "permuted linear": lambda: nn.Linear(WIDTH, WIDTH),
        }
        return parts.get(step, nn.Identity)()

    def forward(self, x):
        for number, (step, part) in enumerate(zip(self.steps, self.parts, strict=True)):
            constant = getattr(self, f"constant{number}")
            x = {
                "scale": lambda x, c: x * c,
                "shift": lambda x, c: c - x,
                "number": lambda x, c: (x / 2.0 + 0.25) * 3,
                "relu": lambda x, c: F.relu(x),
                "in place": lambda x, c: F.leaky_relu_((x * 1.0).clone()),
                "identity": lambda x, c: x.float().reshape(x.shape).contiguous() * 1,
                "shared": lambda x, c: self.shared(x) * c,
                "branch": lambda x, c: x + x.tanh() * c,
                "adapter": lambda x, c: part[0](x) + 0.5 * part[2](part[1](x)),
                "permuted linear": lambda x, c: part(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
                "no change": lambda x, c: x,
            }.get(step, lambda x, c: part(x))(x, constant)
        return x


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=9), st.integers(0, 2**20))
def test_any_order_of_layers_keeps_the_function(randomized, steps, seed):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = randomized(Random(steps, generator), generator)
    program = program_of(model, torch.randn(3, WIDTH, 6, 6, generator=generator)).program
    assert program.exported is not None, program.export_error
    rewritten, report = apply_passes(program)
    assert report.problem == ""
    wide = randomized(Random(steps, torch.Generator()), generator).double()
    wide.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    inputs = program.inputs_at(5)
    with torch.no_grad():
        exact = wide(inputs[0].double()) if "identity" not in steps else None
        plain, got = program.module(*inputs)[0], rewritten.module(*inputs)[0]
    exact = plain.double() if exact is None else exact
    own, scale = float((plain - exact).abs().max()), float(exact.abs().max())
    assert float((got - exact).abs().max()) <= 16 * own + 2e-5 * scale
