from __future__ import annotations

import copy
import functools
import inspect
import threading
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evalmode.errors import BatchError, FrozenModeError, ModelRunError, NotAModuleError
from evalmode.observe.tree import same_bits
from evalmode.optimization.exporting import program_of
from evalmode.optimization.rewriting import apply_passes, rewritten

BATCH = torch.randn(4, 3)


def line_of(function, text: str) -> str:
    """`line: source` of the line of a function that holds `text`."""
    lines, start = inspect.getsourcelines(function)
    return next(f":{start + n}: {line.strip()}" for n, line in enumerate(lines) if text in line)


def agree(exported, sizes=(1, 2, 3, 8)) -> None:
    """The graph gives what the user's model gives, at every size."""
    for size in sizes:
        program = exported.at_batch(size)
        assert program.exported is not None, program.export_error
        inputs = program.inputs_at(size)
        with torch.no_grad():
            expected = exported.flat(*inputs)
            got = program.exported.module(check_guards=False)(*inputs)
        for one, other in zip(got, expected, strict=True):
            assert one.shape == other.shape
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-6, equal_nan=True)


@dataclass
class Answer:
    logits: torch.Tensor
    table: torch.Tensor
    scale: float = 0.5


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)
        self.register_buffer("table", torch.arange(7.0))

    def forward(self, x, mask=None, *, names=("a",)):
        logits = self.layer(x["left"]) + x["right"].unsqueeze(-1)
        return Answer(logits if mask is None else logits * mask.unsqueeze(-1), self.table)


def test_trees_of_inputs_and_outputs_become_flat_and_come_back():
    model = Structured()
    batch = ({"left": torch.randn(4, 3), "right": torch.randn(4)}, torch.ones(4))
    exported = program_of(model, batch)
    program = exported.program
    assert program.input_axes == (0, 0, 0)
    assert program.output_axes == (0, None)
    assert program.dynamic
    assert exported.uncut == ()
    assert len(set(program.input_names)) == 3
    answer = exported.output_structure.rebuild(program.module(*exported.input_structure.flatten(batch)))
    assert isinstance(answer, Answer)
    assert answer.scale == 0.5
    expected = model.eval()(*batch)
    assert same_bits(answer.logits, expected.logits)
    assert same_bits(answer.table, expected.table)
    agree(exported)


class Sequence(nn.Module):
    """The samples lie along the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(3, 4)

    def forward(self, x):
        states, (hidden, _) = self.layer(x)
        return states, hidden


def test_a_batch_axis_may_be_declared():
    exported = program_of(Sequence(), torch.randn(5, 4, 3), batch_axis=1)
    assert exported.program.input_axes == (1,)
    assert exported.program.output_axes == (1, 1)
    agree(exported, (2, 3, 8))


@pytest.mark.parametrize(
    ("function", "axes", "words"),
    [
        (lambda x: x.flatten(0, 1), (None,), "rows for 4 samples|rows for 5 samples"),
        (lambda x: x @ x.t(), (None,), "several of its axes"),
        (lambda x: x.mean(), (None,), "one value for the whole batch"),
        (lambda x: (x, x.sum(0)), (0, None), "one value for the whole batch"),
        (lambda x: x.t(), (1,), ""),
        (lambda x: (x.sum(1), torch.arange(4)), (0, None), ""),
    ],
    ids=["flattened", "pairs", "a mean", "a sum over samples", "turned", "a table as long as the batch"],
)
def test_axes_are_seen_and_never_guessed(function, axes, words):
    class Net(nn.Module):
        def forward(self, x):
            return function(x)

    exported = program_of(Net(), BATCH)
    assert exported.program.output_axes == axes
    assert bool(exported.uncut) == bool(words)
    if words:
        assert any(choice in exported.uncut[0] for choice in words.split("|"))


@settings(max_examples=6)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_an_axis_that_is_as_long_as_the_batch_by_chance_is_no_batch_axis(samples, width, outputs):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(width, outputs)

        def forward(self, x):
            return self.layer(x).unsqueeze(0), self.layer.weight

    exported = program_of(Net(), torch.randn(samples, width))
    assert exported.program.output_axes == (1, None)
    assert exported.program.dynamic
    assert exported.uncut == ()


def test_a_mean_over_a_batch_of_one_is_not_taken_for_a_table():
    class Loss(nn.Module):
        def forward(self, x):
            return x * 2, (x**2).mean()

    exported = program_of(Loss(), torch.randn(1, 3))
    assert len(exported.uncut) == 1
    assert "one value for the whole batch" in exported.uncut[0]


class AsksValue(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x + 1
        return x


class Leaves(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.numpy() * 2)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + self.calls * 0


class WritesInput(nn.Module):
    def forward(self, x):
        x.add_(1)
        return x * 2


class Draws(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)


@pytest.mark.parametrize(
    ("model", "words", "line"),
    [
        (AsksValue(), "asks for a value", "if x.sum() > 0"),
        (Leaves(), "numpy", "torch.from_numpy"),
        (Counts(), "writes into its own `calls`", "self.calls += 1"),
        (WritesInput(), "writes into its input", "x.add_(1)"),
        (Draws(), "draws random numbers", "F.dropout(x, 0.5)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_stops_an_export_is_said_with_its_line(model, words, line):
    batch = BATCH.clone()
    exported = program_of(model, batch)
    assert exported.program.exported is None
    assert words in exported.program.export_error
    assert exported.program.export_error.endswith(line_of(type(model).forward, line) + ")")
    assert "\n" not in exported.program.export_error
    assert torch.equal(batch, BATCH)


class Fixed(nn.Module):
    def forward(self, x):
        count = int(x.shape[0])
        return torch.cat([x[position : position + 1] * 2 for position in range(count)])


class Chosen(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] > 6 else x * 3


@pytest.mark.parametrize(("kind", "line"), [(Fixed, "int(x.shape[0])"), (Chosen, "if x.shape[0] > 6")])
def test_a_graph_that_takes_one_size_is_exported_for_each(kind, line):
    exported = program_of(kind(), BATCH)
    assert exported.program.exported is not None
    assert not exported.program.dynamic
    assert line_of(kind.forward, line) in exported.notes[0]
    agree(exported, (1, 2, 4, 8))


class OneApart(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] == 1 else x * 3


def test_a_batch_of_one_with_code_of_its_own_is_exported_apart():
    exported = program_of(OneApart(), BATCH)
    assert exported.program.dynamic
    assert exported.smallest == 2
    agree(exported)


class Remembers(nn.Module):
    """What Python code decides from values in a way that tracing does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.first = None

    def forward(self, x):
        if self.first is None:
            self.first = x.detach().mean(1, keepdim=True)[:1]
            return x + 1
        return x + 2


