"""An optimised predictor gives a sample the same bits in any batch, and is called as its model is."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.predictor.fake_backend import FEATURES, FakeExecutor, Net, predictor
from torch import nn

from evalmode.backends.backend import Chunk, Executor
from evalmode.backends.configuration import Configuration
from evalmode.certificate import PlanRecord
from evalmode.errors import BatchError, OptimizationError, SwitchError, UsageError
from evalmode.observe.tree import same_bits
from evalmode.predictor.optimized import OptimizedPredictor
from evalmode.predictor.plan import AxisPadding, PaddedAxis, Plan, spec_of
from evalmode.predictor.structure import Structure, input_structure, output_structure

POOL = torch.randn(64, FEATURES, generator=torch.Generator().manual_seed(3)) * 3
CLASSES = st.sampled_from([(2, 8), (4,), (1, 3), (2, 4, 6), (1,), (7,)])


def logits(fast: OptimizedPredictor, x: torch.Tensor) -> torch.Tensor:
    return fast(x)["logits"]


@given(CLASSES, st.lists(st.lists(st.integers(0, 63), min_size=1, max_size=40), min_size=1, max_size=6))
def test_a_sample_has_the_same_bits_in_every_batch(sizes: tuple[int, ...], batches: list[list[int]]) -> None:
    fast = predictor(sizes)
    seen: dict[int, torch.Tensor] = {}
    for batch in batches:
        outputs = fast(POOL[batch])
        assert outputs["logits"].shape == (len(batch), 3) and outputs["labels"][0].shape == (len(batch),)
        for index, row in zip(batch, outputs["logits"], strict=True):
            assert same_bits(row, seen.setdefault(index, row)), (index, batch)


def test_the_rule_of_one_class_matters() -> None:
    """The fake back end rounds by size: mixed classes would show, which is what the property test can see."""
    mixed = predictor((1, 8), costs=(1.0, 2.0))
    assert not same_bits(logits(mixed, POOL[:1]), logits(mixed, POOL[:8])[:1])


def test_what_it_computes_is_what_the_model_computes() -> None:
    model = Net()
    fast = predictor((2, 8), model=model)
    for samples in (1, 2, 3, 8, 9, 30):
        with torch.no_grad():
            plain = model(POOL[:samples])
        found = fast(POOL[:samples])
        torch.testing.assert_close(found["logits"], plain["logits"])
        assert list(found) == list(plain) and found["labels"][1] == "greedy"
        assert torch.equal(found["table"], model.weight)


@pytest.mark.parametrize(("streams", "large_runs"), [(1, [1, 1, 1]), (2, [3])])
def test_only_streams_are_handed_executions_at_once(streams: int, large_runs: list[int]) -> None:
    """One execution after another: the outputs of one are let go of before the next needs memory."""
    fast = predictor((2, 8), costs=(1.0, 2.0), streams=streams)
    for executor in fast.executors:
        executor.runs.clear()
    found = fast(POOL[:26])
    small, large = fast.executors
    assert large.runs == large_runs and small.runs == [1]
    assert found["logits"].shape == (26, 3)


@pytest.mark.parametrize("when", [1, 2])
@pytest.mark.parametrize("samples", [3, 4, 8])
@pytest.mark.parametrize(
    "change",
    [lambda y: y[:, :1], lambda y: y.double(), lambda y: y[:-1], lambda y: torch.cat([y, y]), lambda y: y.sum()],
    ids=["shape", "dtype", "a row less", "more rows", "scalar"],
)
def test_an_output_that_is_other_in_one_execution_is_refused(
    change: Any, samples: int, when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be repeated, or cast, into the place of the others' values; or a row would stay what memory held."""
    if when > (samples + 3) // 4:
        pytest.skip("there is no such execution")
    fast = predictor((4,))
    own, calls = FakeExecutor.run, []

    def run(executor: FakeExecutor, chunks: Any) -> list[Chunk]:
        calls.append(chunks)
        return [(change(y) if len(calls) == when else y, *rest) for y, *rest in own(executor, chunks)]

    monkeypatch.setattr(FakeExecutor, "run", run)
    with pytest.raises(OptimizationError, match=r"logits.*in an execution of 4 samples"):
        fast(POOL[:samples])
    assert len(calls) == when


def test_no_samples_give_empty_outputs() -> None:
    found = predictor((2, 8))(torch.empty(0, FEATURES))
    assert found["logits"].shape == (0, 3) and found["logits"].dtype is torch.float32
    assert found["labels"][0].shape == (0,) and found["labels"][0].dtype is torch.int64
    assert found["table"].shape == (FEATURES, 3)


