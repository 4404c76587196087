from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from evalmode.observe.tree import same_bits
from evalmode.optimization.catalog import passes_named

NAME = "fold-batch-norm"
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
few = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def layers(draw, transposed: bool):
    spatial = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2, 3]))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    options = {
        "kernel_size": draw(st.integers(1, 3)),
        "stride": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 1)),
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from([torch.float32, torch.float32, torch.float64])),
    }
    if transposed:
        options["output_padding"] = draw(st.integers(0, max(options["stride"], options["dilation"]) - 1))
    if not transposed and draw(st.booleans()):
        options |= {"padding": draw(st.sampled_from(["same", "valid"])), "stride": 1}
    kinds = TRANSPOSED if transposed else CONVOLUTIONS
    return spatial, kinds[spatial](inputs, outputs, **options)


@st.composite
def norms(draw, spatial: int, channels: int, dtype: torch.dtype):
    return NORMS[spatial](
        channels, eps=draw(st.sampled_from([1e-5, 1e-3, 0.1])), affine=draw(st.booleans()), dtype=dtype
    )


@few
@given(st.data(), st.booleans(), st.integers(0, 2**20))
def test_batch_norm_after_any_convolution(rewrite, rounding_alone, randomized, data, transposed, seed):
    generator = torch.Generator().manual_seed(seed)
    spatial, layer = data.draw(layers(transposed))
    norm = data.draw(norms(spatial, layer.out_channels, layer.weight.dtype))
    model = randomized(nn.Sequential(layer, norm, nn.Tanh()), generator)
    x = torch.randn(3, layer.in_channels, *(6,) * spatial, generator=generator, dtype=layer.weight.dtype)
    done = rewrite(NAME, model, x)
    assert (done.result.changed, done.result.refused) == (1, ())
    assert not any("batch_norm" in name for name in done.operators)
    rounding_alone(done)


@few
@given(st.data(), st.booleans(), st.integers(0, 2**20))
def test_batch_norm_before_any_convolution_is_folded_or_refused(
    rewrite, rounding_alone, randomized, data, transposed, seed
):
    generator = torch.Generator().manual_seed(seed)
    spatial, layer = data.draw(layers(transposed))
    norm = data.draw(norms(spatial, layer.in_channels, layer.weight.dtype))
    model = randomized(nn.Sequential(nn.Tanh(), norm, layer), generator)
    x = torch.randn(3, layer.in_channels, *(6,) * spatial, generator=generator, dtype=layer.weight.dtype)
    done = rewrite(NAME, model, x)
    ones = all(size == 1 for size in layer.kernel_size)
    padding = layer.padding if not isinstance(layer.padding, str) else (layer.padding == "same" and not ones) * (1,)
    legal = not any(padding)
    if transposed:
        legal = legal and ones and set(layer.stride) == {1} and not any(layer.output_padding)
    assert done.result.changed == int(legal)
    assert ("padding" in done.reasons or "borders" in done.reasons) == (not legal)
    rounding_alone(done)


@few
@given(st.integers(1, 5), st.integers(1, 5), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 2**20))
def test_batch_norm_beside_a_linear_layer(
    rewrite, rounding_alone, randomized, inputs, outputs, bias, affine, before, seed
):
    generator = torch.Generator().manual_seed(seed)
    layer, norm = (
        nn.Linear(inputs, outputs, bias=bias),
        nn.BatchNorm1d(inputs if before else outputs, affine=affine),
    )
    parts = [nn.Tanh(), norm, layer] if before else [layer, norm, nn.Tanh()]
    done = rewrite(NAME, randomized(nn.Sequential(*parts), generator), torch.randn(4, inputs, generator=generator))
    assert done.result.changed == 1
    rounding_alone(done)


class Written(nn.Module):
    """A forward written as a function of its parts."""

    def __init__(self, forward, **parts: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, x)


def refused(rewrite, rounding_alone, randomized, model: nn.Module, x: torch.Tensor, words: str) -> None:
    done = rewrite(NAME, randomized(model, torch.Generator().manual_seed(0)), x)
    assert done.result.changed == 0
    assert words in done.reasons
    rounding_alone(done)


