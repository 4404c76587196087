"""fold-constants and bake-parametrizations: computed once, with the bits of every call, and within bounds of memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from evalmode.observe.tree import same_bits
from evalmode.optimization.catalog import passes_named

FOLD, BAKE = "fold-constants", "bake-parametrizations"


class Written(nn.Module):
    def __init__(self, forward, **parts) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self._forward(self, x)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x + m.table(torch.arange(x.shape[1])),
        lambda m, x: x + (m.weight.exp() * 2)[:, :4].sum(0),
        lambda m, x: x.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1)[:, :4], -1.0),
        lambda m, x: x @ m.weight[:4, :4].t(),
        lambda m, x: x + torch.cat(m.weight.chunk(2, 1), 0).sum(),
    ],
    ids=["positions", "a sum", "a mask", "a transposed weight", "pieces"],
)
def test_what_reads_no_input_is_computed_once_with_the_same_bits(rewrite, forward):
    torch.manual_seed(0)
    model = Written(forward, table=nn.Embedding(10, 4), weight=nn.Parameter(torch.randn(6, 6)))
    done = rewrite(FOLD, model, torch.randn(3, 5, 4))
    assert done.result.changed == 1
    assert len(done.operators) == 1
    assert same_bits(done.got, done.expected)


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda m, x: x[:, :1].sum() * m.row.expand(2000, 1000), "8.0 MB"),
        (lambda m, x: x + torch.rand(4), ""),
        (lambda m, x: x + torch.empty(4).zero_().numel(), ""),
        (lambda m, x: x + x.shape[0], ""),
    ],
    ids=["grows", "random", "undefined", "the batch size"],
)
def test_what_is_too_large_or_no_constant_stays(rewrite, forward, words):
    model = Written(forward, row=nn.Parameter(torch.randn(1000)))
    done = rewrite(FOLD, model, torch.randn(3, 5, 4))
    assert done.result.changed == 0
    assert words in done.reasons


def test_a_large_constant_takes_the_place_of_what_it_is_computed_from(rewrite):
    model = Written(lambda m, x: x @ (m.weight * 2), weight=nn.Parameter(torch.randn(600, 600)))
    done = rewrite(FOLD, model, torch.randn(2, 600))
    assert done.result.changed == 1
    held = sum(tensor.untyped_storage().nbytes() for tensor in (*done.graph.parameters(), *done.graph.buffers()))
    assert held == 600 * 600 * 4
    assert same_bits(done.got, done.expected)


def test_an_output_that_is_a_constant_keeps_its_own_memory(rewrite):
    model = Written(lambda m, x: (m.weight * 2, x + 1), weight=nn.Parameter(torch.randn(3)))
    done = rewrite(FOLD, model, torch.randn(3))
    assert "share memory" in done.reasons
    first, _ = done.graph(torch.zeros(3))
    again, _ = done.graph(torch.zeros(3))
    assert first.data_ptr() != again.data_ptr()


class Doubled(nn.Module):
    def forward(self, weight):
        return weight * 2 + 1


class Thin(nn.Module):
    """A weight of two thin matrices: much larger than what it is computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(400, 1)), nn.Parameter(torch.randn(1, 400))

    def forward(self, x):
        return F.linear(x, self.left @ self.right)


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def parametrized(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


LAYERS = {
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 6)), (3, 4)),
    "weight norm of a convolution": (lambda: parametrizations.weight_norm(nn.Conv1d(4, 6, 3), dim=2), (3, 4, 5)),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 6)), (3, 4)),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), (3, 4)),
    "own": (lambda: parametrized(nn.Conv2d(3, 4, 3)), (2, 3, 5, 5)),
    "standardised": (lambda: Standardized(3, 4, 3), (2, 3, 5, 5)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", [*LAYERS, "old weight norm", "old spectral norm"])
def test_computed_weights_are_baked_with_the_same_bits(rewrite, kind):
    torch.manual_seed(0)
    if kind.startswith("old"):
        old = nn.utils.weight_norm if "weight" in kind else nn.utils.spectral_norm
        layer, shape = old(nn.Linear(4, 6)).eval(), (3, 4)
        with torch.no_grad():
            layer(torch.randn(shape))
    else:
        make, shape = LAYERS[kind]
        layer = make()
    done = rewrite(BAKE, nn.Sequential(layer).eval(), torch.randn(shape))
    assert done.result.changed == 1
    assert len(done.operators) == 1
    assert same_bits(done.got, done.expected)


def test_a_weight_much_larger_than_what_makes_it_stays(rewrite):
    done = rewrite(BAKE, Thin(), torch.randn(2, 400))
    assert done.result.changed == 0
    assert "0.6 MB" in done.reasons


@pytest.mark.parametrize("kind", [name for name in LAYERS if name != "standardised"])
def test_modules_are_baked_with_the_same_bits_and_no_write(kind):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    model = nn.Sequential(make()).eval()
    held = {name: (tensor, tensor.detach().clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    x = torch.randn(shape)
    with torch.no_grad():
        expected = model(x)
        result = passes_named([BAKE])[0].apply_to_modules(model, (x,))
        assert (result.changed, result.refused) == (1, ())
        assert same_bits(model(x), expected)
    assert not parametrize.is_parametrized(model[0])
    for name, (tensor, before) in held.items():
        assert same_bits(tensor.detach(), before), name


def test_a_weight_that_changes_at_each_evaluation_stays():
    class Noisy(nn.Module):
        def forward(self, weight):
            return weight + torch.rand_like(weight)

    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", Noisy())
    result = passes_named([BAKE])[0].apply_to_modules(nn.Sequential(layer).eval(), (torch.ones(1, 2),))
    assert result.changed == 0
    assert "another value" in str(result.refused[0])
