import textwrap

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evalmode
from evalmode.certificate import Certificate
from evalmode.certification import certify, optimize_loaded, probe_inputs, usable_device, whole_way
from evalmode.clause import Verdict
from evalmode.errors import ModelRunError, NotAModuleError, PatternError, TaskError, UsageError
from evalmode.fresh_process import FreshProcess, seeded_outputs
from evalmode.observe.state import read_state
from evalmode.predictor.optimized import OptimizedPredictor
from evalmode.task import Task, load_task


class Hidden(nn.Module):
    """A dropout in a plain list, which `eval()` never reaches."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.normal = nn.BatchNorm1d(8)
        self.parts = [nn.Dropout(0.5)]
        self.last = nn.Linear(8, 3)

    def forward(self, inputs):
        hidden = self.normal(self.first(inputs))
        for part in self.parts:
            hidden = part(hidden)
        return self.last(hidden)


def plain_model():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def data(samples=40):
    return torch.randn(samples, 4), torch.arange(samples) % 3


def verdicts(certificate):
    return {result.clause: result.verdict for result in certificate.clauses}


def by_name(certificate, clause):
    return next(result for result in certificate.clauses if result.clause == clause)


def test_figures_agree_with_scikit_learn_on_the_model_in_evaluation_mode():
    model, (inputs, targets) = plain_model(), data()
    certificate = certify(model, (inputs, targets))
    model.eval()
    with torch.no_grad():
        probabilities = model(inputs).double().softmax(1).numpy()
    figures = {metric.name: metric.value for metric in certificate.evaluation.metrics}
    assert figures["accuracy"] == pytest.approx(accuracy_score(targets, probabilities.argmax(1)))
    assert figures["log loss"] == pytest.approx(log_loss(targets, probabilities), rel=1e-6)
    assert certificate.ok
    assert set(verdicts(certificate).values()) == {Verdict.KEPT}
    assert certificate.evaluation.samples == 40
    assert "probes: the first 16 samples of the test data" in certificate.inferred


@pytest.mark.parametrize("make", [plain_model, Hidden])
def test_the_model_and_the_random_streams_are_left_as_they_were_found(make):
    model = make()
    model.first_mode = model.training
    next(model.children()).eval()
    state = read_state(model)
    certify(model, data_made_before)
    assert state.changes() == []


data_made_before = (torch.randn(24, 4), torch.arange(24) % 3)


def test_a_failing_model_is_left_as_it_was_found():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.normal = nn.BatchNorm1d(4)
            self.calls = 0

        def forward(self, inputs):
            self.calls += 1
            if self.calls > 1:
                raise ValueError("second call")
            return self.normal(inputs)

    model = Failing()
    state = read_state(model)
    with pytest.raises(ModelRunError, match="second call"):
        certify(model, data_made_before)
    assert state.changes() == []


def test_what_a_plain_eval_leaves_is_broken_and_what_evaluating_mends_is_said():
    certificate = certify(Hidden(), data_made_before)
    assert not certificate.ok
    complete = by_name(certificate, "mode-complete")
    assert complete.verdict is Verdict.BROKEN
    assert any(note.startswith("mended: by evalmode.evaluating") for note in complete.notes)


def test_what_evaluating_does_not_mend_is_not_said_to_be():
    class Noisy(nn.Module):
        def forward(self, inputs):
            return inputs + torch.randn_like(inputs)

    drawn = by_name(certify(Noisy(), batch=torch.randn(8, 4)), "no-randomness")
    assert drawn.verdict is Verdict.BROKEN
    assert not any("mended" in note for note in drawn.notes)


def test_allowed_by_module_path():
    class Sampling(nn.Module):
        def __init__(self):
            super().__init__()
            self.mc_noise = Noise()

        def forward(self, inputs):
            return self.mc_noise(inputs)

    class Noise(nn.Module):
        def forward(self, inputs):
            return inputs + torch.randn_like(inputs)

    certificate = certify(Sampling(), batch=torch.randn(8, 4), allow=["mc_*"])
    assert verdicts(certificate)["no-randomness"] is Verdict.ALLOWED
    assert certificate.ok
    with pytest.raises(PatternError, match="matches no module"):
        certify(Sampling(), batch=torch.randn(8, 4), allow=["nothing.*"])


def test_every_part_of_a_task_is_used():
    seen = []

    def forward(model, inputs):
        seen.append("forward")
        return {"scores": model(inputs["x"])}

    task = Task(
        model=plain_model(),
        test_data=lambda: DataLoader([{"x": row, "y": 1} for row in torch.randn(20, 4)], batch_size=6),
        split=lambda batch: ({"x": batch["x"]}, batch["y"]),
        forward=forward,
        prediction=lambda outputs: outputs["scores"].argmax(1),
        metrics=["accuracy"],
        loss=lambda outputs, target: outputs["scores"][:, 0],
        name="mine",
    )
    certificate = certify(task)
    assert certificate.subject == "mine"
    assert seen
    assert {metric.name for metric in certificate.evaluation.metrics} >= {"accuracy"}
    assert len(certificate.evaluation.metrics) == 2
    assert certificate.evaluation.samples == 20


def test_limit_and_progress():
    told = []
    certificate = certify(plain_model(), data(50), limit=30, batch_size=8, on_progress=lambda *step: told.append(step))
    assert certificate.evaluation.samples == 30
    assert told[0] == ("check", 0, None)
    assert told[-1] == ("evaluate", 30, 30)


def test_without_test_data_the_training_data_or_a_batch_is_checked():
    trained = certify(plain_model(), train_data=data_made_before)
    assert trained.evaluation is None
    assert "no test data: nothing was evaluated" in trained.inferred
    assert any("training data" in line for line in trained.inferred)
    assert certify(plain_model(), batch=torch.randn(8, 4)).evaluation is None
    with pytest.raises(TaskError, match=r"has no test data.*\n  expected: def test_data\(\)"):
        certify(plain_model())


@pytest.mark.parametrize(
    ("given", "expected"), [(plain_model, "got function"), (nn.Linear, "got the class Linear"), (None, "got NoneType")]
)
def test_something_else_than_a_model(given, expected):
    with pytest.raises(NotAModuleError, match=expected):
        certify(given, data_made_before)


def test_probes_are_cut_from_the_first_batch_only():
    task = Task(plain_model(), test_data=TensorDataset(*data(40)))
    from evalmode.evaluation.batches import batches_from

    inputs, where = probe_inputs(task, batches_from(task.test_data, 5))
    assert torch.equal(inputs, task.test_data.tensors[0][:5])
    assert where == "probes: the first 5 samples of the test data"


def test_a_limit_on_the_data_is_none_on_the_probes():
    assert "probes: the first 16 samples of the test data" in certify(plain_model(), data(40), limit=1).inferred


def test_a_device_that_is_not_there():
    with pytest.raises(UsageError, match=r"device 'nonsense' cannot be used.*\n  expected: cpu"):
        usable_device("nonsense")
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.gpu
def test_on_another_device_the_model_given_stays_where_it_was():
    model = plain_model()
    certificate = certify(model, data_made_before, device="cuda")
    assert certificate.ok
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert "cpu" not in certificate.environment.device


def test_saved_and_read_again(tmp_path):
    certificate = certify(plain_model(), data_made_before)
    assert Certificate.load(certificate.save(tmp_path / "certificate.json")) == certificate


def test_the_public_name():
    assert evalmode.certify is certify


TASK = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, inputs):
            return {body}

    def model():
        {seed}
        return Net()

    def test_data():
        generator = torch.Generator().manual_seed(0)
        return torch.randn(20, 4, generator=generator), torch.arange(20) % 3
"""


