"""`optimize` with back ends that are planted: what is wrong, unstable or slow never wins, however it is timed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import evalmode
from evalmode.backends.backend import Backend, Chunk, Executor
from evalmode.backends.catalog import backend_named
from evalmode.backends.configuration import Configuration
from evalmode.backends.openvino_executor import OpenVinoExecutor
from evalmode.backends.program import Program
from evalmode.clause import Verdict
from evalmode.errors import (
    ArtifactError,
    BatchError,
    EvalmodeWarning,
    NotAModuleError,
    OptimizationError,
    StalePredictorError,
    UnstableModelError,
    UsageError,
)
from evalmode.observe.tree import same_bits
from evalmode.optimization import optimizer, outcome
from evalmode.optimization.exporting import program_of
from evalmode.optimization.plan_cache import read_plan
from evalmode.optimization.search import Search
from evalmode.predictor.plan import NonFinite

Change = Callable[[Chunk, Chunk, int], Sequence[Tensor]]


class Planted(Executor):
    """The program's own module, changed as a test wants it, and as fast or slow as it wants."""

    def __init__(self, program: Program, configuration: Configuration, change: Change, seconds: float) -> None:
        self.configuration = configuration
        self.module, self.change, self.seconds = program.module, change, seconds

    def run(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        time.sleep(self.seconds * len(chunks))
        with torch.no_grad():
            answers = [(chunk, tuple(self.module(*chunk))) for chunk in chunks]
        return [tuple(self.change(chunk, outputs, self.configuration.batch)) for chunk, outputs in answers]


def planted(name: str, change: Change = lambda inputs, outputs, batch: outputs, seconds: float = 0.0) -> Backend:
    return Backend(
        name=name,
        missing=lambda: None,
        version=lambda: "1",
        precisions=lambda device: ("fp32",),
        build=lambda program, configuration: Planted(program, configuration, change, seconds),
        needs_export=False,
    )


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make planted back ends known by name, beside eager."""
    known = {}

    def make(*backends: Backend) -> None:
        known.update({backend.name: backend for backend in backends})

    real = optimizer.backend_named
    for module in (optimizer, outcome):
        monkeypatch.setattr(module, "backend_named", lambda name: known.get(name) or real(name))
    return make


def slowly(x: Tensor, seconds: float = 0.02) -> Tensor:
    """`x`, later, unless the model is being exported: a back end is surely faster."""
    if not torch.compiler.is_compiling():
        time.sleep(seconds)
    return x


class Slow(nn.Module):
    """A network whose plain forward takes a few milliseconds longer than any back end of these tests."""

    def __init__(self, seconds: float = 0.004) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(12, 24), nn.BatchNorm1d(24), nn.Linear(24, 5)
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.gelu(self.norm(self.first(slowly(x, self.seconds)))))


def plan_of(fast: Any, name: str) -> Any:
    return next(plan for plan in fast.certificate.optimization.plans if plan.backend == name)


BATCH = torch.randn(8, 12, generator=torch.Generator().manual_seed(3))

WRONG: dict[str, Change] = {
    "a bias in one channel": lambda inputs, outputs, batch: [outputs[0] + torch.tensor([0, 0, 1e-4, 0, 0])],
    "the last row of a batch": lambda inputs, outputs, batch: [
        torch.cat([outputs[0][:-1], outputs[0][-1:] + 1e-3]) if batch > 1 else outputs[0]
    ],
    "large inputs": lambda inputs, outputs, batch: [
        torch.where(inputs[0].abs().amax(1, keepdim=True) > 50, outputs[0] * 0.99, outputs[0])
    ],
    "half precision": lambda inputs, outputs, batch: [outputs[0].bfloat16().float()],
    "another shape": lambda inputs, outputs, batch: [outputs[0][:, :4]],
    "one sample for all": lambda inputs, outputs, batch: [outputs[0][:1].expand_as(outputs[0]).clone()],
    "NaN": lambda inputs, outputs, batch: [outputs[0] * torch.nan],
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_back_end_is_rejected_however_fast_it_is(plant: Callable[..., None], fault: str) -> None:
    plant(planted("wrong", WRONG[fault]), planted("right", seconds=0.001))
    model = Slow()
    fast = evalmode.optimize(model, BATCH, backends=["wrong", "right"], budget_s=20)
    wrong = [plan for plan in fast.certificate.optimization.plans if plan.backend == "wrong" and plan.batch > 1]
    assert wrong[0].outcome in {"rejected", "failed"} and wrong[0].reason
    assert not any(plan.outcome in {"chosen", "verified"} for plan in wrong)
    alone = fault in {"the last row of a batch", "one sample for all"}  # one sample at a time it is right, and may win
    assert fast.certificate.optimization.chosen.backend == "right" or alone
    with torch.no_grad():
        assert torch.allclose(fast(BATCH), model.eval()(BATCH), atol=1e-6)


def test_a_wrong_pass_is_rejected(plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    from evalmode.optimization import subject
    from evalmode.optimization.rewriting import apply_passes

    class Rewritten(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            return tuple(output * 1.0001 for output in self.inner(*inputs))

    def with_a_mistake(program: Program, names: Any = None) -> Any:
        import dataclasses

        rewritten, report = apply_passes(program, names)
        return dataclasses.replace(rewritten, module=Rewritten(rewritten.module)), report

    monkeypatch.setattr(subject, "apply_passes", with_a_mistake)
    plant(planted("quick"))
    fast = evalmode.optimize(Slow(), BATCH, backends=["quick"], budget_s=20)
    assert plan_of(fast, "quick").outcome == "rejected"
    assert "what is allowed" in plan_of(fast, "quick").reason
    assert fast.certificate.optimization.chosen.outcome == "plain"


def test_a_back_end_whose_bits_depend_on_companions_runs_one_sample_at_a_time(plant: Callable[..., None]) -> None:
    def noisy(inputs: Chunk, outputs: Chunk, batch: int) -> Sequence[Tensor]:
        odd = bool(inputs[0].sum() > 0) and batch > 1
        return [torch.nextafter(outputs[0], outputs[0] + 1) if odd else outputs[0]]

    plant(planted("noisy", noisy))
    fast = evalmode.optimize(Slow(), BATCH, backends=["noisy"], budget_s=20)
    assert any(plan.outcome == "unstable" for plan in fast.certificate.optimization.plans)
    whole = fast(BATCH)
    assert all(torch.equal(fast(row), whole[place : place + 1]) for place, row in enumerate(BATCH.split(1)))
    free = evalmode.optimize(Slow(), BATCH, backends=["noisy"], budget_s=20, stable=False)
    assert plan_of(free, "noisy").outcome == "chosen"
    assert not free.plan.stable


def test_nothing_slower_than_plain_is_chosen(plant: Callable[..., None]) -> None:
    plant(planted("slow", seconds=0.05))
    model = Slow(0.0)
    fast = evalmode.optimize(model, BATCH, backends=["slow"], budget_s=10)
    assert fast.certificate.optimization.chosen.outcome == "plain"
    assert fast.plan.configurations[0].backend == "eager"
    with torch.no_grad():
        assert torch.allclose(fast(BATCH), model.eval()(BATCH), atol=1e-6)


def test_each_sample_gets_the_same_bits_at_every_size_and_position() -> None:
    fast = evalmode.optimize(Slow(0.0), BATCH, backends=["eager"], budget_s=10)
    samples = torch.randn(64, 12, generator=torch.Generator().manual_seed(5))
    whole = fast(samples)
    for size in range(1, 65, 7):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(size))
        shuffled = torch.cat([fast(part) for part in samples[order].split(size)])
        assert torch.equal(shuffled, whole[order])


def test_a_model_that_is_never_the_same_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(12, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.layer(x) + self.calls

    with pytest.raises(UnstableModelError, match=r"(?s)same bits.*evalmode.check"):
        evalmode.optimize(Counting(), BATCH, backends=["eager"], budget_s=10)


def test_answers_to_nan_are_nan_where_a_back_end_drops_it(plant: Callable[..., None]) -> None:
    def dropping(inputs: Chunk, outputs: Chunk, batch: int) -> Sequence[Tensor]:
        return [outputs[0].nan_to_num(0.25)]

    plant(planted("dropping", dropping))
    model = Slow()
    fast = evalmode.optimize(model, BATCH, backends=["dropping"], budget_s=20)
    assert plan_of(fast, "dropping").outcome == "chosen"
    assert fast.plan.non_finite == NonFinite("nan", minus=(0,))
    broken = BATCH.clone()
    broken[2, 3], broken[5, 0] = torch.nan, torch.inf
    with torch.no_grad():
        expected = model.eval()(broken)
    answers = fast(broken)
    assert torch.equal(answers.isnan(), expected.isnan())
    assert torch.equal(answers[[0, 1, 3, 4, 6, 7]], fast(BATCH)[[0, 1, 3, 4, 6, 7]])


class Closing(nn.Module):
    """A gate, which closes at infinity, and a decision: numbers where other models say NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = Slow()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.slow(x.sigmoid())
        return found, found.argmax(1)


def test_the_model_answers_infinity_itself_where_a_back_end_does_not(
    plant: Callable[..., None], tmp_path: Path
) -> None:
    def lost(inputs: Chunk, outputs: Chunk, batch: int) -> Sequence[Tensor]:
        bad = (~inputs[0].isfinite()).any(1)
        return [outputs[0].masked_fill(bad[:, None], torch.nan), outputs[1].masked_fill(bad, 2)]

    plant(planted("lost", lost))
    model = Closing()
    fast = evalmode.optimize(model, BATCH, backends=["lost"], budget_s=20)
    assert plan_of(fast, "lost").outcome == "chosen"
    assert fast.plan.non_finite == NonFinite("plain", minus=(0,))
    broken = BATCH.repeat(3, 1)
    broken[2, 3], broken[5, 0], broken[9, 1] = torch.nan, torch.inf, -torch.inf
    with torch.no_grad():
        expected = model.eval()(broken)
    answers = fast(broken)
    torch.testing.assert_close(answers[0], expected[0], equal_nan=True)
    assert torch.equal(answers[1], expected[1])
    for row in (2, 5, 9, 10):  # alone, and beside others: the same bits
        alone = fast(broken[row : row + 1])
        assert all(same_bits(one[0], many[row]) for one, many in zip(alone, answers, strict=True))
    with pytest.raises(ArtifactError, match="cannot be written"):  # the planted back end writes no files
        fast.save(tmp_path / "model.evalmode")


def test_a_file_without_the_model_refuses_what_the_model_itself_answers(tmp_path: Path) -> None:
    """ONNX Runtime's LSTM answers NaN to one infinity, where the gates of the model close."""
    pytest.importorskip("onnxruntime")

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(16, 48, batch_first=True), nn.Linear(48, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(slowly(self.lstm(x)[0][:, -1]))

    torch.manual_seed(0)
    model, batch = Reader().eval(), torch.randn(4, 24, 16)
    fast = evalmode.optimize(model, batch, backends=["onnxruntime"], budget_s=20, memory=None)
    assert "samples with NaN or infinity are answered by the model itself" in str(fast)
    assert "answered by the model itself" in " ".join(fast.certificate.optimization.notes)
    assert fast.plan.non_finite is not None and fast.plan.non_finite.answer == "plain"
    broken = batch.clone()
    broken[1, 3, 2] = torch.inf
    with torch.no_grad():
        torch.testing.assert_close(fast(broken), model(broken), atol=1e-5, rtol=1e-4)
    with pytest.warns(EvalmodeWarning, match="refuses them"):
        fast.save(tmp_path / "model.evalmode")
    loaded = evalmode.load(tmp_path / "model.evalmode")
    assert torch.equal(loaded(batch), fast(batch))
    assert "samples with NaN or infinity are refused" in str(loaded)
    with pytest.raises(BatchError, match="sample 1 holds NaN or infinity, which"):
        loaded(broken)
    with pytest.raises(BatchError, match="the inputs hold NaN or infinity, which"):
        loaded(broken[1:2].repeat(3, 1, 1))
    report = evalmode.check(loaded, batch)  # its own probes hold NaN
    assert (
        next(result for result in report.certificate.clauses if result.clause == "batch-independent").verdict
        is Verdict.KEPT
    )


def test_the_model_is_left_as_it_was() -> None:
    model = Slow(0.0).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stream, hooks = torch.get_rng_state(), dict(model._forward_hooks)
    evalmode.optimize(model, BATCH, backends=["eager"], budget_s=5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and model.norm.training
    assert torch.equal(torch.get_rng_state(), stream)
    assert dict(model._forward_hooks) == hooks
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_refresh_takes_the_new_weights_and_passes_the_gate_again(plant: Callable[..., None]) -> None:
    plant(planted("quick"))
    model = Slow()
    fast = evalmode.optimize(model, BATCH, backends=["quick"], budget_s=20)
    with torch.no_grad():
        model.last.weight.mul_(2.0)
    assert not fast.matches(model)
    with pytest.raises(StalePredictorError, match="refresh"), evalmode.evaluating(model):
        pass
    again = evalmode.refresh(fast, model)
    assert again.matches(model)
    assert plan_of(again, "quick").outcome == "chosen"
    with evalmode.evaluating(model):
        assert torch.allclose(again(BATCH), model(BATCH), atol=1e-6)


def test_a_plan_is_remembered_and_verified_anew(
    plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EVALMODE_CACHE", str(tmp_path))
    plant(planted("quick"))
    first = evalmode.optimize(Slow(), BATCH, backends=["quick"], budget_s=20)
    (kept,) = (tmp_path / "plans").iterdir()
    assert read_plan(kept.stem) is not None
    second = evalmode.optimize(Slow(), BATCH, backends=["quick"], budget_s=20)
    assert "earlier search" in " ".join(second.certificate.optimization.notes)
    assert second.plan.configurations == first.plan.configurations
    plant(planted("quick", WRONG["half precision"]))
    third = evalmode.optimize(Slow(), BATCH, backends=["quick"], budget_s=20)
    assert third.certificate.optimization.chosen.outcome == "plain"


def test_a_plan_of_other_code_is_not_taken(
    plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EVALMODE_CACHE", str(tmp_path))
    plant(planted("quick"))

    class Other(Slow):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).neg()

    evalmode.optimize(Slow(), BATCH, backends=["quick"], budget_s=20)
    for model, forward in ((Other(), None), (Slow(), lambda model, batch: model(batch))):
        fast = evalmode.optimize(model, BATCH, forward=forward, backends=["quick"], budget_s=20)
        assert "earlier search" not in " ".join(fast.certificate.optimization.notes)


@pytest.mark.parametrize("again", ["refresh", "cache"])
def test_what_could_be_saved_can_be_saved_again(again: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A plan that is taken over brings no other candidates with it: they are searched for when they are wanted."""
    pytest.importorskip("openvino")
    monkeypatch.setenv("EVALMODE_CACHE", str(tmp_path / "cache"))
    real = OpenVinoExecutor.run
    monkeypatch.setattr(OpenVinoExecutor, "run", lambda self, chunks: [slowly(each) for each in real(self, chunks)])
    model, settings = nn.Linear(12, 3), {"backends": ["eager", "openvino"], "budget_s": 8}
    fast = evalmode.optimize(model, BATCH, **settings)
    assert fast.plan.configurations[0].backend == "eager"
    fast = evalmode.refresh(fast, model) if again == "refresh" else evalmode.optimize(model, BATCH, **settings)
    searches = []
    run = Search.run
    monkeypatch.setattr(Search, "run", lambda self: searches.append(self) or run(self))
    stream = torch.get_rng_state()
    for _ in range(2):
        with pytest.warns(EvalmodeWarning, match="the fastest verified plan that can"):
            fast.save(tmp_path / "model.evalmode")
    assert len(searches) == 1
    assert torch.equal(torch.get_rng_state(), stream)
    torch.testing.assert_close(evalmode.load(tmp_path / "model.evalmode")(BATCH), fast(BATCH), atol=1e-5, rtol=1e-4)


def test_nothing_is_searched_for_a_file_that_nobody_can_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fast = evalmode.optimize(nn.Linear(12, 3), BATCH, backends=["eager"], budget_s=5)
    fast = evalmode.refresh(fast, nn.Linear(12, 3))
    monkeypatch.setattr(Search, "run", lambda self: pytest.fail("a search that cannot help"))
    with pytest.raises(ArtifactError, match="no back end that writes files"):
        fast.save(tmp_path / "model.evalmode")


class Writing(nn.Module):
    """Writes into its input: always, only where it holds NaN, or behind torch's back."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "always":
            x.mul_(2)
        elif self.how == "NaN" and bool(x.isnan().any()):
            x.nan_to_num_(1.0)
        elif self.how == "data":
            x.data.mul_(2)
        return x.sum(1, keepdim=True)


@pytest.mark.parametrize("how", ["always", "NaN", "data"])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_inputs_are_never_written_into(backend: str, how: str) -> None:
    model = Writing(how)
    exported = program_of(model, BATCH.clone())
    program = dataclasses.replace(exported.program, exported=None, export_error="as where a model does not export")
    executor = backend_named(backend).build(program, Configuration(backend=backend, batch=8))
    given = BATCH.clone()
    given[2, 3] = torch.nan
    kept = given.clone()
    with torch.no_grad():
        expected = model(given.clone())
    for _ in range(2):
        ((answer,),) = executor.run([(given,)])
        torch.testing.assert_close(answer, expected, equal_nan=True)
        assert same_bits(given, kept)


def test_a_model_that_keeps_memory_of_its_own_is_taken() -> None:
    class Scratch(nn.Module):
        out: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.out is None or self.out.shape != x.shape:
                self.out = torch.empty_like(x)
            return torch.add(x, 1, out=self.out).clone()

    fast = evalmode.optimize(Scratch(), torch.randn(4, 20_000), backends=["eager"], budget_s=5)
    given = torch.randn(3, 20_000)
    assert torch.equal(fast(given), given + 1)


@pytest.mark.parametrize("stable", [True, False])
def test_the_random_streams_stay_where_they_were(stable: bool) -> None:
    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.dropout(x, 0.5, training=True)

    before = torch.get_rng_state()
    try:
        evalmode.optimize(Drawing(), BATCH, backends=["eager"], budget_s=5, stable=stable)
    except UnstableModelError:
        assert stable
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "forward",
    [lambda model, batch: model(batch)[batch[:, 0] > 0], lambda model, batch: model(batch)[batch.isfinite().all(1)]],
    ids=["some are dropped", "NaN is dropped"],
)
def test_an_answer_without_a_row_for_each_sample_is_refused(forward: Callable[..., Tensor]) -> None:
    with pytest.raises(OptimizationError):
        evalmode.optimize(nn.Linear(12, 3), BATCH, forward=forward, backends=["eager"], budget_s=5)


def test_an_answer_without_tensors_is_refused() -> None:
    with pytest.raises(OptimizationError, match="hold no tensor"):
        evalmode.optimize(nn.Linear(12, 3), BATCH, forward=lambda model, batch: None, backends=["eager"], budget_s=5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"memory": -1}, "memory"),
        ({"memory": float("nan")}, "memory"),
        ({"memory": True}, "memory"),
        ({"device": "nonsense"}, "device"),
        ({"device": 3.5}, "device"),
        ({"backends": [3]}, "backends"),
        ({"backends": 5}, "backends"),
        ({"objective": ["latency"]}, "objective"),
        ({"batch_sizes": [10**9]}, "batch size"),
        ({"stable": "no"}, "stable is 'no'"),
        ({"stable": 1}, "stable is 1"),
        ({"passes": 5}, "passes is 5"),
        ({"forward": 5}, "forward is 5"),
        ({"on_progress": 5}, "on_progress is 5"),
        ({"data": (BATCH, None)}, "data would not be looked at"),
        ({"data": 5, "metric": "accuracy"}, "data and metric would not be looked at"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        evalmode.optimize(nn.Linear(12, 3), BATCH, budget_s=5, **settings)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (5, "are 5"),
        ("abc", "is 'a'"),
        ((BATCH, torch.zeros(len(BATCH) - 1).long()), f"{len(BATCH)} samples and {len(BATCH) - 1} targets"),
        ([(BATCH, torch.zeros(len(BATCH) + 1).long())], f"{len(BATCH)} samples and {len(BATCH) + 1} targets"),
        ([(BATCH, [0] * len(BATCH))], "whose target is a tensor or None"),
        ([(BATCH, torch.tensor(0))], "whose first axis counts samples"),
        ([(5, None)], "whose first axis counts samples"),
        ([], "hold no batch"),
    ],
)
@pytest.mark.parametrize("metric", [None, "accuracy"])
def test_data_that_are_no_pairs_of_samples_and_targets_are_refused(data: Any, told: str, metric: str | None) -> None:
    with pytest.raises(UsageError, match=told):
        evalmode.optimize(
            nn.Linear(12, 3), BATCH, backends=["eager"], budget_s=5, tolerance="task", data=data, metric=metric
        )


def test_a_saved_plan_loads_and_gives_the_same_bits(tmp_path: Path) -> None:
    model = Slow()
    fast = evalmode.optimize(model, BATCH, backends=["openvino"], budget_s=20, batch_sizes=[8])
    loaded = evalmode.load(fast.save(tmp_path / "model.evalmode"))
    assert torch.equal(loaded(BATCH), fast(BATCH))
    with pytest.raises(UsageError, match="not made by"):
        evalmode.refresh(loaded, model)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "net"}, NotAModuleError, "nn.Module"),
        ({"batch": None}, BatchError, "None"),
        ({"backends": ["tensorflow"]}, UsageError, "no back end 'tensorflow'"),
        ({"backends": []}, UsageError, "no back end is left"),
        ({"passes": ["fold-everything"]}, UsageError, "fold-everything"),
        ({"objective": "speed"}, UsageError, "'throughput' or 'latency'"),
        ({"tolerance": "loose"}, UsageError, "loose"),
        ({"tolerance": "task"}, UsageError, "without data"),
        ({"budget_s": 0}, UsageError, "budget_s is 0"),
        ({"budget_s": float("nan")}, UsageError, "budget_s is nan"),
        ({"batch_sizes": [0]}, UsageError, "batch_sizes"),
        ({"batch_sizes": []}, UsageError, "batch_sizes"),
        ({"batch_sizes": 8.0}, UsageError, "batch_sizes"),
        ({"device": "cuda"}, UsageError, "the model is on 'cpu'"),
        ({"forward": lambda model, batch: model(batch).mean()}, OptimizationError, "cannot be cut into samples"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"model": Slow(0.0), "batch": BATCH, "backends": ["eager"], "budget_s": 5, **changes}
    with pytest.raises(error, match=message):
        evalmode.optimize(arguments.pop("model"), arguments.pop("batch"), **arguments)


def test_the_tolerance_of_the_task(plant: Callable[..., None]) -> None:
    inputs = torch.randn(400, 12, generator=torch.Generator().manual_seed(7))
    model = Slow().eval()
    with torch.no_grad():
        target = model(inputs).argmax(1)
    options: dict[str, Any] = {"tolerance": "task", "data": (inputs, target), "metric": "accuracy", "budget_s": 20}
    plant(planted("coarse", lambda i, o, b: [o[0] * 1.001]), planted("turned", lambda i, o, b: [o[0].flip(1)]))
    coarse = evalmode.optimize(model, BATCH, backends=["coarse"], **options)
    assert plan_of(coarse, "coarse").outcome == "chosen"
    turned = evalmode.optimize(model, BATCH, backends=["turned"], **options)
    assert plan_of(turned, "turned").outcome == "rejected"
    assert "of the first 64 samples change" in plan_of(turned, "turned").reason