@pytest.mark.parametrize("ambience", ["plain", "no_grad", "inference_mode", "autocast", "all"])
def test_the_callers_modes_do_not_reach_the_executions(ambience: str) -> None:
    fast = predictor((2, 8))
    expected = fast(POOL[:5])
    for executor in fast.executors:
        executor.seen.clear()
    grads, inference, autocast = torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)
    chosen: dict[str, list[Any]] = {
        "plain": [],
        "no_grad": [grads],
        "inference_mode": [inference],
        "autocast": [autocast],
        "all": [grads, inference, autocast],
    }
    with ExitStack() as stack:
        for mode in chosen[ambience]:
            stack.enter_context(mode)
        before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
        x = POOL[:5] * 1.0  # made in the caller's mode
        found = fast(x)
        one = fast(x[:2].clone())
        after = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
    assert before == after
    for executor in fast.executors:
        assert executor.seen and not any(seen["inference"] or seen["autocast"] for seen in executor.seen)
    assert same_bits(found["logits"], expected["logits"]) and same_bits(one["logits"], expected["logits"][:2])
    for output in (found["logits"], found["labels"][0], found["table"], one["logits"]):
        assert not output.is_inference() and not output.requires_grad and output.grad_fn is None
    (found["logits"] * torch.ones(3, requires_grad=True)).sum().backward()  # they may take part in training


def test_an_input_that_wants_gradients_gets_none() -> None:
    x = POOL[:3].clone().requires_grad_()
    assert not logits(predictor(), x).requires_grad and x.grad is None


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: torch.cat([x[:1], x])[1:],
        lambda x: x.as_strided(x.shape, x.stride()),
    ],
)
def test_strides_and_alignment_of_the_caller_do_not_matter(change: Any) -> None:
    fast = predictor((2, 8))
    for samples in (1, 5, 8):
        x = POOL[:samples].clone()
        assert same_bits(logits(fast, change(x)), logits(fast, x))


def test_outputs_of_one_call_are_not_touched_by_the_next() -> None:
    fast = predictor((2, 8))
    for samples in (1, 2, 8, 13):
        first = fast(POOL[:samples])
        kept = first["logits"].clone()
        second = fast(POOL[-samples:])
        second["logits"].zero_()
        assert same_bits(first["logits"], kept)
        assert first["logits"].untyped_storage().nbytes() == kept.numel() * 4  # no padding is kept alive


def test_calls_from_several_threads_give_the_bits_of_one() -> None:
    fast = predictor((2, 8))
    batches = [POOL[start : start + samples] for start in range(0, 40, 7) for samples in (1, 2, 5, 8, 19)]
    expected = [logits(fast, batch) for batch in batches]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for number in torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed)).tolist():
            same = same_bits(logits(fast, batches[number]), expected[number])
            wrong.extend([] if same else [number])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_it_is_called_as_the_model_is() -> None:
    x = POOL[:3]
    for form in ("single", "tuple", "mapping"):
        fast = predictor(form=form)
        expected = logits(fast, x) if form != "mapping" else fast(x=x)["logits"]
        for found in (fast(x), fast(x=x), fast.predict({"x": x}), fast.predict((x,)), fast.predict(x)):
            assert same_bits(found["logits"], expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda fast, x: fast(x, x), "one argument, the batch"),
        (lambda fast, x: fast(), "one argument, the batch"),
        (lambda fast, x: fast(y=x), "y="),
        (lambda fast, x: fast.predict((x, torch.zeros(3))), r"\(inputs, target\)"),
        (lambda fast, x: fast.predict(None), "None"),
        (lambda fast, x: fast.predict(iter([x])), "next"),
        (lambda fast, x: fast.predict(torch.utils.data.DataLoader([x])), "DataLoader"),
        (lambda fast, x: fast([x]), "expected: a tensor"),
        (lambda fast, x: fast(x.double()), "float64"),
        (lambda fast, x: fast(x[:, :5]), "only the number of samples is free"),
        (lambda fast, x: fast(x.to_sparse()), r"x is .*sparse(.|\n)*x\.to_dense\(\)"),
        (lambda fast, x: fast(torch.nested.nested_tensor([x[0], x[1]])), r"x is nested(.|\n)*to_padded_tensor\(x, 0\)"),
        (lambda fast, x: fast(x.numpy()), r"got ndarray as the batch(.|\n)*torch\.from_numpy\(array\)"),
    ],
)
def test_a_wrong_call_says_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(BatchError, match=message):
        call(predictor(), POOL[:3])