IMAGES = torch.linspace(-2, 2, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


def test_one_convolution_used_twice_is_refused(rewrite, rounding_alone, randomized):
    model = Written(
        lambda m, x: m.norm(m.conv(x)) + m.other(m.conv(x * x)),
        conv=nn.Conv2d(3, 4, 3),
        norm=nn.BatchNorm2d(4),
        other=nn.BatchNorm2d(4),
    )
    refused(rewrite, rounding_alone, randomized, model, IMAGES, "the weight of `conv` is used 2 times")


def test_weights_tied_under_two_names_are_refused(rewrite, rounding_alone, randomized):
    first, second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    second.weight = first.weight
    model = nn.Sequential(first, nn.BatchNorm2d(3), nn.ReLU(), second)
    refused(rewrite, rounding_alone, randomized, model, IMAGES, "is used 2 times")


def test_a_second_consumer_of_the_convolution_is_refused(rewrite, rounding_alone, randomized):
    model = Written(lambda m, x: m.norm(y := m.conv(x)) + y, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))
    refused(rewrite, rounding_alone, randomized, model, IMAGES, "is also used elsewhere")


def test_batch_statistics_are_refused(rewrite, rounding_alone, randomized):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    refused(rewrite, rounding_alone, randomized, model, IMAGES, "the batch's own statistics")


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
def test_padding_of_any_mode_keeps_a_shift_out(rewrite, rounding_alone, randomized, mode):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode))
    words = "zero padding" if mode == "zeros" else "no layer"
    refused(rewrite, rounding_alone, randomized, model, IMAGES, words)


def test_a_scale_alone_may_pass_zero_padding(rewrite, rounding_alone):
    norm = nn.BatchNorm2d(3)
    norm.running_var.copy_(torch.tensor([0.5, 2.0, 3.0]))
    done = rewrite(NAME, nn.Sequential(nn.Tanh(), norm, nn.Conv2d(3, 4, 3, padding=1)), IMAGES)
    assert done.result.changed == 1
    rounding_alone(done)


def test_batch_norm_over_the_middle_axis_does_not_fold_into_the_last(rewrite, rounding_alone, randomized):
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(4))
    refused(rewrite, rounding_alone, randomized, model, torch.randn(3, 4, 6), "along another axis")


def test_moved_axes_are_followed(rewrite, rounding_alone, randomized):
    model = Written(
        lambda m, x: m.norm(m.layer(x).transpose(1, 2)).relu(), layer=nn.Linear(6, 5), norm=nn.BatchNorm1d(5)
    )
    done = rewrite(NAME, randomized(model, torch.Generator().manual_seed(0)), torch.randn(3, 4, 6))
    assert done.result.changed == 1
    rounding_alone(done)


def test_several_layers_after_one_batch_norm_take_it_together(rewrite, rounding_alone, randomized):
    model = Written(
        lambda m, x: m.query(y := m.norm(x.tanh())) * m.key(y),
        norm=nn.BatchNorm1d(4),
        query=nn.Linear(4, 3),
        key=nn.Linear(4, 3, bias=False),
    )
    done = rewrite(NAME, randomized(model, torch.Generator().manual_seed(0)), torch.randn(5, 4))
    assert done.result.changed == 1
    rounding_alone(done)


def test_one_reader_that_is_no_layer_keeps_batch_norm(rewrite, rounding_alone, randomized):
    model = Written(
        lambda m, x: m.layer(y := m.norm(x.tanh())) + y.sum(), norm=nn.BatchNorm1d(4), layer=nn.Linear(4, 3)
    )
    refused(rewrite, rounding_alone, randomized, model, torch.randn(5, 4), "something that is no such layer")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", ["running_var", "running_mean", "weight"])
