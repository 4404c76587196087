from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import evalmode
from evalmode.errors import BatchError
from evalmode.optimization.exporting import program_of
from evalmode.optimization.integer_ranges import _end, accepted_ranges
from evalmode.optimization.probes import probe_samples
from evalmode.predictor.canonical import InputCheck
from evalmode.predictor.plan import IntegerRange, TensorPlan


class Module(nn.Module):
    def __init__(self, function: Callable[..., Tensor], **tables: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, table in tables.items():
            self.add_module(name, table)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Tokens(nn.Module):
    """Wide enough for a back end to gain by it; its vocabulary is far larger than what a batch shows."""

    def __init__(self, vocabulary: int = 3001) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, 192)
        self.body = nn.Sequential(*(nn.Sequential(nn.Linear(192, 192), nn.Tanh()) for _ in range(6)))
        self.head = nn.Linear(192, 5)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        weights = attention_mask[..., None].to(torch.float32)
        return self.head((self.body(self.table(tokens)) * weights).sum(1))


def ranges(model: nn.Module, batch: object, **known: object) -> tuple[IntegerRange | None, ...]:
    exported = program_of(model.eval(), batch)
    assert exported.flat is not None
    return accepted_ranges(exported.flat, exported.program, 2, **known)  # type: ignore[arg-type]


@given(
    end=st.integers(0, 2**30),
    known=st.integers(0, 2**30),
    farthest=st.integers(0, 2**30),
    likely=st.lists(st.integers(0, 2**30), max_size=6),
)
def test_the_end_is_found_with_any_hints_and_few_questions(
    end: int, known: int, farthest: int, likely: list[int]
) -> None:
    known = min(known, end)
    asked: list[int] = []

    def takes(value: int) -> bool:
        asked.append(value)
        return value <= end

    assert _end(takes, known, farthest, likely) == max(known, min(end, farthest))
    assert len(asked) <= 40
    asked.clear()
    assert _end(takes, known, farthest, [*likely, end]) == max(known, min(end, farthest))
    assert len(asked) <= 6


@pytest.mark.parametrize("rows", [1, 2, 3001])
def test_the_end_of_a_table_is_found(rows: int) -> None:
    model = Module(lambda module, x: module.table(x), table=nn.Embedding(rows, 2))
    assert ranges(model, torch.tensor([[rows // 2], [0]])) == (IntegerRange(0, rows - 1),)


def test_values_that_are_counted_with_reach_as_far_as_fp32_holds_them() -> None:
    assert ranges(Module(lambda _, x: x.float() * 2), torch.tensor([[3], [7]])) == (IntegerRange(-(2**24), 2**24),)
    far = torch.tensor([[-5], [10**12]])
    assert ranges(Module(lambda _, x: x.double() * 2), far) == (IntegerRange(-4 * 10**12, 4 * 10**12),)
    small = torch.tensor([[3], [7]], dtype=torch.uint8)
    assert ranges(Module(lambda _, x: x.float() * 2), small) == (IntegerRange(0, 255),)


def test_an_index_that_wraps_round_may_be_negative() -> None:
    model = Module(lambda module, x: module.table.weight[x], table=nn.Embedding(30, 2))
    assert ranges(model, torch.tensor([[3], [7]])) == (IntegerRange(-30, 29),)


def test_what_tells_nothing_is_not_asked() -> None:
    assert ranges(nn.Linear(3, 2), torch.randn(2, 3)) == (None,)
    assert ranges(Module(lambda _, x: x.float()), torch.tensor([[True], [False]])) == (None,)

    def never(*inputs: Tensor) -> Tensor:
        raise AssertionError("a model that does not export may take memory by its values")

    exported = program_of(Module(lambda _, x: x.float() * int(x.max())), torch.tensor([[3], [7]]))
    assert accepted_ranges(never, exported.program, 2) == (None,)


def test_a_mask_stays_one() -> None:
    batch = {"tokens": torch.randint(5, 9, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.long)}
    assert ranges(Tokens(), batch) == (IntegerRange(0, 3000), IntegerRange(0, 1))


def test_probes_reach_to_both_ends() -> None:
    (samples,) = probe_samples((torch.tensor([[3, 4]]),), (0,), ("x",), taken=[IntegerRange(-9, 800)])
    found = samples.inputs[0]
    assert (int(found.min()), int(found.max())) == (-9, 800)
    given_alone, *_ = probe_samples((torch.tensor([[3, 4]]),), (0,), ("x",))
    assert (int(given_alone.inputs[0].min()), int(given_alone.inputs[0].max())) == (3, 4)
    whole = probe_samples((torch.tensor([3, 4]),), (None,), ("x",), taken=[IntegerRange(-9, 800)])
    assert {int(part.inputs[0].max()) for part in whole} >= {800, 4, -9}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_plan_refuses_a_token_beyond_the_vocabulary_and_takes_all_within(backend: str, tmp_path) -> None:
    """Seen: OpenVINO answers it as if the embedding were zero, ONNX Runtime counts -1 from the end."""
    pytest.importorskip(backend)
    torch.manual_seed(0)
    model = Tokens().eval()
    mask = torch.ones(8, 32, dtype=torch.long)
    fast = evalmode.optimize(
        model, {"tokens": torch.randint(5, 20, (8, 32)), "attention_mask": mask}, backends=[backend], budget_s=20
    )
    predictors = [fast]
    if fast.plan.configurations[0].backend == backend:
        fast.save(tmp_path / "model.evalmode")
        predictors.append(evalmode.load(tmp_path / "model.evalmode"))
    tokens = torch.randint(0, 3001, (8, 32))
    tokens[2, 7] = 3000
    for predictor in predictors:
        with torch.no_grad():
            torch.testing.assert_close(predictor(tokens=tokens, attention_mask=mask), model(tokens, mask))
        for wrong in (-1, 3001, 10**12):
            spoiled = tokens.clone()
            spoiled[5, 3] = wrong
            if predictor.plan.configurations[0].backend == "eager":
                with pytest.raises(IndexError):
                    predictor(tokens=spoiled, attention_mask=mask)
                continue
            with pytest.raises(BatchError, match=rf"sample 5 of tokens holds {wrong:,}\n.*0 to 3,000"):
                predictor(tokens=spoiled, attention_mask=mask)
        predictor.close()


def test_a_wrong_shape_is_told_before_wrong_values() -> None:
    check = InputCheck(TensorPlan("tokens", "int64", (None, 4), 0, IntegerRange(0, 9)), torch.device("cpu"))
    assert check(torch.full((2, 4), 9)) == 2
    assert check(torch.zeros(0, 4, dtype=torch.int64)) == 0
    with pytest.raises(BatchError, match=r"tokens is int64\[2, 5\]"):
        check(torch.full((2, 5), 10))
    with pytest.raises(BatchError, match="sample 1 of tokens holds -1"):
        check(torch.tensor([[9, 9, 9, 9], [0, -1, 0, 0]]))


@pytest.mark.parametrize(
    ("dtype", "values"),
    [("uint8", IntegerRange(0, 256)), ("float32", IntegerRange(0, 1)), ("bool", IntegerRange(0, 1))],
)
def test_a_file_cannot_claim_values_that_its_type_does_not_hold(dtype: str, values: IntegerRange) -> None:
    with pytest.raises(ValueError, match="holds no whole numbers"):
        TensorPlan("x", dtype, (None, 3), 0, values)
    with pytest.raises(ValueError, match="no whole number lies between"):
        IntegerRange(3, 2)