@pytest.mark.parametrize(
    ("form", "wrap", "fix"),
    [("mapping", lambda x: {"x": x}, r"fast\(\*\*batch\)"), ("tuple", lambda x: (x,), r"fast\(\*batch\)")],
)
def test_a_batch_given_as_one_argument_is_told_how_to_be_given(form: str, wrap: Any, fix: str) -> None:
    fast, batch = predictor(form=form), wrap(POOL[:3])
    with pytest.raises(BatchError, match=rf"the batch as one argument(.|\n)*{fix}, or fast\.predict\(batch\)"):
        fast(batch)
    assert same_bits(fast.predict(batch)["logits"], fast(POOL[:3])["logits"])


def test_it_is_a_predictor_and_prints_short() -> None:
    fast = predictor((2, 8))
    assert fast.eval() is fast and fast.training is False and fast.train(False) is fast
    with pytest.raises(SwitchError, match="cannot train"):
        fast.train()
    assert repr(fast) == "<OptimizedPredictor fake fp32, executions of 2, 8 samples, 1 thread>"
    assert fast.execution_sizes == (2, 8) and str(fast.signature) == "single(x: float32[*, 6])"
    lines = str(fast).splitlines()
    assert lines[1:] == [
        "  takes   x: float32[*, 6]",
        "  gives   logits: float32[*, 3], labels: int64[*], table: float32[6, 3]",
        "  bits    the same for a sample in any batch",
    ]


def test_a_closed_one_says_so() -> None:
    fast = predictor()
    fast.close()
    fast.close()
    assert all(executor.closed for executor in fast.executors)
    with pytest.raises(OptimizationError, match="closed"):
        fast(POOL[:1])


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickle.dumps])
def test_it_is_not_copied_half_way(copied: Any) -> None:
    with pytest.raises(OptimizationError, match=r"evalmode\.load"):
        copied(predictor())


def test_weights_are_compared_by_content() -> None:
    model = Net()
    fast = predictor(model=model)
    other = Net()
    assert fast.matches(model) and not fast.matches(other)
    other.load_state_dict(model.state_dict())
    assert fast.matches(other)
    model.weight.data[0, 0] += 1
    assert not fast.matches(model)


def test_the_model_is_not_held() -> None:
    model = Net()
    fast = predictor(model=model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    fast.require_fresh()


def test_an_output_of_the_whole_batch_is_refused() -> None:
    with pytest.raises(OptimizationError, match="table has no batch axis"):
        predictor(fault="shared")


def test_executors_of_another_plan_are_refused() -> None:
    fast = predictor((2, 8))
    with pytest.raises(UsageError, match="the executors run"):
        OptimizedPredictor(fast.plan, fast.executors[:1])


class Affine(Executor):
    """Two inputs with samples on different axes, one without, and a model without samples."""

    def __init__(self, configuration: Configuration, function: Any) -> None:
        self.configuration = configuration
        self.function = function
        self.shapes: list[list[tuple[int, ...]]] = []

    def run(self, chunks: Any) -> list[Chunk]:
        self.shapes += [[tuple(tensor.shape) for tensor in chunk] for chunk in chunks]
        return [self.function(*chunk) for chunk in chunks]


def built(batch: Any, input_axes: Any, outputs: Any, output_axes: Any, function: Any, sizes: Any, **more: Any) -> Any:
    inputs, made = input_structure(batch), output_structure(outputs)
    pairs = zip(inputs.paths, inputs.flatten(batch), input_axes, strict=True)
    given = zip(made.paths, made.flatten(outputs), output_axes, strict=True)
    plan = Plan(
        configurations=tuple(Configuration(backend="fake", batch=size) for size in sizes),
        costs=(1.0,) * len(sizes),
        inputs=tuple(spec_of(*each) for each in pairs),
        outputs=tuple(spec_of(*each) for each in given),
        input_form=inputs.root,
        output_form=made.root,
        call="tuple",
        **more,
    )
    return OptimizedPredictor(plan, [Affine(each, function) for each in plan.configurations], outputs=made)


def test_samples_may_lie_on_any_axis_and_some_inputs_have_none() -> None:
    sequence, scale = torch.randn(5, 3, 2), torch.randn(2)  # (steps, samples, features)
    flags = torch.arange(3)

    def function(sequence: torch.Tensor, scale: torch.Tensor, flags: torch.Tensor) -> Chunk:
        return (sequence * scale + flags[:, None]).contiguous(), flags * 2

    fast = built((sequence, scale, flags), (1, None, 0), function(sequence, scale, flags), (1, 0), function, (2,))
    sequence, flags = torch.randn(5, 7, 2), torch.arange(7)
    found, doubled = fast(sequence, scale, flags)
    assert torch.equal(found, sequence * scale + flags[:, None]) and torch.equal(doubled, flags * 2)
    assert fast.executors[0].shapes == [[(5, 2, 2), (2,), (2,)]] * 4
    with pytest.raises(BatchError, match=r"differ in their number of samples: \[0\] 7, \[2\] 3"):
        fast(sequence, scale, flags[:3])


def test_a_model_without_samples_runs_as_it_is() -> None:
    fast = built((torch.ones(3),), (None,), (torch.ones(3),), (None,), lambda x: (x * 2,), (1,))
    assert fast(torch.arange(3.0))[0].tolist() == [0, 2, 4]


def test_a_masked_axis_is_padded_and_cut() -> None:
    ids, mask = torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.bool)

    def function(ids: torch.Tensor, mask: torch.Tensor) -> Chunk:
        assert ids.shape == (2, 8) and bool((ids[~mask] == 9).all())
        return ids * 2, (ids * mask).sum(1)

    padded = PaddedAxis(1, 8, (AxisPadding(0, 1, 9), AxisPadding(1, 1, False)), (AxisPadding(0, 1),))
    fast = built((ids, mask), (0, 0), function(ids, mask), (0, 0), function, (2,), padded=padded)
    for length in (1, 5, 8):
        ids = torch.randint(0, 8, (5, length))
        doubled, total = fast(ids, torch.ones(5, length, dtype=torch.bool))
        assert torch.equal(doubled, ids * 2) and torch.equal(total, ids.sum(1))
        assert doubled.untyped_storage().nbytes() == doubled.numel() * 8
    assert str(fast.signature) == "tuple([0]: int64[*, <=8], [1]: bool[*, <=8])"
    assert list(map(str, fast.plan.gives())) == ["[0]: int64[*, <=8]", "[1]: int64[*]"]
    assert not fast.signature.inputs[0].accepts(torch.ones(5, 9, dtype=torch.long))
    with pytest.raises(BatchError, match=r"length 9[\s\S]*at most 8"):
        fast(torch.ones(1, 9, dtype=torch.long), torch.ones(1, 9, dtype=torch.bool))
    with pytest.raises(BatchError, match=r"differ in their length: \[0\] 3, \[1\] 4"):
        fast(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool))


