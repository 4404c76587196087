from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.checking.clean_models import ConvolutionalNet, Recurrent, TransformerNet, UNet
from torch import nn

from evalmode.observe.following import Operators
from evalmode.observe.still import still
from evalmode.observe.wide import wide, widened


class CastsInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(4, dtype=torch.float32) / 3
        return self.layer(x.to(torch.float32)).float() * steps + x.half().to(x.dtype) + torch.zeros(4)


class WritesIntoViews(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(x.shape[0], 8)
        out[:, :4] = x / 3
        out[:, 4:] = torch.tensor([0.0, 0.25, 0.5, 1.0])
        return out.div_(7)


class ComparesDtypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.prelu(x, self.weight) + F.cosine_similarity(x, self.weight[None]).unsqueeze(1)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "casts": (CastsInside, (3, 4)),
    "views": (WritesIntoViews, (3, 4)),
    "dtypes": (ComparesDtypes, (3, 4)),
    "cnn": (ConvolutionalNet, (2, 3, 8, 8)),
    "u-net": (UNet, (2, 3, 8, 8)),
    "lstm": (lambda: Recurrent(nn.LSTM), (2, 5, 6)),
    "gru": (lambda: Recurrent(nn.GRU), (2, 5, 6)),
    "transformer": (TransformerNet, (2, 5, 16)),
    "layers": (lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU(), nn.Softmax(-1)), (3, 4)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("hold", [False, True])
def test_wide_outputs_are_those_of_the_model_in_double(name: str, hold: bool) -> None:
    make, shape = MODELS[name]
    model = make().eval()
    x = torch.randn(shape)
    bits = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad(), wide(model if hold else None):
        got = model(widened(x))
    assert all(
        torch.equal(bits[key], value) and bits[key].dtype == value.dtype for key, value in model.state_dict().items()
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            expected = model.double()(x.double()) if name != "casts" else None
    finally:
        torch.set_default_dtype(default)
    if expected is None:
        steps = torch.arange(4, dtype=torch.float64) / 3
        expected = F.linear(x.double(), model.layer.weight.double(), model.layer.bias.double()) * steps + x.double()
    lead = (lambda outputs: outputs["mask"]) if name == "u-net" else (lambda outputs: outputs)
    one, other = lead(got), lead(expected)
    one, other = (value[0] if isinstance(value, tuple) else value for value in (one, other))
    assert one.dtype == torch.float64
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_writes_reach_the_models_own_narrow_tensors() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(2, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total[0].add_(x)
            self.total[1] = x * 2
            return self.total * 1

    model = Counts()
    with torch.no_grad(), wide():
        outputs = model(widened(torch.ones(3)))
    assert outputs.dtype == torch.float64
    assert model.total.tolist() == [[1.0] * 3, [2.0] * 3]
    assert model.total.dtype == torch.float32


def test_everything_is_put_back_after_an_exception() -> None:
    model = nn.LSTM(2, 2)
    weights = model._flat_weights
    with pytest.raises(RuntimeError), wide(model):
        model(torch.zeros(1, 1, 3))
    assert model._flat_weights is weights
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model(torch.zeros(1, 1, 2))[0].dtype == torch.float32


def test_the_experts_product_in_groups_is_decomposed() -> None:
    rows, experts = torch.randn(6, 4, dtype=torch.float64), torch.randn(3, 4, 2)
    ends = torch.tensor([2, 2, 6], dtype=torch.int32)
    with wide():
        got = torch._grouped_mm(rows, experts, ends)
    expected = torch.cat([rows[:2] @ experts[0].double(), rows[2:] @ experts[2].double()])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: F.dropout(x, 0.3),
        lambda x: F.rrelu(x, training=True),
        lambda x: F.gumbel_softmax(x, dim=-1),
        lambda x: x + torch.randn_like(x) + torch.rand(x.shape) + torch.normal(0.0, 1.0, x.shape),
        lambda x: x * torch.bernoulli(torch.full_like(x, 0.7)),
        lambda x: x[torch.randperm(len(x))],
        lambda x: torch.multinomial(x.softmax(-1), 2),
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5),
        lambda x: x + torch.randint(0, 9, x.shape) + torch.empty_like(x).uniform_(2, 3),
    ],
)
def test_a_stilled_draw_is_the_same_for_every_seed(draw: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.randn(5, 4)
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with still():
            outputs.append(draw(x))
    assert torch.equal(*outputs)
    torch.manual_seed(1)
    loud = [draw(x) for _ in range(3)]
    assert not all(torch.equal(loud[0], other) for other in loud[1:])  # without it they differ


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False),
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
        nn.Conv3d(4, 2, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_convolution_is_that_of_the_model_in_fp64(layer: nn.Module, channels_last: bool) -> None:
    axes = {"Conv1d": 1, "Conv3d": 3}.get(type(layer).__name__, 2)
    x = torch.randn(3, 4, *[5] * axes)
    if channels_last and axes == 2:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        with wide():
            found = layer(x)
            alone = layer(x[:1])
        oracle = copy.deepcopy(layer).double()(x.double())
    assert torch.allclose(found, oracle, rtol=1e-12, atol=1e-14)
    assert found.stride() == oracle.stride()
    assert torch.allclose(alone, oracle[:1], rtol=1e-12, atol=1e-14)


def test_a_convolution_in_fp64_is_one_operator_to_those_who_watch() -> None:
    layer, seen = nn.Conv2d(3, 4, 3), []
    with torch.no_grad(), Operators(lambda func, *_: seen.append(str(func))), wide():
        layer(torch.randn(4, 3, 8, 8))
    assert sum("convolution" in name for name in seen) == 1
    assert not any("copy_" in name or "slice" in name for name in seen if name != "aten._to_copy.default")


class LimitsOfADtype(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = x @ x.mT
        least = torch.finfo(scores.dtype).min
        scores = torch.max(scores, torch.tensor(least))
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, torch.full((), least)).softmax(-1) @ x


def test_a_new_tensor_of_numbers_is_wide_from_the_beginning() -> None:
    x = torch.randn(2, 5, 4)
    with torch.no_grad(), wide():
        found = LimitsOfADtype()(widened(x))
        kinds = [torch.tensor(1.5).dtype, torch.tensor([1]).dtype, torch.as_tensor(1j).dtype, torch.full((1,), 2).dtype]
    scores = (x.double() @ x.double().mT).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    assert torch.equal(found, scores.softmax(-1) @ x.double())
    assert kinds == [torch.float64, torch.int64, torch.complex128, torch.int64]
