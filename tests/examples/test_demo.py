"""The table of `make demo`: every figure measured, nothing left behind, 80 columns."""

import copy
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo_under_test", ROOT / "examples" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits(demo):
    task = demo.load_task()
    return task.model(), *task.test_data()


def test_the_table_of_the_digits(demo, digits):
    model, images, labels = digits
    before, stream = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    lines = demo.table(model, images, labels)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(module.training for module in model.modules())
    assert len(lines) == 7
    assert max(map(len, lines)) <= 80
    assert "fails: batch norm needs two" in lines[2]
    measured = [re.search(r"([\d.]+) % +(\d+) of 540$", line).groups() for line in lines[3:]]
    wrong, right = [(float(accuracy), int(changed)) for accuracy, changed in measured[:3]], measured[3]
    assert [accuracy for accuracy, _ in wrong] == sorted(accuracy for accuracy, _ in wrong)
    assert all(changed > 0 for _, changed in wrong)
    assert right[1] == "0"
    model.eval()
    with torch.no_grad():
        oracle = (model(images).argmax(1) == labels).double().mean().item()
    model.train()
    assert float(right[0]) == pytest.approx(100 * oracle, abs=0.05)


def test_the_table_says_what_it_measures_on_another_model(demo):
    class Unsteady(nn.Module):
        def forward(self, images):
            flip = torch.rand(len(images)) < 0.5
            return nn.functional.one_hot(flip.long(), 2).float()

    images, labels = torch.zeros(64, 1), torch.zeros(64, dtype=torch.long)
    lines = demo.table(Unsteady(), images, labels)
    changed = [int(re.search(r"(\d+) of 64$", line)[1]) for line in lines[2:]]
    assert all(changes > 10 for changes in changed)


def test_another_failure_of_the_model_is_not_taken_for_batch_norms(demo):
    class Broken(nn.Module):
        def forward(self, images):
            raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        demo.table(Broken(), torch.zeros(4, 1), torch.zeros(4, dtype=torch.long))


def test_the_header_fits(demo):
    assert demo.header().startswith("evalmode ")
    assert len(demo.header()) <= 80


def test_it_ends_with_certify_and_its_exit_code(demo, monkeypatch, capsys):
    called = []
    command = type(sys)("evalmode.cli.main")
    command.main = lambda arguments: called.append((arguments, Path.cwd())) or 1
    monkeypatch.setitem(sys.modules, "evalmode.cli.main", command)
    monkeypatch.setattr(demo, "table", lambda model, images, labels: [f"a table of {len(labels)}"])
    assert demo.main() == 1
    assert called == [(["certify", "examples/digits/task.py", "--out", "build/demo"], ROOT)]
    assert capsys.readouterr().out.endswith(
        "\na table of 540\n\n$ evalmode certify examples/digits/task.py --out build/demo\n"
    )
