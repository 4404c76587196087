"""What `check` takes besides modules: exported programs, predictors, functions, numpy code, compiled models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evalmode.checking.catalog import CLAUSE_FILES, WHITE_BOX
from evalmode.checking.checkable import checkable
from evalmode.checking.runner import CheckReport, check
from evalmode.clause import Verdict
from evalmode.errors import BatchError, ModelRunError, NotAModuleError, UsageError
from evalmode.predictor.module_backed import ModulePredictor
from evalmode.predictor.protocol import Predictor

BATCH = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
OUT_OF_SIGHT = {clause for clause in CLAUSE_FILES if clause in WHITE_BOX}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def with_statistics(model: nn.Module) -> nn.Module:
    for _ in range(20):
        model(torch.randn(16, 4))
    return model.eval()


GLOBAL = with_statistics(net())


def of_global(inputs: torch.Tensor) -> torch.Tensor:
    return GLOBAL(inputs)


def not_tested(report: CheckReport) -> set[str]:
    return {result.clause for result in report.certificate.clauses if result.verdict is Verdict.NOT_TESTED}


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (ModulePredictor(net()), BATCH),
        (of_global, BATCH),
        (lambda batch: GLOBAL(batch["x"]), {"x": BATCH, "name": "a"}),
        (lambda x: GLOBAL(x) * 2, {"x": BATCH}),
        (lambda pair: GLOBAL(pair[0]) + pair[1], (BATCH, BATCH)),
        (lambda first, second: first + second, (BATCH, BATCH)),
        (GLOBAL.forward, BATCH),
        (functools.partial(torch.clamp, min=0), BATCH),
        (torch.jit.script(torch.nn.functional.relu), BATCH),
        (lambda array: {"scaled": np.tanh(array) * 2}, BATCH.numpy()),
    ],
    ids=["predictor", "global", "whole", "named", "pair", "two", "method", "partial", "scripted", "numpy"],
)
def test_a_callable_keeps_what_needs_no_look_inside(model: Callable[..., Any], batch: Any) -> None:
    report = check(model, batch)
    assert report.findings == ()
    assert {clause for clause in not_tested(report) if clause not in {"no-randomness", "no-gradients"}} == OUT_OF_SIGHT
    assert {result.verdict for result in report.certificate.clauses} <= {Verdict.KEPT, Verdict.NOT_TESTED}
    reasons = {result.evidence for result in report.certificate.clauses if result.clause in OUT_OF_SIGHT}
    assert len(reasons) == 1
    assert "called, not looked into" in reasons.pop()


def test_defects_of_a_callable_are_found_and_what_it_runs_is_left_as_it_was() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = check(lambda batch: model(batch) * 2, BATCH)
    found = {finding.clause: finding.place.module for finding in report.findings}
    assert found == {"no-randomness": "model.2", "batch-independent": "model.1"}
    assert report.certificate.model.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_function_that_switches_its_model_for_the_call_gets_its_modes_back() -> None:
    models = {"only": net()}

    class Service:
        def __call__(self, batch: torch.Tensor) -> torch.Tensor:
            model = models["only"].eval()
            try:
                return model(batch)
            finally:
                model.train()

    report = check(Service(), BATCH)
    assert report.findings == ()
    assert all(module.training for module in models["only"].modules())


def test_numpy_code_is_probed_and_its_dependence_found() -> None:
    report = check(lambda array: array / (np.abs(array).max() + 1), BATCH.numpy(), clauses=["batch-independent"])
    assert [finding.code for finding in report.findings] == ["EM171"]


def test_what_runs_outside_torch_cannot_be_watched_and_that_is_said() -> None:
    report = check(lambda array: np.tanh(array) * 2, BATCH.numpy())
    assert not_tested(report) == OUT_OF_SIGHT | {"no-randomness", "no-gradients"}
    nothing = check(lambda batch: "text", BATCH)
    assert not_tested(nothing) == set(CLAUSE_FILES)


def test_an_exported_program_is_checked_through_its_module() -> None:
    report = check(torch.export.export(with_statistics(net()), (BATCH,)), BATCH)
    assert report.ok
    assert report.certificate.subject == "ExportedProgram"
    report = check(torch.export.export(net().train(), (BATCH,)), BATCH)
    assert "EM105" in [finding.code for finding in report.findings]


def test_a_compiled_model_is_checked_as_it_was_written_and_compiles_nothing() -> None:
    compiled: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    model = with_statistics(net())
    report = check(torch.compile(model, backend=backend), BATCH)
    assert report.ok
    assert compiled == []
    assert any("compiled" in note for note in report.certificate.inferred)
    assert report.certificate.model.fingerprint == check(model, BATCH, clauses=["finite"]).certificate.model.fingerprint


def test_a_scripted_module_in_training_is_one_finding() -> None:
    report = check(torch.jit.script(net()), BATCH)
    assert [finding.code for finding in report.findings] == ["EM101"]


def test_a_generating_model_is_checked_through_forward() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 8)
            self.head = nn.Linear(8, 11)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embedding(ids).cumsum(1))

    def generate(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            ids = torch.cat([ids, model(ids)[:, -1].argmax(-1, keepdim=True)], 1)
        return ids

    torch.manual_seed(0)
    model, ids = Decoder().eval(), torch.randint(0, 11, (6, 5))
    assert check(model, ids, forward=generate).findings == ()
    leaking = check(model, ids, forward=lambda model, ids: generate(model, ids) + ids.max())
    assert [finding.clause for finding in leaking.findings] == ["batch-independent"]


def test_the_batch_is_left_as_it_was_by_a_model_that_writes_into_it() -> None:
    class InPlace(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(2) + 1

    batch = BATCH.clone()
    assert check(InPlace().eval(), batch).ok
    assert torch.equal(batch, BATCH)


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        (nn.Linear, NotAModuleError, "the class Linear"),
        (None, NotAModuleError, "got None"),
        (3, NotAModuleError, "got a int"),
        (nn.LazyLinear(3), UsageError, "not initialised yet"),
        (nn.Linear(4, 3, device="meta"), UsageError, "meta device"),
        (lambda first, second: first, BatchError, "cannot be called"),
        (lambda batch: batch["missing"], ModelRunError, "failed on a batch"),
    ],
)
def test_what_cannot_be_checked_is_explained(model: Any, error: type[Exception], text: str) -> None:
    batch = {"x": BATCH} if error is BatchError else BATCH
    with pytest.raises(error, match=text):
        check(model, batch)


def test_a_failing_switch_and_a_failing_choice_are_explained() -> None:
    class Stuck(nn.Module):
        def train(self, mode: bool = True) -> Stuck:
            raise KeyError("no mode")

    with pytest.raises(ModelRunError, match=r"eval\(\) failed: KeyError"):
        check(Stuck(), BATCH)
    with pytest.raises(UsageError, match="outputs= failed on"):
        check(nn.Identity().eval(), BATCH, outputs=lambda outputs: outputs["logits"])


def test_a_certificate_names_its_inputs() -> None:
    certificate = check(nn.Identity().eval(), {"input": BATCH}, probes="fast").certificate
    assert (certificate.inputs, certificate.probes) == ("{'input': float32[8, 4]}", "fast")


def test_what_is_called_holds_the_modules_that_it_runs() -> None:
    given = checkable(of_global, BATCH)
    assert given.record().modules == 4


class Exacting(Predictor):
    """A predictor that takes one dtype alone, and whose answers move with the samples beside them."""

    signature = certificate = None

    def __init__(self, moves):
        self.moves = moves

    def __call__(self, batch):
        return self.predict(batch)

    def predict(self, batch):
        if batch.dtype != torch.float32:
            raise BatchError(f"input is {batch.dtype}", expected="float32", fix="convert it first")
        return batch.double().mean(1).float() * (1 + self.moves(batch))


@pytest.mark.parametrize(
    ("moves", "verdict"),
    [(lambda batch: 2e-7 * len(batch), Verdict.UNDECIDED), (lambda batch: 0.1 * batch.sum(), Verdict.BROKEN)],
)
def test_a_predictor_that_takes_no_fp64_gets_a_verdict(moves, verdict):
    batch = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) + 1
    report = check(Exacting(moves), batch)
    (clause,) = (clause for clause in report.certificate.clauses if clause.clause == "batch-independent")
    assert clause.verdict is verdict


def test_a_predictor_that_refuses_broken_companions_is_answered() -> None:
    """A loaded plan may refuse NaN; the probes of `batch-independent` hold some."""

    def refusing(x: torch.Tensor) -> torch.Tensor:
        if not bool(x.isfinite().all()):
            raise BatchError("sample 2 holds NaN or infinity")
        return torch.tanh(x)

    clauses = {result.clause: result for result in check(refusing, BATCH).certificate.clauses}
    assert clauses["batch-independent"].verdict is Verdict.KEPT
    assert clauses["finite"].verdict is Verdict.KEPT
