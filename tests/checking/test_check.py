from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import evalmode
from evalmode.checking.runner import check
from evalmode.clause import Verdict
from evalmode.errors import BatchError, ContractBrokenError, ModelRunError, NotAModuleError, PatternError, UsageError
from evalmode.finding import Severity

BATCH = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def verdicts(report: evalmode.CheckReport) -> dict[str, Verdict]:
    return {result.clause: result.verdict for result in report.certificate.clauses}


class Restless(nn.Module):
    """Moves everything that a model can move."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("count", torch.zeros(()))
        self.history: list[torch.Tensor] = []
        self.nested = {"deep": [1, 2]}
        self.calls = 0
        self.fails = fails

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.count += 1
        self.history.append(x)
        self.nested["deep"].append(self.calls)
        self.last = x
        self.layer.weight.data.mul_(1.01)
        self.norm.running_mean.add_(1)
        self.norm.train()
        self.layer.bias.requires_grad_(False)
        self.layer.weight.grad = torch.ones_like(self.layer.weight)
        torch.rand(3), random.random(), np.random.rand()
        torch.set_grad_enabled(True)
        if self.fails and self.calls > 0:
            raise KeyError("on purpose")
        return self.norm(self.layer(x))


def snapshot(model: Restless) -> dict[str, Any]:
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "flags": {path: module.training for path, module in model.named_modules()},
        "grad": None if model.layer.weight.grad is None else model.layer.weight.grad.clone(),
        "requires": model.layer.bias.requires_grad,
        "lists": (len(model.history), model.nested["deep"][:], model.calls, hasattr(model, "last")),
        "streams": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()),
        "grad mode": torch.is_grad_enabled(),
        "pointers": [parameter.data_ptr() for parameter in model.parameters()],
    }


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, tuple):
        return all(same(one, other) for one, other in zip(first, second, strict=True))
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return bool(first == second)


@settings(max_examples=12)
@given(
    fails=st.booleans(),
    training=st.lists(st.booleans(), min_size=3, max_size=3),
    with_grad=st.booleans(),
    grad_mode=st.booleans(),
)
def test_the_model_and_the_process_are_left_as_they_were(
    fails: bool, training: list[bool], with_grad: bool, grad_mode: bool
) -> None:
    model = Restless(fails)
    for module, flag in zip((model, model.layer, model.norm), training, strict=True):
        module.training = flag
    if with_grad:
        model.layer.weight.grad = torch.randn(2, 4)
    torch.set_grad_enabled(grad_mode)
    try:
        before = snapshot(model)
        if fails:
            with pytest.raises(ModelRunError):
                check(model, BATCH, probes="fast")
        else:
            assert not check(model, BATCH, probes="fast").ok
        after = snapshot(model)
    finally:
        torch.set_grad_enabled(True)
    assert {key for key in before if not same(before[key], after[key])} == set()


def test_a_root_in_training_is_one_finding_and_the_others_are_tested_after_eval() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    report = check(model, BATCH)
    assert [finding.code for finding in report.findings] == ["EM101"]
    assert verdicts(report)["no-randomness"] is Verdict.KEPT
    assert model.training
    assert model[2].training


def test_a_child_left_in_training_is_told_once_and_named_by_the_other_clauses() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
    model[1].train()
    model[2].train()
    report = check(model, BATCH)
    assert [(finding.code, finding.place.module) for finding in report.findings] == [("EM102", "1"), ("EM102", "2")]
    assert verdicts(report)["no-randomness"] is Verdict.BROKEN
    assert verdicts(report)["batch-independent"] is Verdict.BROKEN


def test_intended_randomness_is_allowed_by_module_path() -> None:
    class MonteCarlo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mc_dropout = nn.Dropout(0.5)
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(F.dropout(self.mc_dropout(x), 0.1))

    model = nn.Sequential(MonteCarlo()).eval()
    model[0].mc_dropout.train()
    report = check(model, BATCH, allow=["*.mc_dropout"])
    assert {finding.code: finding.severity for finding in report.findings} == {
        "EM102": Severity.ALLOWED,
        "EM122": Severity.ERROR,
    }
    assert check(model, BATCH, allow=["*.mc_dropout", "0"]).ok
    with pytest.raises(PatternError, match="did you mean"):
        check(model, BATCH, allow=["*.mc_dropuot"])


def test_draws_do_not_look_like_dependence_but_dependence_shows_beside_draws() -> None:
    class Both(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.rrelu(x, training=True)
            return x - x.mean(0)

    class Draws(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.rrelu(x, training=True) + torch.randn_like(x)

    assert verdicts(check(Draws().eval(), BATCH))["batch-independent"] is Verdict.KEPT
    assert [finding.code for finding in check(Both().eval(), BATCH).findings] == ["EM125", "EM171"]


def test_what_is_not_tested_is_said() -> None:
    class Loss(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.mse_loss(x, y)

    report = check(Loss().eval(), (BATCH, BATCH + 1))
    result = next(result for result in report.certificate.clauses if result.clause == "batch-independent")
    assert result.verdict is Verdict.NOT_TESTED
    assert "batch axis" in result.evidence
    report = check(nn.Identity().eval(), {"input": torch.zeros(3)}, batch_axis=0)
    assert report.ok


def test_a_graph_baked_in_training_is_one_cause() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    traced = torch.jit.trace(model, BATCH, check_trace=False).eval()
    report = check(traced, BATCH)
    assert [finding.code for finding in report.findings] == ["EM105"]
    assert verdicts(report)["no-randomness"] is Verdict.BROKEN


def test_an_exported_program_is_judged_by_its_operators_not_by_its_flag() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    assert check(torch.export.export(model.eval(), (BATCH,)).module(), BATCH).ok
    report = check(torch.export.export(model.train(), (BATCH,)).module(), BATCH)
    assert "EM105" in [finding.code for finding in report.findings]


def test_a_sequence_first_model_is_told_apart_by_declaring_the_axis() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0]

    model, batch = Net().eval(), torch.randn(6, 8, 4)
    found = check(model, batch, clauses=["batch-independent"]).findings
    assert [(finding.code, finding.place.module) for finding in found] == [("EM171", "lstm")]
    assert "batch_axis=" in found[0].fix
    assert check(model, batch, batch_axis=1).ok


def test_pairwise_outputs_are_compared_pair_by_pair() -> None:
    class Similarity(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.normalize(x, dim=1) @ F.normalize(y, dim=1).T

    class Contrast(Similarity):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x, y).softmax(1)

    batch = (BATCH, BATCH.flip(0))
    assert verdicts(check(Similarity().eval(), batch))["batch-independent"] is Verdict.KEPT
    assert [finding.code for finding in check(Contrast().eval(), batch).findings] == ["EM171"]


def test_a_compiled_model_is_found_out_at_its_own_line() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / (x.abs().amax() + 1)

    report = check(torch.compile(Net().eval(), backend="eager"), BATCH, clauses=["batch-independent"])
    assert [finding.code for finding in report.findings] == ["EM171"]
    assert "amax" in report.findings[0].place.source


def test_outputs_picks_what_counts() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": x * 2, "centred": x - x.mean(0)}

    model = Net().eval()
    assert not check(model, BATCH).ok
    assert check(model, BATCH, outputs="logits").ok
    assert check(model, BATCH, outputs=lambda outputs: outputs["logits"]).ok
    with pytest.raises(UsageError, match="'logit'"):
        check(model, BATCH, outputs="logit")


def test_a_forward_function_overrides_the_calling_rule() -> None:
    batch = {"x": BATCH, "label": torch.zeros(8)}
    assert check(nn.Linear(4, 2).eval(), batch, forward=lambda model, given: model(given["x"])).ok


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"clauses": ["no-random"]}, UsageError, "no-randomness"),
        ({"clauses": ["faithful"]}, UsageError, "does not test it yet"),
        ({"probes": "many"}, UsageError, "'thorough'"),
        ({"device": "meta"}, UsageError, "the model is on cpu"),
    ],
)
def test_wrong_use_is_explained(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check(nn.Linear(4, 2).eval(), BATCH, **arguments)


def test_a_model_or_batch_of_the_wrong_kind_is_explained() -> None:
    with pytest.raises(NotAModuleError):
        check(nn.Linear, BATCH)  # type: ignore[arg-type]
    with pytest.raises(BatchError, match=r"next\(iter\(loader\)\)"):
        check(nn.Linear(4, 2), torch.utils.data.DataLoader([1]))
    with pytest.raises(ModelRunError, match="shapes cannot be multiplied") as caught:
        check(nn.Linear(4, 2).eval(), torch.randn(8, 5))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "no-randomness" in caught.value.__notes__[0]


def test_a_report_raises_and_prints() -> None:
    report = check(nn.Sequential(nn.Dropout(0.5)), BATCH, clauses=["mode-complete"])
    with pytest.raises(ContractBrokenError, match="EM101"):
        report.raise_if_broken()
    assert "model is in training mode" in str(report)
    good = check(nn.Linear(4, 2).eval(), BATCH)
    good.raise_if_broken()
    assert good.certificate.forward_passes > 10


def test_the_same_seed_gives_the_same_report() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    first, second = (check(Net().eval(), BATCH, seed=3).certificate for _ in range(2))
    assert first.clauses == second.clauses
    assert first.findings == second.findings