def test_unsound_statistics_are_left_as_they_are(rewrite, value, name):
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        getattr(norm, name)[1] = value
    done = rewrite(NAME, nn.Sequential(nn.Conv2d(3, 4, 3), norm).eval(), IMAGES)
    sound = value == -1.0 and name != "running_var"
    assert done.result.changed == int(sound)
    assert sound or "not positive" in done.reasons or "NaN or infinite" in done.reasons
    assert sound or same_bits(done.got, done.expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_not_rounded_again(rewrite, dtype):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(dtype)
    done = rewrite(NAME, model, IMAGES.to(dtype))
    assert done.result.changed == 0
    assert "rounding again" in done.reasons


def test_a_weight_that_would_overflow_is_refused(rewrite):
    norm = nn.BatchNorm2d(4)
    layer = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        norm.weight.fill_(1e38)
        layer.weight.fill_(1e3)
    done = rewrite(NAME, nn.Sequential(layer, norm), IMAGES)
    assert done.result.changed == 0
    assert "overflow" in done.reasons


def test_a_vanished_scale_is_folded(rewrite, rounding_alone, randomized):
    norm = nn.BatchNorm2d(4)
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), norm), torch.Generator().manual_seed(0))
    with torch.no_grad():
        norm.weight[2] = 0.0
    done = rewrite(NAME, model, IMAGES)
    assert done.result.changed == 1
    rounding_alone(done)


def test_functional_and_in_place_forms_are_seen(rewrite, rounding_alone):
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.register_buffer("mean", torch.randn(4))
            self.register_buffer("variance", torch.rand(4) + 0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu_(F.batch_norm(F.conv2d(x, self.kernel), self.mean, self.variance))

    done = rewrite(NAME, Functional(), IMAGES)
    assert done.result.changed == 1
    rounding_alone(done)


# Without a graph: modules of an nn.Sequential, seen to run one right after the other.


def modules_folded(model: nn.Module, *inputs: torch.Tensor):
    (one,) = passes_named([NAME])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    held = dict(model.named_parameters())
    with torch.no_grad():
        expected = model(*inputs)
        result = one.apply_to_modules(model, inputs)
        got = model(*inputs)
    for key, tensor in held.items():
        assert torch.equal(tensor, before[key]), f"the pass wrote into {key}"
    return result, expected, got


@few
@given(st.data(), st.booleans(), st.integers(0, 2**20))
def test_neighbours_in_a_sequential_are_folded(randomized, data, transposed, seed):
    generator = torch.Generator().manual_seed(seed)
    spatial, layer = data.draw(layers(transposed))
    norm = data.draw(norms(spatial, layer.out_channels, layer.weight.dtype))
    model = randomized(nn.Sequential(layer, norm, nn.ReLU()), generator)
    x = torch.randn(3, layer.in_channels, *(6,) * spatial, generator=generator, dtype=layer.weight.dtype)
    result, expected, got = modules_folded(model, x)
    assert (result.changed, result.refused) == (1, ())
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


def reading_between(m: Written, x: torch.Tensor) -> torch.Tensor:
    y = m.body[0](x)
    return m.body[1](y) + y


@pytest.mark.parametrize(
    ("forward", "body", "words"),
    [
        (reading_between, nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), "not always called"),
        (lambda m, x: m.body(m.body(x)), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), "more than once"),
        (lambda m, x: x, nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), "not called"),
        (
            lambda m, x: m.body[:1](x) + m.body(x),
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
            "not always called",
        ),
        (
            lambda m, x: m.body(x),
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
            "own statistics",
        ),
    ],
    ids=["read between", "called twice", "never called", "sliced", "batch statistics"],
)
def test_neighbours_that_are_not_surely_so_are_left_alone(forward, body, words):
    result, expected, got = modules_folded(Written(forward, body=body).eval(), IMAGES)
    assert result.changed == 0
    assert words in str(result.refused[0])
    assert torch.equal(got, expected)


def test_a_hook_between_neighbours_keeps_them_apart():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    model[0].register_forward_hook(lambda module, given, answer: answer * 2)
    result, expected, got = modules_folded(model, IMAGES)
    assert result.changed == 0
    assert "hooks" in str(result.refused[0])
    assert torch.equal(got, expected)


def test_a_linear_layer_over_the_last_axis_is_no_neighbour_of_a_norm_over_the_middle_one():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(4)).eval()
    result, expected, got = modules_folded(model, torch.randn(3, 4, 6))
    assert result.changed == 0
    assert "another axis" in str(result.refused[0])
    assert torch.equal(got, expected)
