"""The search on a clock of its own: what is built, in which order, and that the budget is kept whatever things cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

import evalmode
from evalmode.backends.backend import Backend, Chunk, Executor
from evalmode.backends.configuration import Configuration
from evalmode.backends.program import Program
from evalmode.errors import ModelRunError
from evalmode.observe.fingerprint import fingerprint
from evalmode.optimization.candidates import Candidate, build_estimate, first_batch, first_round, variations
from evalmode.optimization.exporting import program_of
from evalmode.optimization.footprint import peak_bytes_of
from evalmode.optimization.judge import Judge, judge_of
from evalmode.optimization.search import Search, SearchSettings
from evalmode.optimization.subject import Subject
from evalmode.optimization.tolerance import Tolerance
from evalmode.optimization.trial import FAILED, REJECTED, UNJUDGED, UNTESTED, VERIFIED, Trial, likely_seconds
from evalmode.optimization.weighing import SLACK_BYTES, Scales, peak_of


@dataclass
class Clock:
    """Seconds that pass only where the test says so; `built` is what was built, `said` when each stage began."""

    now: float = 0.0
    built: list[str] = field(default_factory=list)
    said: dict[str, float] = field(default_factory=dict)

    def say(self, stage: str, done: int, total: int | None) -> None:
        self.said.setdefault(stage.partition(" (")[0], self.now)

    def __call__(self) -> float:
        return self.now


class Costly(nn.Module):
    """A network that takes `clock` a second for each sample, while it is timed."""

    def __init__(self, clock: Clock | None = None, seconds: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 3)
        self.clock, self.seconds = clock, seconds

    def forward(self, x: Tensor) -> Tensor:
        if self.clock is not None and not torch.compiler.is_exporting():
            self.clock.now += self.seconds * len(x)
        return torch.tanh(self.layer(x))

    def __deepcopy__(self, memo: dict[int, object]) -> Costly:
        return Costly(self.clock, self.seconds)


class Timed(Executor):
    """Answers right, or by `wrong` too much, takes its time, and `needs` so many bytes for each sample."""

    def __init__(
        self, program: Program, configuration: Configuration, clock: Clock, seconds: float, wrong: float, needs: int
    ):
        self.configuration = configuration
        self.needs = needs
        self.layer = program.module
        self.clock, self.seconds, self.wrong = clock, seconds, wrong

    def run(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        streams = max(1, min(self.configuration.streams, len(chunks)))
        before = self.clock.now
        torch.ones(self.needs * self.configuration.batch, dtype=torch.uint8)
        with torch.no_grad():
            found = [tuple(output + self.wrong for output in self.layer(*chunk)) for chunk in chunks]
        self.clock.now = before + self.seconds * self.configuration.batch * len(chunks) / streams
        return found


def back_end(
    name: str, clock: Clock, seconds: float, *, build: float = 0.0, wrong: float = 0.0, needs: int = 0
) -> Backend:
    def make(program: Program, configuration: Configuration) -> Executor:
        clock.built.append(f"{name} {configuration.streams}x{configuration.batch}")
        clock.now += build
        return Timed(program, configuration, clock, seconds, wrong, needs)

    return Backend(
        name=name,
        missing=lambda: None,
        version=lambda: "1",
        precisions=lambda device: ("fp32",),
        build=make,
        needs_export=False,
        streams=name == "openvino",
    )


def search_of(
    clock: Clock,
    *backends: Backend,
    plain: float = 0.001,
    budget: float = 60.0,
    judging: float = 0.0,
    batch: int = 8,
    memory: float | None = None,
) -> Search:
    model = Costly(clock, plain).eval()
    exported = program_of(model, torch.randn(batch, 6))
    subject = Subject(exported, (batch,), fingerprint(model))

    def judge_within(seconds: float) -> Judge:
        clock.now += judging
        return judge_of(subject, Tolerance.of("fp32"))

    clock.now = 0.0
    settings = SearchSettings(
        backends=backends, precisions=("fp32",), threads=2, device="cpu", stable=True, budget=budget, memory=memory
    )
    search = Search(subject, settings, judge_within, clock.say, clock=clock)
    search.run()
    return search


def outcomes(search: Search) -> dict[str, str]:
    return {trial.name: trial.outcome for trial in search.trials}


def test_the_fastest_that_holds_wins_and_variations_of_it_are_tried() -> None:
    clock = Clock()
    search = search_of(clock, back_end("openvino", clock, 0.0005), back_end("onnxruntime", clock, 0.0009))
    assert clock.built[0] == "openvino 1x8"
    assert clock.built[1] == "onnxruntime 1x8"
    assert "openvino 2x4" in clock.built  # half the time by two streams
    assert search.chosen is not None
    assert search.chosen.name == "openvino fp32 2x4"
    assert search.chosen.outcome == VERIFIED
    assert search.chosen.speedup == pytest.approx(4.0, rel=0.05)


def test_a_back_end_out_of_the_front_is_not_varied() -> None:
    clock = Clock()
    search_of(clock, back_end("openvino", clock, 0.0004), back_end("onnxruntime", clock, 0.0009))
    assert [name for name in clock.built if name.startswith("onnxruntime")] == ["onnxruntime 1x8"]


def test_two_leaders_are_varied_in_turns() -> None:
    clock = Clock()
    search_of(clock, back_end("openvino", clock, 0.0005), back_end("onnxruntime", clock, 0.00052))
    varied = [name.split()[0] for name in clock.built[2:6]]
    assert varied == ["openvino", "onnxruntime", "openvino", "onnxruntime"]


def test_what_gives_other_answers_never_wins_however_fast() -> None:
    clock = Clock()
    wrong, right = back_end("openvino", clock, 0.0001, wrong=1e-3), back_end("onnxruntime", clock, 0.0005)
    search = search_of(clock, wrong, right)
    assert search.chosen is not None
    assert search.chosen.candidate.backend.name == "onnxruntime"
    assert outcomes(search)["openvino fp32 2x4"] == REJECTED


def test_plain_stays_where_nothing_is_surely_faster() -> None:
    clock = Clock()
    search = search_of(clock, back_end("openvino", clock, 0.0021), back_end("onnxruntime", clock, 0.0011))
    assert search.chosen is None


def test_a_compiler_waits_for_the_quick_ones_and_needs_time_that_is_not_kept_for_judging() -> None:
    clock = Clock()
    backends = [back_end(name, clock, 0.0008, build=6.5) for name in ("inductor", "openvino")]
    search = search_of(clock, *backends, budget=30.0)
    assert clock.built[0] == "openvino 1x8"
    assert outcomes(search)["inductor fp32"] == UNTESTED
    (inductor,) = (trial for trial in search.trials if trial.name == "inductor fp32")
    assert inductor.reason.startswith("not tried: its build takes about ")


def test_aot_inductor_is_not_built_where_inductor_is_far_behind() -> None:
    clock = Clock()
    backends = [
        back_end("openvino", clock, 0.0003),
        back_end("inductor", clock, 0.0008),
        back_end("aot_inductor", clock, 0.0008),
    ]
    search = search_of(clock, *backends)
    assert "inductor 1x8" in clock.built
    assert not any(name.startswith("aot_inductor") for name in clock.built)
    (trial,) = (trial for trial in search.trials if trial.name == "aot_inductor fp32")
    assert "it shares inductor's kernels" in trial.reason


def test_a_back_end_that_cannot_be_built_is_listed_once_with_its_reason() -> None:
    clock = Clock()

    def refuse(program: Program, configuration: Configuration) -> Executor:
        raise RuntimeError("no such operator")

    broken = Backend(
        name="onnxruntime",
        missing=lambda: None,
        version=lambda: "1",
        precisions=lambda device: ("fp32",),
        build=refuse,
        needs_export=False,
    )
    search = search_of(clock, broken, back_end("openvino", clock, 0.0005))
    assert [(trial.outcome, trial.reason) for trial in search.trials if trial.candidate.backend is broken] == [
        (FAILED, "RuntimeError: no such operator")
    ]
    assert search.chosen is not None


@pytest.mark.skipif(peak_bytes_of(lambda: None) is None, reason="the kernel does not say how much memory is used")
@pytest.mark.parametrize("plain", [0.001, 0.1])
def test_what_is_too_heavy_is_out_and_smaller_executions_of_it_win(plain: float) -> None:
    clock = Clock()
    heavy = SLACK_BYTES // 8 + (1 << 19)  # eight samples are too many, four are not
    search = search_of(
        clock, back_end("openvino", clock, 0.5 * plain, needs=heavy), plain=plain, memory=1.0, budget=200.0
    )
    first = search.trials[0]
    assert (first.name, first.outcome, first.too_heavy) == ("openvino fp32", REJECTED, True)
    assert first.reason.startswith("rejected: needs ")
    assert search.chosen is not None
    assert search.chosen.candidate.configuration.batch < 8
    assert search.chosen.peak_bytes is not None
    assert search.chosen.peak_bytes < (first.peak_bytes or 0)
    without_limit = search_of(clock, back_end("openvino", clock, 0.5 * plain, needs=heavy), plain=plain, budget=200.0)
    assert without_limit.trials[0].outcome != REJECTED


def test_where_a_call_is_dear_eager_waits_for_the_others_to_fail() -> None:
    clock = Clock()
    search = search_of(clock, back_end("eager", clock, 0.09), back_end("onnxruntime", clock, 0.05), plain=0.1)
    assert not any(name.startswith("eager") for name in clock.built)
    assert outcomes(search)["eager fp32"] == UNTESTED  # and it is said

    def refuse(program: Program, configuration: Configuration) -> Executor:
        raise RuntimeError("no such operator")

    clock = Clock()
    broken = dataclasses.replace(back_end("onnxruntime", clock, 0.05), build=refuse)
    search_of(clock, back_end("eager", clock, 0.09), broken, plain=0.1)
    assert clock.built[0] == "eager 1x8"


@pytest.mark.parametrize("plain", [0.0001, 0.01, 0.1, 0.4])
@pytest.mark.parametrize("budget", [20.0, 60.0])
def test_the_budget_is_kept_whatever_a_sample_costs(plain: float, budget: float) -> None:
    clock = Clock()
    backends = [
        back_end("openvino", clock, 0.6 * plain, build=2.0),
        back_end("onnxruntime", clock, 0.7 * plain, build=3.0),
        back_end("inductor", clock, 0.9 * plain, build=6.0),
    ]
    search = search_of(clock, *backends, plain=plain, budget=budget, judging=0.1 * budget)
    # until the first is judged: a part is left for that, but for a last call of each of those in the race, and for
    # the runs that its memory is measured by
    assert clock.said["answers in fp64"] <= 0.8 * budget + 5 * 8 * plain
    assert clock.said["last race"] - clock.said["answers in fp64"] < 0.1 * budget + 64 * 40 * plain
    assert {trial.candidate.backend.name for trial in search.trials} == {"openvino", "onnxruntime", "inductor"}
    assert all(trial.outcome for trial in search.trials)


def test_judging_is_prepared_once_and_only_for_what_is_in_front() -> None:
    clock = Clock()
    search = search_of(clock, back_end("openvino", clock, 0.0005))
    assert search._judge is not None
    slower = search_of(clock, back_end("openvino", clock, 0.002))
    assert slower._judge is None
    assert outcomes(slower)["openvino fp32"] == UNJUDGED
    assert search_of(clock).trials == []


def test_a_batch_size_that_the_model_refuses_is_named() -> None:
    class UpToTwenty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 20:
                raise ValueError("too many")
            return self.layer(x)

    with pytest.raises(ModelRunError, match="a batch of 64: ValueError: too many"):
        evalmode.optimize(UpToTwenty().eval(), torch.randn(8, 6), batch_sizes=[8, 64], backends=["eager"], budget_s=5)


class Holding(Timed):
    """Holds `held` bytes once it is loaded; its payload says how many."""

    def __init__(self, program: Program, configuration: Configuration, clock: Clock, needs: int, held: int) -> None:
        super().__init__(program, configuration, clock, 0.0, 0.0, needs)
        self.held = torch.ones(held, dtype=torch.uint8)
        self.ran: list[int] = []
        self.closed = False

    def run(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        self.ran.append(len(chunks) * self.configuration.batch)
        return super().run(chunks)

    def payload(self) -> bytes:
        return str(len(self.held)).encode() + bytes(len(self.held))  # as large as what is made of it

    def close(self) -> None:
        self.closed = True


def heavy_trial(loaded: list[Holding], fails: str = "") -> tuple[Trial, Subject]:
    """A plan of executions of 4 and 1 that hold 40 and 20 MB, and need 8 MB for a sample."""
    clock = Clock()
    exported = program_of(Costly().eval(), torch.randn(8, 6))

    def load(payload: bytes, configuration: Configuration, outputs: int) -> Executor:
        if fails:
            raise OSError(fails)
        loaded.append(Holding(exported.program, configuration, clock, 8 << 20, int(payload.rstrip(b"\0"))))
        return loaded[-1]

    backend = dataclasses.replace(back_end("openvino", clock, 0.0), load=load)
    trial = Trial(Candidate(backend, Configuration(backend="openvino", batch=4, streams=2)))
    for batch, held in ((4, 40 << 20), (1, 20 << 20)):
        shape = Configuration(backend="openvino", batch=batch, streams=2 if batch == 4 else 1)
        trial.executors[batch] = Holding(exported.program, shape, clock, 8 << 20, held)
    trial.costs = {4: 4.0, 1: 2.0}
    return trial, Subject(exported, (8,), "weights")


@pytest.mark.skipif(peak_bytes_of(lambda: None) is None, reason="the kernel does not say how much memory is used")
def test_memory_is_that_of_a_callers_whole_batch_and_of_all_executors() -> None:
    loaded: list[Holding] = []
    trial, subject = heavy_trial(loaded)
    peak = peak_of(trial, subject, 8)
    assert [each.ran for each in loaded] == [[8, 8], []]
    assert all(each.closed for each in loaded)
    assert peak is not None
    assert abs(peak - (60 + 32) * 2**20) < 8 << 20


def test_a_plan_that_cannot_be_loaded_is_out_and_the_search_goes_on() -> None:
    trial, subject = heavy_trial([], fails="no space left")
    Scales(subject).exclude_if_too_heavy(trial)
    if peak_bytes_of(lambda: None) is not None:
        assert (trial.outcome, trial.reason) == (FAILED, "fails when it is loaded: OSError: no space left")
        assert not trial.too_heavy


def test_a_long_call_is_begun_in_halves_and_the_whole_is_the_first_variation() -> None:
    assert [first_batch((8,), seconds) for seconds in (0.1, 0.126, 0.3, 2.0)] == [8, 4, 2, 1]
    assert first_batch((8,), 2.0, smallest=3) == 4  # two are answered by another graph
    begun = Candidate(back_end("openvino", Clock(), 0.0), Configuration(backend="openvino", batch=4, threads=2))
    assert variations(begun, (8,), 2)[0].configuration.batch == 8
    assert all(each.configuration.batch < 4 for each in variations(begun, (8,), 1, smaller=True))


def test_a_compiler_tries_the_lower_precision_first_where_it_is_admitted():
    both = [FakeBackend("inductor", ("fp32", "bf16")), FakeBackend("eager", ("fp32", "bf16"))]
    shape = Configuration(backend="", batch=8)
    for precisions, wanted in [
        (None, ["eager bf16", "eager fp32", "inductor bf16", "inductor fp32"]),
        (("fp32",), ["eager fp32", "inductor fp32"]),
    ]:
        assert [each.kind for each in first_round(both, precisions, shape, [])] == wanted


@dataclass(frozen=True)
class FakeBackend:
    """What the list of candidates reads of a back end."""

    name: str
    offered: tuple[str, ...]

    def missing(self) -> None:
        return None

    def precisions(self, device: str) -> tuple[str, ...]:
        return self.offered


def test_a_variation_is_expected_to_take_a_part_of_the_first_build() -> None:
    clock = Clock()
    first = Candidate(back_end("openvino", clock, 0.0), Configuration(backend="openvino", batch=8))
    varied = first.at(batch=4)
    built = [Trial(first, build_seconds=10.0)]
    assert likely_seconds(first, built, 10) == 10.0
    assert likely_seconds(varied, built, 10) == 5.0
    built.append(Trial(varied, build_seconds=4.0))
    assert likely_seconds(first.at(batch=2), built, 10) == 4.0
    assert likely_seconds(first, built, 10) == 10.0
    assert likely_seconds(first, [], 10) == build_estimate("openvino", 10)


def test_a_small_size_that_is_too_heavy_is_left_out_and_the_plan_stays() -> None:
    trial, subject = heavy_trial([])
    scales = Scales(subject, 1.0, plain_peak=70 << 20)
    if peak_bytes_of(lambda: None) is None:
        pytest.skip("the kernel does not say how much memory is used")
    scales.measure(trial)
    assert scales.excess(trial).startswith("needs ")
    trial.remove_size(1)
    scales.measure(trial)
    assert scales.excess(trial) == ""


def test_smaller_variations_hold_fewer_samples_at_a_time() -> None:
    clock = Clock()
    whole = Candidate(back_end("openvino", clock, 0.0), Configuration(backend="openvino", batch=8, threads=2))
    held = [each.configuration.batch * each.configuration.streams for each in variations(whole, (8,), 2, smaller=True)]
    assert held
    assert max(held) < 8
    assert any(each.configuration.batch * each.configuration.streams == 8 for each in variations(whole, (8,), 2))
