import json
from pathlib import Path

import msgspec
import pytest
import torch

import evalmode
from evalmode.certificate import EvaluationRecord
from evalmode.cli.main import main
from evalmode.errors import UsageError


def record_of(text):
    return msgspec.convert(json.loads(text)["evaluation"], EvaluationRecord)


def test_a_task_is_evaluated(task_folder, capsys):
    assert main(["evaluate", "task.py"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("Test set, 40 samples")
    assert any(line.lstrip().startswith("accuracy") and " of 40" in line for line in lines)
    assert any("task.py: plain eval()" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert shown.err == ""


def test_json_has_the_record_and_matches_python(task_folder, capsys):
    assert main(["evaluate", "task.py", "--format", "json", "--metric", "accuracy", "--batch-size", "7"]) == 0
    printed = capsys.readouterr().out
    record = record_of(printed)
    result = evalmode.evaluate(_task(), metrics=["accuracy"], progress=False)
    assert record.metrics == result.record.metrics
    assert record.data == result.record.data
    assert json.loads(printed)["model"]["fingerprint"] == result.model.fingerprint


def _task():
    space: dict = {}
    exec(Path("task.py").read_text(encoding="utf-8"), space)
    return evalmode.Task(model=space["model"], test_data=space["test_data"])


def test_an_artifact_is_evaluated_on_the_data_of_a_task(task_folder, capsys):
    assert main(["optimize", "task.py", "--backend", "openvino", "--budget", "5", "--out", "fast.evalmode"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "fast.evalmode", "--data", "task.py", "--format", "json"]) == 0
    shown = capsys.readouterr().out
    record = record_of(shown)
    assert json.loads(shown)["subject"] == "task.py"
    assert record.samples == 40
    assert record.plan
    assert main(["evaluate", "task.py", "--format", "json"]) == 0
    assert record.metrics[0] == record_of(capsys.readouterr().out).metrics[0]


def test_an_artifact_needs_data_and_brings_its_weights(task_folder, capsys):
    Path("fast.evalmode").write_bytes(b"nothing")
    assert main(["evaluate", "fast.evalmode"]) == 2
    assert "--data task.py" in capsys.readouterr().err
    assert main(["evaluate", "fast.evalmode", "--data", "task.py", "--weights", "w"]) == 2
    assert "leave --weights out" in capsys.readouterr().err


def test_a_journal_is_gone_on_with_and_of_another_setting_refused(task_folder, capsys):
    command = ["evaluate", "task.py", "--journal", "kept/run.journal", "--format", "json"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert main(command) == 0
    assert record_of(capsys.readouterr().out) == record_of(first)
    assert main([*command, "--confidence", "0.9"]) == 2
    assert "confidence" in capsys.readouterr().err


def test_predictions_result_and_slices(task_folder, capsys):
    outputs = ["--keep-predictions", "deep/rows.parquet", "--out", "deep/result.json"]
    assert main(["evaluate", "task.py", "--slice", "class", *outputs]) == 0
    shown = capsys.readouterr().out
    assert "Slices by accuracy, worst first" in shown
    assert "deep/rows.parquet" in shown
    assert record_of(Path("deep/result.json").read_text(encoding="utf-8")).samples == 40
    kept = evalmode.Evaluation.load("deep/rows.parquet")
    assert len(kept.samples) == 40
    assert kept.samples.scores.shape == (40, 3)


def test_a_parquet_file_is_data(task_folder, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    inputs = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    table = pa.table(
        {
            "features": pa.array(inputs.tolist(), pa.list_(pa.float32())),
            "label": [place % 3 for place in range(30)],
            "site": ["a", "b"] * 15,
        }
    )
    pq.write_table(table, "rows.parquet", row_group_size=7)
    assert main(["evaluate", "task.py", "--data", "rows.parquet", "--slice", "site", "--format", "json"]) == 0
    record = record_of(capsys.readouterr().out)
    assert record.samples == 30
    assert {part.name for part in record.slices} == {"a", "b"}


def test_a_bad_sample_stops_or_is_left_out(task_folder, capsys):
    text = Path("task.py").read_text(encoding="utf-8")
    broken = text.replace(
        "    return torch.randn(40, 4, generator=generator), torch.arange(40) % 3",
        "    inputs = torch.randn(40, 4, generator=generator)\n    inputs[5] = float('nan')\n"
        "    return inputs, torch.arange(40) % 3",
    )
    assert broken != text
    Path("nan.py").write_text(broken, encoding="utf-8")
    assert main(["evaluate", "nan.py"]) == 2
    assert "sample 5: the model's outputs are NaN or Inf" in capsys.readouterr().err
    assert main(["evaluate", "nan.py", "--on-bad-sample", "skip"]) == 0
    assert "1 sample left out: 5:" in capsys.readouterr().out


def test_an_interruption_says_how_to_go_on(task_folder, capsys, monkeypatch):
    import evalmode.evaluation.reading

    calls = []

    def interrupted(self, outputs, target, count, size):
        calls.append(count)
        raise KeyboardInterrupt

    monkeypatch.setattr(evalmode.evaluation.reading.Reader, "read", interrupted)
    assert main(["evaluate", "task.py", "--journal", "run.journal"]) == 130
    assert "stopped after 0 of 40 samples" in capsys.readouterr().err
    assert calls


@pytest.mark.parametrize(
    "wrong", [["--limit", "0"], ["--workers", "-1"], ["--slice", "colour"], ["--device", "cuda:9"]]
)
def test_wrong_options_end_with_2(task_folder, capsys, wrong):
    assert main(["evaluate", "task.py", *wrong]) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--keep-predictions", "--journal"])
def test_a_file_that_cannot_be_written_is_said_before_any_work(task_folder, capsys, option):
    Path("task.py").write_text("raise RuntimeError('must not be loaded')", encoding="utf-8")
    assert main(["evaluate", "task.py", option, "x" * 300]) == 2
    said = capsys.readouterr().err
    assert "UsageError: cannot write 'xxx" in said and f"fix: {option} FILE" in said


def test_saving_where_it_cannot_be_written_is_the_users_mistake(tmp_path):
    result = evalmode.evaluate(torch.nn.Linear(3, 3), (torch.eye(3), torch.arange(3)), progress=False)
    with pytest.raises(UsageError, match="cannot write"):
        result.save(tmp_path / ("x" * 300))


def test_another_tasks_data_brings_its_split_and_metrics(task_folder, capsys):
    other = Path("task.py").read_text(encoding="utf-8") + (
        "\n\ndef split(batch):\n    inputs, target = batch\n    return inputs, target * 0\n"
        "\n\ndef first_class(outputs, target):\n    return (outputs.argmax(1) == target).float()\n"
        "\n\nmetrics = {'share of the first class': first_class}\n"
    )
    Path("other.py").write_text(other, encoding="utf-8")
    assert main(["evaluate", "task.py", "--data", "other.py", "--format", "json"]) == 0
    across = record_of(capsys.readouterr().out).metrics
    assert [metric.name for metric in across] == ["share of the first class"]
    assert main(["evaluate", "other.py", "--format", "json"]) == 0
    assert record_of(capsys.readouterr().out).metrics == across


def test_a_metric_of_the_tasks_own_goes_before_the_catalogs(task_folder, capsys):
    own = "\n\ndef half(outputs, target):\n    return 0.5 + 0 * outputs[:, 0]\n"
    own += "\n\nmetrics = {'accuracy': half, 'mine': half}\n"
    Path("own.py").write_text(Path("task.py").read_text(encoding="utf-8") + own, encoding="utf-8")
    for names, wanted in ((["accuracy"], {"accuracy": 0.5}), (["mine"], {"mine": 0.5})):
        command = ["evaluate", "own.py", "--format", "json"]
        for name in (*names, "top-2 accuracy"):
            command += ["--metric", name]
        assert main(command) == 0
        found = {metric.name: metric.value for metric in record_of(capsys.readouterr().out).metrics}
        assert found.pop("top-2 accuracy") is not None
        assert found == wanted
