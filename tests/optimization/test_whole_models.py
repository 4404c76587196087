"""All passes over whole networks: the same function, measured against fp64, with less to compute."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.zoo import local_models, transformers_models
from torch import nn

from evalmode.observe.tree import same_bits
from evalmode.optimization.exporting import program_of
from evalmode.optimization.flat import FlatModule
from evalmode.optimization.rewriting import apply_passes


def images(samples: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(samples, channels, 16, 16)


def trained(model: nn.Module, batch: torch.Tensor) -> nn.Module:
    return local_models.with_statistics(model, batch, batch + 0.5)


MODELS = {
    "convolutional": lambda: (trained(local_models.ConvolutionalNetwork(), images(8)), images(4)),
    "residual": lambda: (trained(local_models.ResidualNetwork(blocks=3), images(8)), images(4)),
    "u-net": lambda: (trained(local_models.UNet(), images(8, 1)), images(4, 1)),
    "lstm": lambda: (local_models.RecurrentClassifier(nn.LSTM), torch.randint(50, (4, 7))),
    "gru": lambda: (local_models.RecurrentClassifier(nn.GRU), torch.randint(50, (4, 7))),
    "perceptron": lambda: (trained(local_models.Perceptron(), torch.randn(8, 16)), torch.randn(4, 16)),
    "graph network": lambda: (local_models.GraphNetwork(), (torch.randn(4, 5, 6), torch.rand(4, 5, 5))),
    "autoencoder": lambda: (local_models.VariationalAutoencoder(), torch.randn(4, 32)),
    **{
        name: (lambda name=name: transformers_models.build(name, 4))
        for name in ("bert", "gpt2", "vit", "resnet", "mobilenet_v2", "convnextv2", "wav2vec2")
    },
}
WITHOUT_NORMS = {"convolutional", "residual", "u-net", "perceptron", "resnet", "mobilenet_v2"}


@pytest.mark.parametrize("name", MODELS)
def test_a_network_keeps_its_function_through_all_passes(name: str) -> None:
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    before = copy.deepcopy(model.state_dict())
    exported = program_of(model, batch)
    program = exported.program
    assert program.exported is not None, program.export_error
    assert program.dynamic
    assert exported.uncut == ()
    rewritten, report = apply_passes(program)
    assert report.problem == ""
    names = [str(node.target) for node in rewritten.exported.graph.nodes]
    assert not any("dropout" in target for target in names)
    assert name not in WITHOUT_NORMS or not any("batch_norm" in target for target in names)
    assert report.operators_after < report.operators_before or name in {"convnextv2", "graph network", "autoencoder"}
    assert all(same_bits(value, before[key]) for key, value in model.state_dict().items())
    wide = FlatModule(copy.deepcopy(exported.flat.model).double(), exported.input_structure, exported.output_structure)
    with torch.no_grad():
        for size in (1, 6):
            inputs = program.inputs_at(size)
            plain, got = exported.flat(*inputs), rewritten.module(*inputs)
            exact = wide(*(x.double() if x.is_floating_point() else x for x in inputs))
            for one, two, three in zip(plain, got, exact, strict=True):
                own, scale = float((one - three).abs().max()), float(three.abs().max())
                assert float((two - three).abs().max()) <= 8 * own + 1e-6 * scale


def test_channels_last_serves_a_whole_network_and_keeps_strides() -> None:
    torch.manual_seed(0)
    model, batch = MODELS["u-net"]()
    program = program_of(model, batch).program
    folded, _ = apply_passes(program)
    last, report = apply_passes(folded, ["channels-last"])
    assert report.changed["channels-last"] == 3  # the others have one channel, or a kernel of one value
    with torch.no_grad():
        (expected,), (got,) = program.module(*program.inputs), last.module(*program.inputs)
    assert got.stride() == expected.stride()
    assert torch.allclose(got, expected, atol=1e-4)
