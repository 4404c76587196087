import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from evalmode.errors import TaskError
from evalmode.task import Task, load_task

MODEL = """
    from torch import nn

    def model():
        return nn.Linear(3, 2)
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text: str, name: str = "task.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write_file


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


def test_a_file_with_every_name(write):
    path = write("""
        import torch
        from torch import nn

        def model(weights=None):
            linear = nn.Linear(3, 2)
            linear.given = weights
            return linear

        def test_data(): return torch.zeros(4, 3), torch.zeros(4)
        def train_data(): return torch.zeros(5, 3), torch.zeros(5)
        def split(batch): return batch[0], batch[1]
        def forward(model, inputs): return model(inputs)
        def prediction(outputs): return outputs.argmax(-1)
        def loss(outputs, target): return outputs[:, 0] - target
        metrics = ["accuracy"]
    """)
    task = load_task(path, weights="w.pt")
    assert isinstance(task.model, nn.Linear)
    assert task.model.given == "w.pt"
    assert (len(task.data("test_data")[0]), len(task.data("train_data")[0])) == (4, 5)
    assert task.metrics == ["accuracy"]
    assert task.split((1, 2)) == (1, 2)
    assert task.prediction(torch.eye(2)).tolist() == [0, 1]
    assert (task.reference, task.weights, task.name) == (str(path), "w.pt", str(path))


def test_two_files_of_the_same_name_with_neighbours_of_the_same_name(write):
    for folder, width in (("one", 3), ("two", 5)):
        write(f"WIDTH = {width}", f"{folder}/nets.py")
        write(
            """
            from torch import nn
            from nets import WIDTH
            class Net(nn.Linear): pass
            def model(): return Net(WIDTH, 1)
            """,
            f"{folder}/task.py",
        )
    one, two, again = (load_task(f"{folder}/task.py").model for folder in ("one", "two", "one"))
    assert [net.in_features for net in (one, two, again)] == [3, 5, 3]
    assert type(one).__module__ != type(two).__module__


def test_a_neighbour_imported_when_model_runs(write):
    write("WIDTH = 7", "late_neighbour.py")
    write("""
        from torch import nn
        def model():
            from late_neighbour import WIDTH
            return nn.Linear(WIDTH, 1)
    """)
    assert load_task("task.py").model.in_features == 7


def test_modules_of_the_same_name_in_two_current_folders(write, monkeypatch, tmp_path):
    for folder, width in (("one", 3), ("two", 5)):
        write(f"from torch import nn\ndef build(): return nn.Linear({width}, 1)", f"{folder}/samename.py")
        monkeypatch.chdir(tmp_path / folder)
        assert load_task("samename:build").model.in_features == width


def test_the_search_path_keeps_its_order(write):
    write(MODEL)
    before = list(sys.path)
    load_task("task.py")
    assert sys.path[: len(before)] == before


def test_an_edit_within_the_clocks_tick_is_seen(write):
    path = write(MODEL)
    assert load_task(path).model.in_features == 3
    path.write_text(path.read_text().replace("(3,", "(4,"))
    assert load_task(path).model.in_features == 4


def test_a_class_of_a_task_file_is_unpickled_in_a_fresh_process(write):
    path = write("""
        from torch import nn
        class Net(nn.Linear): pass
        def model(): return Net(3, 2)
    """)
    write(pickle.dumps(load_task(path).model).hex(), "pickled.hex")
    script = (
        "import pickle; m = pickle.loads(bytes.fromhex(open('pickled.hex').read())); "
        "print(type(m).__name__, m.in_features)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["Net", "3"], done.stderr


def test_a_module_and_its_attributes(write):
    write("", "package/__init__.py")
    write(
        """
        from torch import nn
        class Net(nn.Linear):
            def __init__(self): super().__init__(4, 2)
        net = Net()
        def build(): return Net()
        class inner:
            make = Net
        """,
        "package/nets.py",
    )
    for attribute in ("Net", "net", "build", "inner.make"):
        assert load_task(f"package.nets:{attribute}").model.in_features == 4
    write(MODEL, "package/whole.py")
    assert load_task("package.whole").model.in_features == 3
    assert load_task("package/nets.py:build").model.in_features == 4


def test_a_task_object_in_a_file(write):
    write("""
        import evalmode
        from torch import nn
        mine = evalmode.Task(model=lambda: nn.Linear(3, 2), name="mine")
    """)
    assert load_task("task.py").name == "mine"
    assert isinstance(load_task("task.py:mine").model, nn.Linear)
    write(
        "import evalmode\nfrom torch import nn\na = evalmode.Task(nn.ReLU())\nb = evalmode.Task(nn.ReLU())", "many.py"
    )
    with pytest.raises(TaskError, match=r"several tasks: a, b\n  fix: choose one: many.py:a"):
        load_task("many.py")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def modle(): pass", r"task.py defines `modle`, .* did you mean `model`\?"),
        ("def get_model(): pass", r"has no function model\(\): did you mean `get_model`\?"),
        ("x = 1", r"task.py has no function model\(\)\n  expected"),
        (MODEL + "\n    def test_dataset(): pass", r"defines `test_dataset`.* did you mean `test_data`\?"),
        (MODEL + "\n    def predicton(outputs): pass", r"did you mean `prediction`\?"),
        ("def model(:\n    pass", r"task.py cannot be read as Python: .*\n  at .*task.py:1: def model\(:"),
        ("import not_there_at_all", r"No module named 'not_there_at_all'\n  at .*task.py:1: import not_there_at_all"),
        ("from . import nets", r"a relative import, .*\n  at .*\n  fix: name it as a module of its package: task"),
        ("from .nets import Net", r"a relative import, "),
        ("x = 1\nraise RuntimeError('boom')", r"task.py failed while it was loaded: RuntimeError: boom\n  at .*:2"),
        ("import sys\nsys.exit(3)", r"called sys.exit\(3\)\n.*\n  fix: .*__main__"),
        ("def model(): pass", r"model\(\) of task.py returned None\n.*\n  fix: end model\(\) with `return"),
        ("from torch import nn\ndef model(): return nn.ReLU", r"returned the class ReLU.*\n.*\n  fix: .*ReLU\(\)"),
        ("def model(): return {}", r"returned a dict\n.*\n  fix: load a state dict"),
        ("def model(): return 1 / 0", r"model\(\) of task.py raised ZeroDivisionError.*\n  at .*task.py:1: def"),
        ("def model(size): pass", r"model\(size\) of task.py cannot be called without arguments"),
        ("def model(weights): pass", r"fix: give --weights F"),
        ("model = 3", r"`model` of task.py is an int"),
        (MODEL + "\n    def split(): pass", r"split\(\) of task.py takes the wrong arguments.*\n.*def split\(batch\)"),
        (MODEL + "\n    def forward(inputs): pass", r"forward\(inputs\) .*\n  expected: def forward\(model, inputs\)"),
        (MODEL + "\n    def test_data(size): pass", r"test_data\(size\) .*\n  expected: def test_data\(\)"),
        (MODEL + "\n    prediction = 'argmax'", r"`prediction` of task.py is a str\n  expected: a function prediction"),
    ],
)
def test_mistakes_in_a_file_name_the_file_the_function_and_what_was_expected(write, text, expected):
    write(text)
    with pytest.raises(TaskError, match=expected):
        load_task("task.py")


def test_the_users_own_error_is_kept_as_the_cause(write):
    write("def model(): raise KeyError('lost')")
    with pytest.raises(TaskError) as caught:
        load_task("task.py")
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_name_of_ones_own_that_is_not_near_or_is_private_is_no_mistake(write):
    write(MODEL + "\n    def _test_dataset(): pass\n    def helper(): pass\n    def data_for_tests(): pass")
    load_task("task.py")


def test_near_names_that_are_imported_or_beside_the_right_one_are_no_mistake(write):
    write("def train_dataset(): pass", "elsewhere.py")
    write(
        "from elsewhere import train_dataset\n"
        + textwrap.dedent(MODEL)
        + "def test_dataset(): pass\ndef test_data(): return test_dataset()\n"
    )
    load_task("task.py")


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("taks.py", r"there is no file taks.py\n.*\n  fix: did you mean `task.py`\?"),
        ("nowhere/task.py", "there is no file nowhere/task.py"),
        (".", "is a folder"),
        ("notes.txt", "is not a Python file"),
        ("pakage.nets", r"there is no module pakage \(from pakage.nets\)\n.*\n  fix: did you mean `package`\?"),
        ("package.nest", r"there is no module package.nest\n.*\n  fix: did you mean `nets`\?"),
        ("package.nets:buidl", r"package.nets has no `buidl`\n  fix: did you mean `build`\?"),
        ("package.nets:SIZE", "package.nets:SIZE is of type int"),
        ("package.failing", r"failed while it was loaded: ValueError: inside\n  at .*failing.py:1"),
        ("package.needs", r"No module named 'not_there_either'\n  at .*needs.py:1: import not_there_either"),
        ("what is this", "is neither a file nor a module name"),
    ],
)
def test_references_that_lead_nowhere(write, reference, expected):
    write(MODEL)
    write("", "notes.txt")
    write("", "package/__init__.py")
    write("def build(): pass\nSIZE = 3", "package/nets.py")
    write("raise ValueError('inside')", "package/failing.py")
    write("import not_there_either", "package/needs.py")
    with pytest.raises(TaskError, match=expected):
        load_task(reference)


def test_weights_for_a_model_that_takes_none(write):
    write(MODEL)
    with pytest.raises(TaskError, match=r"weights were given \(w.pt\), but model\(\) of task.py takes none"):
        load_task("task.py", weights="w.pt")
    with pytest.raises(TaskError, match="is a module already"):
        Task(nn.ReLU()).built("w.pt")


def test_a_file_that_fails_leaves_no_module_behind(write):
    write("raise RuntimeError")
    before = set(sys.modules)
    with pytest.raises(TaskError):
        load_task("task.py")
    assert not {name for name in set(sys.modules) - before if name.startswith("evalmode.task.file_")}


def test_data_that_is_empty_missing_or_endless():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter([torch.zeros(3)])

    model = nn.Linear(3, 2)
    for data in ([], list, (torch.zeros(0, 3), torch.zeros(0))):
        with pytest.raises(TaskError, match=r"test_data of .* is empty"):
            Task(model, test_data=data).data("test_data")
    with pytest.raises(TaskError, match=r"test_data\(\) of .* returned None"):
        Task(model, test_data=lambda: None).data("test_data")
    loader = DataLoader(Endless())
    assert Task(model, test_data=loader).data("test_data") is loader
    assert Task(model).data("train_data") is None
