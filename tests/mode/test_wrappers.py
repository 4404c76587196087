"""Models that are wrapped, compiled, averaged, traced, scripted or exported."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evalmode import evaluating, freeze, is_frozen
from evalmode.errors import FrozenModeError


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))


def flags(model):
    return [getattr(m, "training", False) for m in model.modules()]  # a frozen script has no flag


INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def expected(model):
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        return twin(INPUTS)


# ---------------------------------------------------------------------------------------------- torch.compile


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("wishes", [{}, {"inference_mode": True}], ids=str)
@pytest.mark.parametrize("given", ["compiled", "original"])
def test_compiled_models(wishes, given):
    model = network()
    compiled = torch.compile(model, backend="eager")
    subject = compiled if given == "compiled" else model
    compiled(INPUTS)  # compiled in training first
    answer = expected(model)
    for _ in range(3):
        before = flags(compiled)
        with evaluating(subject, **wishes):
            assert not any(flags(model))
            assert torch.equal(compiled(INPUTS), answer)
        assert flags(compiled) == before
    assert all(flags(model))
    statistics = model[1].running_mean.clone()
    outputs = compiled(INPUTS)
    assert outputs.requires_grad and not torch.equal(outputs.detach(), answer)  # trains again
    assert not torch.equal(model[1].running_mean, statistics)


@pytest.mark.usefixtures("fresh_compiler")
def test_switching_a_compiled_model_back_and_forth_compiles_each_mode_once():
    count = 0

    def backend(graph, inputs):
        nonlocal count
        count += 1
        return graph.forward

    model = network()
    compiled = torch.compile(model, backend=backend)
    for _ in range(4):
        compiled(INPUTS)
        with evaluating(compiled):
            compiled(INPUTS)
    assert count == 2


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_model_compiled_in_place_and_a_part_compiled():
    model = network()
    model[0].compile(backend="eager")
    model.compile(backend="eager")
    answer = expected(network())
    with evaluating(model):
        assert torch.equal(model(INPUTS), answer)
    assert all(flags(model))
    parts = network()
    parts[2] = torch.compile(parts[2], backend="eager")
    parts(INPUTS)
    with evaluating(parts):
        assert not any(flags(parts)) and torch.equal(parts(INPUTS), parts(INPUTS))
    assert all(flags(parts))


# ---------------------------------------------------------------------------------------------- distributed


@pytest.fixture
def process_group(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_distributed_data_parallel():
    from torch.nn.parallel import DistributedDataParallel

    model = network()
    freeze(model[1])
    wrapped = DistributedDataParallel(model)
    wrapped.train()
    before = flags(wrapped)
    assert is_frozen(model[1]) and not model[1].training
    wrapped(INPUTS).sum().backward()
    grads = [p.grad for p in model.parameters()]
    values = [None if g is None else g.clone() for g in grads]
    with evaluating(wrapped) as switched:
        assert not any(flags(wrapped)) and "module.0" in switched.switched
        assert torch.equal(wrapped(INPUTS), expected(model))
    with evaluating(wrapped, gradients=True):
        x = INPUTS.clone().requires_grad_()
        wrapped(x).sum().backward()
        assert x.grad is not None
    assert flags(wrapped) == before
    for parameter, grad, value in zip(model.parameters(), grads, values, strict=True):
        assert parameter.grad is grad and (value is None or torch.equal(grad, value))
    assert model[1].weight.grad is None
    wrapped(INPUTS).sum().backward()  # goes on training
    assert model[0].weight.grad is grads[0] and not torch.equal(grads[0], values[0])


def test_averaged_models():
    from torch.optim.swa_utils import AveragedModel

    model = network()
    freeze(model[1])
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    averaged.train()
    assert is_frozen(averaged.module[1]) and not averaged.module[1].training
    before = flags(averaged)
    with evaluating(averaged, model):
        assert not any(flags(averaged)) and not any(flags(model))
        assert torch.equal(averaged(INPUTS), expected(model))
    assert flags(averaged) == before and model.training


def test_data_parallel_and_parametrised_models():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    nn.utils.parametrizations.spectral_norm(model, "bias") if model.bias.ndim > 1 else None
    wrapped = nn.DataParallel(nn.Sequential(model, nn.Dropout()))
    with evaluating(wrapped):
        assert not any(flags(wrapped))
        wrapped(INPUTS)
    assert all(flags(wrapped))


# ---------------------------------------------------------------------------------------------- baked graphs


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return F.dropout(self.norm(self.linear(x)), 0.5, self.training)


def export(model):
    return torch.export.export(model, (INPUTS,)).module()


def trace(model):
    return torch.jit.trace(model, INPUTS, check_trace=False)


def frozen_script(model):
    return torch.jit.freeze(torch.jit.script(model.eval()))


MODELS = {"modules": network, "functional": Functional}


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("bake", [trace, torch.jit.script, export, torch.fx.symbolic_trace, frozen_script])
def test_graphs_baked_in_evaluation_mode_are_accepted(bake, nested, build):
    model = MODELS[build]().eval()
    answer = expected(model)
    graph = bake(model)
    subject = nn.Sequential(graph, nn.Dropout()) if nested else graph
    before = flags(subject)
    with evaluating(subject):
        assert not any(flags(subject))
        torch.testing.assert_close(subject(INPUTS), answer)  # torch.jit.freeze folds batch norm
    assert flags(subject) == before


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("bake", [trace, export])
def test_graphs_baked_in_training_mode_are_refused_with_what_to_do(bake, nested, build):
    model = MODELS[build]()
    graph = bake(model)
    subject = nn.Sequential(nn.Dropout(), nn.Sequential(graph)) if nested else graph
    before = flags(subject)
    with pytest.raises(FrozenModeError, match=r"call model\.eval\(\) before") as caught, evaluating(subject):
        raise AssertionError("entered")
    assert "dropout" in str(caught.value) or "batch_norm" in str(caught.value)
    if nested:
        assert "`1.0`" in str(caught.value)
    assert flags(subject) == before and torch.is_grad_enabled()


def test_a_functional_dropout_in_a_symbolic_trace_is_baked_too():
    with pytest.raises(FrozenModeError, match="dropout"), evaluating(torch.fx.symbolic_trace(Functional())):
        pass
    with evaluating(torch.fx.symbolic_trace(network())) as switched:  # its modules carry their flags
        assert len(switched.switched) == 5


def test_a_script_that_reads_its_flag_is_switched():
    for build in MODELS.values():
        script = torch.jit.script(build())
        with evaluating(script):
            assert torch.equal(script(INPUTS), script(INPUTS))
        assert all(flags(script))


def test_a_graph_kept_in_training_on_purpose_and_one_that_does_nothing_in_training():
    model = nn.Sequential(trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout())), nn.Dropout())
    with evaluating(model, keep_training="0"):
        assert not model[1].training
    harmless = trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)))
    with evaluating(harmless):
        harmless(INPUTS)


class Attention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.3 if self.training else 0.0)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 3, num_layers=2, dropout=0.4)

    def forward(self, x):
        return self.lstm(x)[0]


class Branching(nn.Module):
    def forward(self, x):
        return torch.rrelu(x, 0.1, 0.3, self.training)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("kind", [Attention, Recurrent, Branching])
@pytest.mark.parametrize("bake", ["trace", "export"])
def test_other_training_operators_are_found_in_graphs(kind, bake):
    inputs = torch.randn(5, 2, 4)

    def baked(model):
        if bake == "trace":
            return torch.jit.trace(model, inputs, check_trace=False)
        return torch.export.export(model, (inputs,)).module()

    graph = baked(kind().train())
    with pytest.raises(FrozenModeError), evaluating(graph):
        pass
    with evaluating(baked(kind().eval())):
        pass
