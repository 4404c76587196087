from __future__ import annotations

import pytest
import torch
from torch import nn

from evalmode.optimization.catalog import passes_named

NAME = "channels-last"


class Branches(nn.Module):
    """Views, flattening and several outputs: what depends on the order of values in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4 * 12 * 12, 5)

    def forward(self, x):
        y = self.second(self.first(x).relu())
        return y, self.head(y.view(y.shape[0], -1)), y.view(y.shape[0], 4, -1), y.permute(0, 2, 3, 1)


def test_results_and_their_strides_stay(rewrite, rounding_alone):
    x = torch.randn(2, 3, 6, 6)
    model = Branches()
    done = rewrite(NAME, model, x)
    assert done.result.changed == 2
    weights = [buffer for buffer in done.graph.buffers() if buffer.dim() == 4]
    assert len(weights) == 2
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    with torch.no_grad():
        expected, got = model(x), done.graph(x)
    assert [tuple(y.shape) for y in got] == [tuple(y.shape) for y in expected]
    assert [y.is_contiguous() for y in got[:3]] == [True, True, True]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("spatial", [1, 3])
def test_other_dimensions(rewrite, rounding_alone, spatial):
    kind = {1: nn.Conv1d, 3: nn.Conv3d}[spatial]
    done = rewrite(NAME, nn.Sequential(kind(3, 4, 2), nn.ReLU(), kind(4, 2, 2)), torch.randn(2, 3, *(5,) * spatial))
    assert done.result.changed == (2 if spatial == 3 else 0)
    rounding_alone(done)


def test_memory_that_is_read_by_its_strides_is_refused(rewrite):
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 2)

        def forward(self, x):
            return self.layer(x).as_strided((2, 5), (7, 1))

    done = rewrite(NAME, Strided(), torch.randn(2, 3, 5, 5))
    assert done.result.changed == 0
    assert "by its strides" in done.reasons
    assert torch.equal(done.got, done.expected)


def test_modules_get_weights_of_their_own():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    before = [model[0].weight, model[2].weight]
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        result = passes_named([NAME])[0].apply_to_modules(model, (x,))
        assert torch.allclose(model(x), expected, atol=1e-5)
    assert result.changed == 2
    assert all(weight.is_contiguous() for weight in before)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
