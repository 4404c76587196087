from pathlib import Path

import pytest

from evalmode.cli.main import main
from evalmode.task import load_task


@pytest.mark.parametrize(
    ("arguments", "file"),
    [([], "task.py"), (["mine.py"], "mine.py"), (["."], "task.py"), (["deep/mine.py"], "deep/mine.py")],
)
def test_what_is_written_loads_as_it_is(task_folder, capsys, arguments, file):
    Path("task.py").unlink()
    assert main(["init", *arguments]) == 0
    assert f"evalmode certify {file}" in capsys.readouterr().out
    task = load_task(file)
    assert len(task.data("test_data")[0]) == 200


def test_it_certifies_as_it_is_and_takes_weights(task_folder, capsys):
    import torch

    assert main(["init", "mine.py"]) == 0
    weights = {name: tensor + 1 for name, tensor in load_task("mine.py").model.state_dict().items()}
    torch.save(weights, "weights.pt")
    assert torch.equal(load_task("mine.py", weights="weights.pt").model[0].bias, weights["0.bias"])
    assert main(["certify", "mine.py", "--limit", "20"]) == 0
    assert "KEPT" in capsys.readouterr().out


def test_its_optional_parts_work_when_the_marks_are_removed(task_folder, capsys):
    assert main(["init", "mine.py"]) == 0
    lines = Path("mine.py").read_text(encoding="utf-8").splitlines()
    names = (
        "def forward",
        "def prediction",
        "def loss",
        "metrics =",
        "    return model(inputs)",
        "    return outputs",
        "    return torch",
    )
    freed = [line[2:] if line[2:].startswith(names) else line for line in lines]
    assert sum(one != other for one, other in zip(freed, lines, strict=True)) == 7
    Path("mine.py").write_text("\n".join(freed) + "\n", encoding="utf-8")
    task = load_task("mine.py")
    assert None not in (task.forward, task.prediction, task.loss, task.metrics)
    assert main(["certify", "mine.py", "--limit", "20"]) == 0


def test_nothing_is_overwritten(task_folder, capsys):
    before = Path("task.py").read_bytes()
    assert main(["init"]) == 2
    assert "task.py exists already" in capsys.readouterr().err
    assert Path("task.py").read_bytes() == before


@pytest.mark.parametrize("path", ["notes.txt", "task.py/below.py"])
def test_paths_that_cannot_be(task_folder, capsys, path):
    assert main(["init", path]) == 2
    assert "Traceback" not in capsys.readouterr().err