def certified(tmp_path, body, seed="torch.manual_seed(0)"):
    path = tmp_path / "task.py"
    path.write_text(textwrap.dedent(TASK).format(body=body, seed=seed), encoding="utf-8")
    return by_name(certify(load_task(path)), "deterministic")


def test_the_same_bits_in_a_fresh_process(tmp_path):
    result = certified(tmp_path, "self.linear(inputs)")
    assert result.verdict is Verdict.KEPT
    assert result.evidence == "same bits again, here and in a fresh process"


def test_a_fresh_process_computes_in_the_precision_of_this_one(tmp_path):
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # `torch.get_float32_matmul_precision` raises from here on
    try:
        result = certified(tmp_path, "self.linear(inputs)")
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert result.evidence == "same bits again, here and in a fresh process"


def test_what_depends_on_the_process_shows_in_a_fresh_one(tmp_path):
    result = certified(tmp_path, "self.linear(inputs) * (1 + __import__('os').getpid())")
    assert result.verdict is Verdict.BROKEN
    assert "other bits in a fresh process" in result.evidence


def test_other_weights_in_a_fresh_process_are_said_and_not_blamed(tmp_path):
    result = certified(tmp_path, "self.linear(inputs)", seed="torch.seed()")
    assert result.verdict is Verdict.KEPT
    assert any("other weights" in note for note in result.notes)