def test_a_model_that_remembers_its_first_call_is_exported_as_it_answers_later():
    model = Remembers()
    exported = program_of(model, BATCH)
    assert model.first is None
    with torch.no_grad():
        assert same_bits(exported.program.module(BATCH)[0], BATCH + 2)
    agree(exported)


class CountsInPython(nn.Module):
    """Python state that no graph holds: each call answers another way."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def test_a_graph_with_other_results_than_the_model_is_refused():
    model = CountsInPython()
    exported = program_of(model, BATCH)
    assert model.calls == 0
    assert exported.program.exported is None
    assert "gives other results" in exported.program.export_error


def test_the_random_streams_of_the_caller_are_left_where_they_were():
    before = torch.get_rng_state()
    program_of(Draws(), BATCH)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_of_one_batch_size_is_said_to_be():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("state", torch.zeros(4, 3))

        def forward(self, x):
            return x + self.state

    exported = program_of(Net(), BATCH)
    assert not exported.program.dynamic
    assert exported.program.exported is not None
    assert "takes only batches of 4" in exported.notes[0]
    assert exported.uncut


class Held(nn.Module):
    """Parts where registration does not look, in training, one of them with a switch of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [nn.Linear(3, 3), nn.Dropout(0.5)]
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def test_every_part_of_the_copy_is_in_evaluation_and_the_model_stays_in_training():
    model = Held().train()
    before = copy.deepcopy(model.state_dict())
    held = [parameter.detach().clone() for parameter in model.blocks[0].parameters()]
    exported = program_of(model, BATCH)
    assert exported.notes == ()
    assert exported.copied
    agree(exported)
    assert model.training
    assert model.norm.training
    assert model.blocks[1].training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():  # later training of the model must not reach the program
        first = exported.program.module(BATCH)
        for parameter in (*model.parameters(), *model.blocks[0].parameters()):
            parameter.add_(1)
        assert same_bits(exported.program.module(BATCH)[0], first[0])
    assert not torch.equal(model.blocks[0].weight, held[0])


class Closure(nn.Module):
    """A part that only a function holds: no copy reaches it."""

    def __init__(self) -> None:
        super().__init__()
        hidden = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))

        def through(x):
            return hidden(x)

        self.call = through

    def forward(self, x):
        return self.call(x)


class Uncopied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.lock = nn.Linear(3, 3), threading.Lock()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.layer(x))


@pytest.mark.parametrize(("kind", "words"), [(Closure, "held by a function"), (Uncopied, "cannot be copied")])
def test_a_model_that_cannot_be_copied_runs_itself_in_evaluation(kind, words):
    model = kind().train()
    exported = program_of(model, BATCH)
    assert not exported.copied
    assert words in exported.notes[0]
    assert exported.program.exported is None
    assert same_bits(exported.program.module(BATCH)[0], exported.program.module(BATCH)[0])
    assert model.training
    program, report = apply_passes(exported.program)
    assert program is exported.program
    assert words in report.problem


def test_a_kept_tensor_with_a_graph_is_copied_without_it():
    model = nn.Linear(3, 2)
    model.kept = (model.weight * 2, [model.weight + 1])
    exported = program_of(model, BATCH)
    assert exported.copied
    agree(exported)