def test_padding_may_lie_before_what_is_real() -> None:
    ids, mask = torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8)

    def function(ids: torch.Tensor, mask: torch.Tensor) -> Chunk:
        assert bool((mask.diff(dim=1) >= 0).all()) and bool((ids[mask == 0] == 7).all())
        return (ids.cumsum(1) - 7 * (1 - mask.long()).cumsum(1),)

    padded = PaddedAxis(1, 8, (AxisPadding(0, 1, 7), AxisPadding(1, 1, 0.0)), (AxisPadding(0, 1),), before=True)
    fast = built((ids, mask), (0, 0), function(ids, mask), (0,), function, (2,), padded=padded)
    for length in (1, 5, 8):
        ids = torch.randint(0, 7, (3, length))
        assert torch.equal(fast(ids, torch.ones(3, length))[0], ids.cumsum(1))


@pytest.mark.parametrize(
    "change",
    [
        {"configurations": ()},
        {"configurations": (Configuration(backend="fake", batch=8), Configuration(backend="fake", batch=2))},
        {"configurations": (Configuration(backend="fake", batch=0), Configuration(backend="fake", batch=2))},
        {"costs": (1.0,)},
        {"costs": (1.0, float("nan"))},
        {"inputs": ()},
        {"call": "mapping"},
        {"padded": PaddedAxis(0, 6, (AxisPadding(0, 0, 0),))},
        {"padded": PaddedAxis(0, 6, (AxisPadding(0, 1, 0), AxisPadding(3, 1, 0)))},
    ],
)
def test_a_plan_whose_parts_do_not_fit_is_refused(change: dict[str, Any]) -> None:
    plan = predictor((2, 8)).plan
    values = {name: getattr(plan, name) for name in Plan.__struct_fields__}
    with pytest.raises(ValueError):
        Plan(**{**values, **change})
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


def test_the_speed_is_told_where_it_was_measured() -> None:
    fast = predictor((2,))
    plan = msgspec.structs.replace(fast.plan, record=PlanRecord(name="fake", outcome="chosen", speedup=2.96))
    shown = str(OptimizedPredictor(plan, fast.executors, outputs=Structure(plan.output_form)))
    assert shown.startswith("fake fp32, executions of 2 samples, 1 thread: 3.0x plain eval()")


def test_the_fake_is_what_the_tests_believe() -> None:
    weights = torch.randn(FEATURES, 3)
    even, odd = (FakeExecutor(Configuration(backend="fake", batch=size), weights) for size in (8, 7))
    (one,), (other,) = even.run([(POOL[:8].clone(),)]), odd.run([(POOL[:7].clone(),)])
    assert not same_bits(one[0][:7], other[0])
    torch.testing.assert_close(one[0][:7], other[0])
    assert isinstance(Net(), nn.Module)