def test_a_fresh_process_that_fails_is_said(tmp_path):
    seed = f"""torch.manual_seed(0)
    mark = __import__("pathlib").Path({str(tmp_path)!r}, "loaded")
    if mark.exists(): raise RuntimeError("only once")
    mark.touch()"""
    result = certified(tmp_path, "self.linear(inputs)", seed=seed)
    assert result.verdict is Verdict.KEPT
    assert any("it failed: " in note and "only once" in note for note in result.notes)


def test_a_fresh_process_never_outlives_its_caller(tmp_path):
    path = tmp_path / "task.py"
    path.write_text("import time\ndef model(): time.sleep(600)", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), FreshProcess(str(path), None, torch.zeros(2), "cpu") as process:
        raise KeyboardInterrupt
    assert process._process.poll() is not None


def test_inputs_that_cannot_be_handed_over_are_said():
    with FreshProcess("unused.py", None, (lambda: None,), "cpu") as process:
        result = process.result("", [])
    assert "cannot be handed over" in result.skipped


def test_seeded_outputs_are_the_same_whatever_ran_before():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    model[1].eval = lambda: None
    inputs = torch.randn(3, 4)
    first = seeded_outputs(model, inputs, None)
    torch.randn(5)
    again = seeded_outputs(model, inputs, None)
    assert torch.equal(first[0], again[0])


def test_a_plan_that_the_test_data_refutes_is_not_used(monkeypatch):
    rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    rows[0][17, 0] = 9.0
    task = Task(model=plain_model(), test_data=rows)
    real = OptimizedPredictor.run_flat

    def broken(self, inputs, sizes=None):
        outputs = real(self, inputs, sizes)
        outputs[0] = torch.where((inputs[0][:, :1] == 9.0), torch.nan, outputs[0])
        return outputs

    monkeypatch.setattr(OptimizedPredictor, "run_flat", broken)
    certificate, fast = whole_way.certified(task, budget_s=5)
    assert fast is None
    result = by_name(certificate, "faithful")
    assert result.verdict is Verdict.NOT_TESTED
    assert "where plain eval() gives finite ones" in result.evidence
    assert certificate.evaluation is not None and certificate.evaluation.plan == ""
    assert certificate.optimization is not None
    assert all(plan.outcome != "chosen" for plan in certificate.optimization.plans)


def test_an_allowed_finding_does_not_hide_what_the_test_data_shows():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = Ratio(), nn.Linear(4, 3)

        def forward(self, inputs):
            return self.head(self.norm(inputs)) / (inputs[:, :1] != 9.0)

    class Ratio(nn.Module):
        def forward(self, inputs):
            return inputs / inputs.abs().amax(1, keepdim=True)  # of zeros: NaN

    rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    rows[0][17, 0] = 9.0
    certificate = certify(Task(model=Net(), test_data=rows), allow=["norm"], budget_s=0, probes="thorough")
    result = by_name(certificate, "finite")
    assert result.verdict is Verdict.BROKEN
    assert any(finding.code == "EM192" for finding in certificate.findings)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (["AUROC", "accuracy"], "decisions and accuracy are held"),
        ("accuracy", "decisions and accuracy are held"),
        ({"right": lambda outputs, target: outputs["logits"].argmax(1) == target}, "decisions and right are held"),
        (["macro F1"], "no metric that has a value for each sample"),
        (None, "no metric that has a value for each sample"),
    ],
)
def test_tolerance_task_takes_the_first_metric_of_samples(metrics, said):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = plain_model()

        def forward(self, inputs):
            return {"logits": self.inner(inputs)}

    rows = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)), torch.arange(300) % 3
    _, notes = optimize_loaded(
        Task(model=Named(), test_data=rows, metrics=metrics), tolerance="task", budget_s=5, backends=["eager"]
    )
    assert any(said in note for note in notes)


def test_a_metric_that_fails_on_the_data_of_the_tolerance_is_told():
    rows = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)), torch.arange(300) % 3
    for metric, words in (
        (lambda outputs, target: outputs["nothing"], "failed: "),
        (lambda outputs, target: (outputs.argmax(1) == target).float().mean(), "for a batch of 64"),
    ):
        with pytest.raises(UsageError, match=words):
            evalmode.optimize(
                plain_model(), rows[0][:8], tolerance="task", data=rows, metric=metric, budget_s=5, backends=["eager"]
            )
