"""A certificate tested again: everything is the same where nothing changed, and each change is listed by its name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.predictor.fake_backend import Net, backend, predictor
from torch import nn

import evalmode
from evalmode.backends.backend import Backend
from evalmode.certificate import BadSampleRecord, Certificate, Environment, EvaluationRecord, MetricRecord, SliceRecord
from evalmode.certification.differences import differences
from evalmode.certification.retested import Outcome, Retested
from evalmode.clause import Verdict
from evalmode.errors import ArtifactError, CertificateError, NotAModuleError, UsageError
from evalmode.predictor import artifact, manifest
from evalmode.predictor.artifact_file import read_sections, write_sections
from evalmode.predictor.module_backed import ModulePredictor
from evalmode.task import Task


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def pairs(samples: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 6, generator=generator), torch.arange(samples) % 3


class Noise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


class Sampling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.mc_noise = Noise()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mc_noise(self.layer(x))


@pytest.fixture(scope="module")
def made() -> Certificate:
    return evalmode.certify(small(), pairs(), budget_s=0)


def outcome(verification: evalmode.Verification, name: str) -> Retested:
    (found,) = [result for result in verification.results if result.name == name]
    return found


def changed(certificate: Certificate, **values: Any) -> Certificate:
    return msgspec.structs.replace(certificate, **values)


def with_environment(certificate: Certificate, **values: Any) -> Certificate:
    return changed(certificate, environment=msgspec.structs.replace(certificate.environment, **values))


def with_metric(certificate: Certificate, name: str, **values: Any) -> Certificate:
    metrics = tuple(
        msgspec.structs.replace(metric, **values) if metric.name == name else metric
        for metric in certificate.evaluation.metrics
    )
    return changed(certificate, evaluation=msgspec.structs.replace(certificate.evaluation, metrics=metrics))


def test_the_same_model_on_the_same_machine_differs_in_nothing(made: Certificate, tmp_path: Path) -> None:
    path = made.save(tmp_path / "certificate.json")
    verification = evalmode.verify(path, small(), pairs())
    assert verification.ok
    assert verification.differing == () and verification.untested == ()
    assert {result.name for result in verification.same} >= {
        "weights", "torch", "threads", "inputs", "deterministic", "samples", "accuracy", "log loss"
    }  # fmt: skip
    assert outcome(verification, "log loss").detail.endswith("the same bits")
    assert outcome(verification, "deterministic").detail.startswith("kept on ")
    assert "SAME  " in str(verification)


def test_the_model_is_left_as_it_was_found(made: Certificate) -> None:
    from evalmode.observe.state import read_state

    model = small().train()
    state = read_state(model)
    evalmode.verify(made, model, pairs())
    assert state.changes() == []


def test_other_weights_are_said_and_so_are_the_figures_they_give(made: Certificate) -> None:
    model = small()
    with torch.no_grad():
        model[-1].weight.neg_()
    verification = evalmode.verify(made, model, pairs())
    assert not verification.ok
    assert {result.name for result in verification.differing} >= {"weights", "accuracy", "log loss"}
    assert {result.part for result in verification.differing} == {"model", "test set"}
    assert "by the same plan on the same machine" in outcome(verification, "log loss").detail


def test_a_smaller_model_is_said_by_its_size(made: Certificate) -> None:
    verification = evalmode.verify(made, nn.Linear(6, 3), pairs())
    assert outcome(verification, "weights").detail.endswith("parameters, here 21")
    assert outcome(verification, "class").detail == "Sequential, here Linear"


def test_a_clause_that_breaks_is_listed_with_its_evidence(made: Certificate) -> None:
    verification = evalmode.verify(made, Sampling(), pairs())
    assert not verification.ok
    found = outcome(verification, "no-randomness")
    assert found.outcome is Outcome.DIFFERS
    assert found.detail.startswith("kept, here broken: EM")


def test_a_broken_clause_is_the_same_if_it_is_broken_in_the_same_place() -> None:
    torch.manual_seed(3)
    model = Sampling()
    made = evalmode.certify(model, batch=pairs()[0][:8], budget_s=0)
    assert not made.ok
    again = evalmode.verify(made, model, batch=pairs()[0][:8])
    assert again.ok
    assert outcome(again, "no-randomness").detail.startswith("broken on ")
    moved = nn.Sequential(nn.Linear(6, 3), Noise())
    elsewhere = outcome(evalmode.verify(made, moved, batch=pairs()[0][:8]), "no-randomness")
    assert elsewhere.outcome is Outcome.DIFFERS
    assert "at mc_noise, here" in elsewhere.detail and elsewhere.detail.endswith("at 1")


def test_what_was_allowed_then_is_allowed_again() -> None:
    torch.manual_seed(3)
    model = Sampling()
    made = evalmode.certify(model, batch=pairs()[0][:8], allow=["mc_*"], budget_s=0)
    assert made.ok
    again = evalmode.verify(made, model, batch=pairs()[0][:8])
    assert again.ok
    assert outcome(again, "no-randomness").detail.startswith("allowed on ")


def test_what_was_ignored_then_is_ignored_again() -> None:
    from evalmode.settings.selection import Wanted, select_clauses

    model = nn.Sequential(nn.Linear(6, 3), Noise())
    found = evalmode.certify(model, batch=pairs()[0][:8], budget_s=0)
    codes = {finding.code for finding in found.findings if finding.clause == "no-randomness"}
    made = select_clauses((), [Wanted(code, "--ignore") for code in codes]).applied(found)
    verdicts = {result.clause: result.verdict for result in made.clauses}
    assert verdicts["no-randomness"] is Verdict.ALLOWED
    again = evalmode.verify(made, model, batch=pairs()[0][:8])
    assert outcome(again, "no-randomness").outcome is Outcome.SAME


@pytest.mark.parametrize("name", Environment.__struct_fields__)
def test_every_part_of_the_environment_is_compared_and_can_be_ignored(made: Certificate, name: str) -> None:
    value = 77 if name in {"cores", "threads"} else "another"
    then = with_environment(made, **{name: value})
    results = differences(then, made)
    verification = evalmode.Verification(then, made, results)
    assert {result.name for result in verification.differing} == {name}
    assert outcome(verification, name).detail.startswith(f"{value}, here ")
    assert not verification.ok
    for ignored in ("environment", name):
        left_out = evalmode.Verification(then, made, results, (ignored,))
        assert left_out.ok and left_out.differing == verification.differing
        assert "(ignored)" in str(left_out)


def test_figures_of_another_machine_are_held_against_the_interval_here_and_that_is_said(made: Certificate) -> None:
    figure = made.evaluation.metrics[1]
    width = figure.high - figure.low
    for shift, expected in ((0.1 * width, Outcome.SAME), (2 * width, Outcome.DIFFERS)):
        moved = {"value": figure.value + shift, "low": figure.low + shift, "high": figure.high + shift}
        edited = with_metric(made, "log loss", **moved)
        elsewhere = with_environment(edited, processor="another")
        here = evalmode.Verification(elsewhere, made, differences(elsewhere, made))
        found = outcome(here, "log loss")
        assert found.outcome is expected, found
        assert "with other processor" in found.detail and "interval" in found.detail
        same = evalmode.Verification(edited, made, differences(edited, made))
        assert outcome(same, "log loss").outcome is Outcome.DIFFERS


@pytest.mark.parametrize("values", [{"value": 0.9, "low": 0.0, "high": 2.0}, {"low": 0.0, "high": 1.0}, {"count": 40}])
def test_no_interval_or_count_of_the_certificate_alone_lets_it_pass_elsewhere(
    made: Certificate, values: dict[str, Any]
) -> None:
    edited = with_environment(with_metric(made, "accuracy", **values), processor="another")
    told = evalmode.Verification(edited, made, differences(edited, made))
    assert outcome(told, "accuracy").outcome is Outcome.DIFFERS


def test_without_an_interval_here_another_machines_figure_cannot_be_tested(made: Certificate) -> None:
    edited = with_environment(with_metric(made, "log loss", value=0.5), cores=99)
    here = with_metric(made, "log loss", low=None, high=None)
    found = outcome(evalmode.Verification(edited, here, differences(edited, here)), "log loss")
    assert found.outcome is Outcome.UNTESTED and "no interval" in found.detail


def test_everything_that_the_same_evaluation_gives_is_compared_on_the_same_machine(made: Certificate) -> None:
    first, second = made.evaluation.metrics
    confusion = made.evaluation.confusion
    edits: dict[str, dict[str, Any]] = {
        "accuracy": {"metrics": (msgspec.structs.replace(first, low=0.0, high=1.0), second)},
        "log loss": {"metrics": (first,)},
        "another": {"metrics": (first, second, msgspec.structs.replace(second, name="another"))},
        "confusion": {"confusion": msgspec.structs.replace(confusion, counts=((40, 0, 0), (0, 0, 0), (0, 0, 0)))},
        "calibration": {"calibration": ()},
        "slices": {"slices": (SliceRecord(by="class", name="0", samples=14),)},
        "skipped": {"skipped": 3},
        "worst": {"worst": ()},
        "notes": {"notes": (*made.evaluation.notes, "3 samples were read twice")},
        "bad": {"bad": (BadSampleRecord(id="7", reason="cannot be decoded"),)},
    }
    for name, values in edits.items():
        edited = changed(made, evaluation=msgspec.structs.replace(made.evaluation, **values))
        told = evalmode.Verification(edited, made, differences(edited, made))
        assert {result.name for result in told.differing} == {name}
    counted = with_metric(made, "accuracy", count=40)
    told = evalmode.Verification(counted, made, differences(counted, made))
    assert outcome(told, "accuracy").outcome is Outcome.DIFFERS and "count 40, here " in str(told)


def test_metrics_of_ones_own_are_not_recomputed_from_bare_data_and_that_is_said() -> None:
    def close(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (outputs.argmax(1) - target).abs() <= 1

    model = small()
    task = Task(model=model, test_data=pairs(), metrics=["accuracy", close])
    certificate = evalmode.certify(task, budget_s=0)
    bare = evalmode.verify(certificate, model, pairs())
    found = outcome(bare, "close")
    assert found.outcome is Outcome.UNTESTED and "not recomputed: the data came without metrics" in found.detail
    assert outcome(bare, "accuracy").outcome is Outcome.SAME
    assert bare.ok and "log loss" not in {result.name for result in bare.results}
    assert outcome(evalmode.verify(certificate, task), "close").outcome is Outcome.SAME
    forged = with_metric(certificate, "close", value=0.0)
    assert not evalmode.verify(forged, task).ok


def test_a_figure_that_is_no_number_is_the_same_again(made: Certificate) -> None:
    nothing = with_metric(made, "log loss", value=float("nan"), low=None, high=None)
    assert all(result.outcome is Outcome.SAME for result in differences(nothing, nothing))


def test_more_data_is_cut_to_what_was_evaluated_and_less_is_said(made: Certificate) -> None:
    inputs, targets = pairs()
    more = torch.cat([inputs, torch.randn(9, 6)]), torch.cat([targets, torch.zeros(9, dtype=torch.long)])
    assert evalmode.verify(made, small(), more).ok
    less = evalmode.verify(made, small(), (inputs[:30], targets[:30]))
    assert outcome(less, "samples").detail == "40, here 30"


def test_a_limited_evaluation_is_repeated_with_its_limit_and_its_batches() -> None:
    made = evalmode.certify(small(), pairs(), limit=10, budget_s=0)
    assert evalmode.verify(made, small(), pairs()).ok
    in_eights = evalmode.certify(small(), pairs(), batch_size=8, budget_s=0)
    again = evalmode.verify(in_eights, small(), pairs())
    assert again.ok and again.here.inputs == in_eights.inputs == "float32[8, 6]"


def test_without_data_the_model_and_the_machine_are_tested_and_the_rest_says_why(made: Certificate) -> None:
    verification = evalmode.verify(made, small())
    assert verification.ok
    assert {result.part for result in verification.untested} == {"contract", "test set"}
    assert all("no data was given" in result.detail for result in verification.untested)
    assert "SAME AS FAR AS TESTED  " in str(verification) and verification.ok
    assert outcome(verification, "weights").outcome is Outcome.SAME


def test_a_task_and_a_module_predictor_are_taken(made: Certificate) -> None:
    assert evalmode.verify(made, Task(model=small, test_data=pairs)).ok
    assert evalmode.verify(made, ModulePredictor(small()), pairs()).ok


def test_a_clause_that_was_not_tested_is_no_difference_unless_it_is_broken_here(made: Certificate) -> None:
    clauses = tuple(
        msgspec.structs.replace(result, verdict=Verdict.NOT_TESTED, evidence="left out")
        if result.clause == "finite"
        else result
        for result in made.clauses
    )
    then = changed(made, clauses=clauses)
    found = outcome(evalmode.verify(then, small(), pairs()), "finite")
    assert found.outcome is Outcome.UNTESTED and "left out" in found.detail
    broken = tuple(
        msgspec.structs.replace(result, verdict=Verdict.BROKEN, evidence="EM192")
        if result.clause == "finite"
        else result
        for result in made.clauses
    )
    told = [result for result in differences(then, changed(made, clauses=broken)) if result.name == "finite"]
    assert told[0].outcome is Outcome.DIFFERS


def test_a_figure_that_only_the_data_of_here_has_can_be_ignored_and_a_name_of_nothing_cannot(made: Certificate) -> None:
    task = Task(model=small(), test_data=pairs(), metrics=["accuracy", "log_loss", "brier_score"], name="Sequential")
    verification = evalmode.verify(made, task, ignore="Brier score")
    assert [result.name for result in verification.differing] == ["Brier score"]
    assert verification.ok
    assert not evalmode.verify(made, task).ok
    with pytest.raises(UsageError, match=r"'weather', which is nothing that is tested\n.*Brier score"):
        evalmode.verify(made, task, ignore="weather")


def test_misuse_says_what_to_give(made: Certificate, tmp_path: Path) -> None:
    with pytest.raises(NotAModuleError, match="verify got a int"):
        evalmode.verify(made, 3)
    with pytest.raises(NotAModuleError, match="the class Linear"):
        evalmode.verify(made, nn.Linear)
    with pytest.raises(UsageError, match="the certificate is"):
        evalmode.verify(7, small())
    with pytest.raises(UsageError, match="'weather'"):
        evalmode.verify(made, small(), ignore="weather")
    with pytest.raises(CertificateError, match="cannot read"):
        evalmode.verify(tmp_path / "missing.json", small())
    foreign = tmp_path / "foreign.evalmode"
    foreign.write_bytes(b"nothing of ours")
    with pytest.raises(ArtifactError, match="no artifact"):
        evalmode.verify(made, foreign)


numbers = st.floats(0, 1)


@given(
    value=numbers, low=st.none() | numbers, here=numbers, plan=st.sampled_from(["", "eager"]), cores=st.integers(1, 2)
)
def test_a_figure_differs_exactly_where_it_should(
    made: Certificate, value: float, low: float | None, here: float, plan: str, cores: int
) -> None:
    def certificate(figure: float, plan: str, cores: int) -> Certificate:
        high = None if low is None else max(low, figure)
        metric = MetricRecord(name="m", value=figure, low=None if low is None else min(low, figure), high=high)
        record = EvaluationRecord(samples=9, batch_size=9, metrics=(metric,), plan=plan)
        return with_environment(changed(made, evaluation=record), cores=cores)

    then, now = certificate(value, "", 1), certificate(here, plan, cores)
    (found,) = [result for result in differences(then, now) if result.name == "m"]
    claimed, metric = then.evaluation.metrics[0], now.evaluation.metrics[0]
    if (plan, cores) == ("", 1):
        expected = Outcome.SAME if claimed == metric else Outcome.DIFFERS
    elif metric.low is None:
        expected = Outcome.SAME if value == here else Outcome.UNTESTED
    else:
        width = metric.high - metric.low
        alike = abs(claimed.low - metric.low) <= width and abs(claimed.high - metric.high) <= width
        expected = Outcome.SAME if metric.low <= value <= metric.high and alike else Outcome.DIFFERS
    assert found.outcome is expected
    assert all(result.outcome is Outcome.SAME for result in differences(then, then))


def test_json_holds_everything(made: Certificate) -> None:
    verification = evalmode.verify(with_environment(made, cores=99), small(), pairs(), ignore=["cores"])
    read = json.loads(verification.to_json())
    assert read["ok"] is True and read["ignored"] == ["cores"]
    told = {result["name"]: result for result in read["results"]}
    assert told["cores"]["outcome"] == "differs" and told["cores"]["counts"] is False
    assert told["log loss"]["outcome"] == "same"
    assert msgspec.convert(read["here"], Certificate).model == verification.here.model


# Artifacts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(**changes: Any) -> None:
        def named(name: str) -> Backend:
            return backend(**changes)

        monkeypatch.setattr(artifact, "backend_of", named)
        monkeypatch.setattr(manifest, "backend_of", named)

    install()
    return install


@pytest.fixture
def plan(fake: Any, tmp_path: Path) -> tuple[Certificate, Path, Net]:
    """A certificate whose figures a plan gave, the artifact of that plan, and the model."""
    torch.manual_seed(5)
    model = Net()
    fast = predictor((2, 8), model=model, samples=8)
    made = evalmode.certify(model, pairs(), forward=lambda net, x: net(x)["logits"], budget_s=0)
    answered = evalmode.certify(Wrapped(fast), pairs(), clauses=["finite"], budget_s=0).evaluation
    made = changed(made, evaluation=msgspec.structs.replace(answered, plan=str(fast.plan), same_answers=40))
    return made, fast.save(tmp_path / "model.evalmode"), model


class Wrapped(nn.Module):
    """The plan as a module, so that its figures can be had."""

    def __init__(self, fast: Any) -> None:
        super().__init__()
        self.fast = [fast]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fast[0](x)["logits"]


def rewritten(path: Path, **values: Any) -> Path:
    data, sections = read_sections(path)
    content = json.loads(data)
    content.pop("sections")
    sections.update(values.pop("sections", {}))
    content.update(values)
    return write_sections(path, content, sections)


def test_an_artifact_gives_its_golden_outputs_and_its_figures(plan: Any) -> None:
    made, path, model = plan
    verification = evalmode.verify(made, path, Task(model=model, test_data=pairs))
    assert verification.ok, str(verification)
    assert outcome(verification, "golden outputs").detail == "the same bits"
    assert outcome(verification, "plan").outcome is Outcome.SAME
    assert outcome(verification, "weights").outcome is Outcome.SAME
    for name in ("accuracy", "log loss"):
        assert outcome(verification, name).detail.endswith("the same bits")
    assert outcome(verification, "answers as plain").detail == "40 of 40"
    assert outcome(verification, "batch-independent").outcome is Outcome.SAME
    assert outcome(verification, "mode-complete").detail.startswith("an artifact holds the plan")


def test_an_artifact_alone_tests_its_answers_with_its_own_probes(plan: Any) -> None:
    made, path, _ = plan
    verification = evalmode.verify(made, path)
    assert verification.ok
    assert outcome(verification, "deterministic").outcome is Outcome.SAME
    assert "own probes" in outcome(verification, "inputs").detail
    assert "no data was given" in outcome(verification, "accuracy").detail


def test_an_artifact_of_other_weights_is_said(plan: Any, tmp_path: Path) -> None:
    made, _, _ = plan
    other = predictor((2, 8), model=Net(), samples=8).save(tmp_path / "other.evalmode")
    verification = evalmode.verify(made, other, pairs())
    assert {result.name for result in verification.differing} >= {"weights", "log loss"}
    needs_model = outcome(verification, "answers as plain")
    assert needs_model.outcome is Outcome.UNTESTED


def test_golden_outputs_that_differ_are_a_difference_and_not_a_crash(plan: Any) -> None:
    made, path, _ = plan
    _, sections = read_sections(path)
    payload = json.loads(sections["payload.0"])
    payload["weights"][0][0] += 1.0
    rewritten(path, sections={"payload.0": json.dumps(payload).encode()})
    verification = evalmode.verify(made, path, pairs())
    found = outcome(verification, "golden outputs")
    assert found.outcome is Outcome.DIFFERS and "logits has other bits" in found.detail
    assert outcome(verification, "accuracy").outcome is Outcome.UNTESTED
    assert not verification.ok


def test_a_plan_that_depends_on_companions_is_found_out(fake: Any, plan: Any, tmp_path: Path) -> None:
    made, _, model = plan
    moving = predictor((2, 8), model=model, fault="companions", samples=8)
    found = outcome(evalmode.verify(made, moving, pairs()), "batch-independent")
    assert found.outcome is Outcome.DIFFERS
    assert found.detail.startswith("kept, here broken")


def test_an_artifact_that_cannot_run_here_says_why(fake: Any, plan: Any) -> None:
    made, path, _ = plan
    fake(missing=lambda: "pip install fake")
    verification = evalmode.verify(made, path, pairs())
    assert "pip install fake" in outcome(verification, "golden outputs").detail
    assert "pip install fake" in outcome(verification, "finite").detail
    assert verification.ok and outcome(verification, "weights").outcome is Outcome.SAME


def test_another_plan_than_the_certified_one_is_said(plan: Any, tmp_path: Path) -> None:
    made, _, model = plan
    other = predictor((4,), model=model, samples=8).save(tmp_path / "four.evalmode")
    verification = evalmode.verify(made, other, pairs())
    then, here = (f"fake fp32, executions of {sizes} samples, 1 thread" for sizes in ("2, 8", "4"))
    assert outcome(verification, "plan").detail == f"{then}, here {here}"
    assert "by another plan" in outcome(verification, "log loss").detail or outcome(
        verification, "log loss"
    ).detail.endswith("the same bits")


def test_a_certificate_is_read_out_of_an_artifact(fake: Any, made: Certificate, tmp_path: Path) -> None:
    carrying = predictor((2,), certificate=made).save(tmp_path / "carrying.evalmode")
    assert evalmode.verify(carrying, small(), pairs()).ok
    bare = predictor((2,)).save(tmp_path / "bare.evalmode")
    with pytest.raises(CertificateError, match="carries no certificate"):
        evalmode.verify(bare, small(), pairs())


def test_a_real_plan_is_held_against_its_model_again() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    task = Task(model=model, test_data=pairs())
    fast = evalmode.optimize(model, pairs()[0], backends=["eager"], budget_s=5)
    verification = evalmode.verify(fast.certificate, fast, task)
    faithful = outcome(verification, "faithful")
    assert faithful.outcome is Outcome.SAME, faithful
    assert verification.ok
    with torch.no_grad():
        model[0].weight.add_(0.1)
    stale = outcome(evalmode.verify(fast.certificate, fast, task), "faithful")
    assert stale.outcome is Outcome.UNTESTED and "other weights" in stale.detail
    fast.close()


def test_a_plan_that_is_not_the_model_breaks_faithful(fake: Any) -> None:
    torch.manual_seed(5)
    model = Net()
    liar = predictor((2, 8), model=model, samples=8)
    for executor in liar.executors:
        executor.weights += 0.5
    task = Task(model=model, test_data=pairs, forward=lambda net, x: net(x))
    then = evalmode.check(model, pairs()[0][:8]).certificate
    kept = msgspec.structs.replace(then.clauses[0], clause="faithful", verdict=Verdict.KEPT)
    found = outcome(evalmode.verify(changed(then, clauses=(kept,)), liar, task), "faithful")
    assert found.outcome is Outcome.DIFFERS and found.detail.startswith("kept, here broken"), found


def test_it_is_the_same_in_a_fresh_process(made: Certificate, tmp_path: Path) -> None:
    path = made.save(tmp_path / "certificate.json")
    script = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[2]))\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "import evalmode, test_retest as cases\n"
        "print(evalmode.verify(sys.argv[1], cases.small(), cases.pairs()).differing)"
    )
    folder, root = Path(__file__).parent, Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", script, str(path), str(torch.get_num_threads()), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
    )
    assert run.stdout.strip() == "()", run.stdout + run.stderr