def test_a_forward_function_replaces_the_calling_rule():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def encode(self, x):
            return {"answer": self.layer(x)}

        forward = None

    model = Net()
    exported = program_of(model, {"x": BATCH}, forward=lambda net, batch: net.encode(batch["x"]))
    assert exported.output_structure.paths == ("['answer']",)
    assert same_bits(exported.program.module(BATCH)[0], model.encode(BATCH)["answer"].detach())
    agree(exported)


@pytest.mark.parametrize(
    ("model", "batch", "error"),
    [
        (lambda x: x, BATCH, NotAModuleError),
        (nn.Linear(3, 2), None, BatchError),
        (nn.Linear(3, 2), {"input": object()}, BatchError),
        (nn.Linear(5, 2), BATCH, ModelRunError),
    ],
)
def test_wrong_use_is_said(model, batch, error):
    with pytest.raises(error):
        program_of(model, batch)


def test_a_graph_written_in_training_mode_is_refused():
    traced = torch.jit.trace(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train(), BATCH, check_trace=False)
    with pytest.raises(FrozenModeError):
        program_of(traced, BATCH)


def test_the_given_batch_is_not_changed_and_not_kept():
    batch = BATCH.clone()
    program = program_of(nn.ReLU(), batch).program
    batch.zero_()
    assert torch.equal(program.inputs[0], BATCH)


def test_exporting_prints_nothing_and_leaves_loggers_as_they_were(capfd, caplog):
    import logging

    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = (logger.level, list(logger.handlers))
    program_of(AsksValue(), BATCH)
    program_of(Fixed(), BATCH)
    assert capfd.readouterr() == ("", "")
    assert (logger.level, list(logger.handlers)) == before


def test_a_model_without_a_graph_gets_the_passes_that_need_none():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
            self.head = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))

        def forward(self, x):
            x = self.body(x)
            return self.head(x) if x.sum() > -1e9 else x

    model = Net()
    exported = program_of(model, BATCH)
    program, report = apply_passes(exported.program)
    assert report.changed == {"remove-dropout": 1, "bake-parametrizations": 1, "fold-batch-norm": 1, **report.changed}
    assert sum(report.changed.values()) == 3
    assert program.exported is None
    with torch.no_grad():
        assert torch.allclose(program.module(BATCH)[0], model.eval()(BATCH), atol=1e-6)
        assert same_bits(exported.program.module(BATCH)[0], model(BATCH))
    assert isinstance(model.body[1], nn.BatchNorm1d)


def test_a_rewrite_that_changes_the_function_is_dropped_whole(monkeypatch):
    from evalmode.optimization import rewriting
    from evalmode.optimization.graph_pass import Pass, PassResult

    def forget_the_bias(graph, inputs):
        for node in graph.graph.nodes:
            if node.target is torch.ops.aten.linear.default:
                node.args = node.args[:2]
        return PassResult(1)

    monkeypatch.setattr(rewriting, "passes_named", lambda names: (Pass("wrong", forget_the_bias),))
    exported = program_of(nn.Linear(3, 2), BATCH)
    program, report = apply_passes(exported.program)
    assert program is exported.program
    assert report.problem == "the rewritten graph gives other results"
    assert rewritten(exported)[0] is None


def test_a_partial_and_a_bound_method_are_copied_with_their_module():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.call = functools.partial(F.dropout, p=0.5, training=False)
            self.method = self.layer.forward

        def forward(self, x):
            return self.call(self.method(x))

    exported = program_of(Net(), BATCH)
    assert exported.copied
    agree(exported)


@pytest.mark.parametrize("form", ["whole", "part", "scripted", "traced", "exported", "symbolic"])
def test_models_in_other_forms(form):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    given = {
        "whole": lambda: torch.compile(model),
        "part": lambda: nn.Sequential(torch.compile(model[0]), model[1]),
        "scripted": lambda: torch.jit.script(model),
        "traced": lambda: torch.jit.trace(model, BATCH),
        "exported": lambda: torch.export.export(model, (BATCH,), dynamic_shapes=({0: torch.export.Dim("n")},)).module(),
        "symbolic": lambda: torch.fx.symbolic_trace(model),
    }[form]()
    exported = program_of(given, BATCH)
    assert exported.copied
    assert not any(type(part).__name__ == "OptimizedModule" for part in exported.flat.modules())
    program, report = apply_passes(exported.program)
    with torch.no_grad():
        assert torch.allclose(program.module(BATCH)[0], model(BATCH), atol=1e-6)
    if exported.program.exported is not None:
        assert report.changed["fold-batch-norm"] == 1
    else:
        assert form in {"scripted", "traced"}
        assert exported.program.export_error


def test_outputs_of_other_layouts_are_compared():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x), torch.eye(3).to_sparse()

    exported = program_of(Graph(), BATCH)
    assert not any("other results" in note for note in exported.notes)


def test_a_model_that_takes_three_samples_or_more_is_exported():
    class Few(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            if len(x) < 3:
                raise ValueError("three at least")
            return self.layer(x)

    exported = program_of(Few(), BATCH)
    assert exported.program.output_axes == (0,)
