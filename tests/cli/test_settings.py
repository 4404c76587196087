from pathlib import Path

import pytest

from evalmode.certificate import Certificate
from evalmode.cli.main import main


def write(text, folder="."):
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "pyproject.toml").write_text(f"[tool.evalmode]\n{text}\n", encoding="utf-8")


def test_the_file_is_used_and_named(task_folder, capsys):
    write('task = "broken.py"\nselect = ["no-randomness", "finite"]\nignore = ["EM122"]\nprobes = "fast"')
    assert main(["check"]) == 0
    shown = capsys.readouterr()
    assert "ignored: EM122 at the model itself (by [tool.evalmode] in pyproject.toml)" in shown.out.splitlines()
    assert "1 kept, 0 broken, 1 allowed, 0 not tested" in shown.out
    assert shown.err.splitlines()[0] == "settings: task, select, ignore, probes from [tool.evalmode] in pyproject.toml"


@pytest.mark.parametrize("options", [["--ignore", ""], ["--ignore", "EM121"], ["--select", "EM122"]])
def test_an_option_wins_over_the_file(task_folder, capsys, options):
    write('select = ["no-randomness"]\nignore = ["EM122"]\nprobes = "thorough"')
    assert main(["check", "broken.py", "--probes", "fast", *options]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("settings: ")]
    assert "probes" not in "".join(said)


def test_a_file_that_is_not_used_is_not_named(task_folder, capsys):
    write('task = "broken.py"\nallow = ["*.mc_dropout"]\ninputs = ["8,99"]')
    assert main(["check", "task.py", "--select", "finite"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "settings: '*.mc_dropout' of `allow` matches no module of this model",
        "probes: the first 16 samples of the test data",
    ]


def test_the_file_beside_the_task_is_read_wherever_one_stands(task_folder, capsys, monkeypatch):
    write('ignore = ["no-randomness"]')
    write('ignore = ["finite"]', "elsewhere")
    monkeypatch.chdir("elsewhere")
    assert main(["check", "../broken.py", "--select", "restores,no-randomness"]) == 1
    # what the option names is tested although the file ignores it
    assert main(["check", "../broken.py", "--select", "EM12"]) == 1
    assert main(["check", "../broken.py"]) == 0
    assert "settings: ignore from [tool.evalmode] in ../pyproject.toml" in capsys.readouterr().err


def test_the_task_of_the_file_is_found_from_below_its_folder(task_folder, capsys, monkeypatch):
    write('task = "task.py"\nselect = ["finite"]')
    Path("deep/down").mkdir(parents=True)
    monkeypatch.chdir("deep/down")
    assert main(["check"]) == 0
    assert "[tool.evalmode] in ../../pyproject.toml" in capsys.readouterr().err


def test_inputs_stand_in_for_data(task_folder, capsys):
    write('inputs = ["8,3"]\nselect = ["finite"]')
    assert main(["check", "torch.nn:ReLU"]) == 0
    shown = capsys.readouterr().err.splitlines()
    assert shown == [
        "settings: inputs, select from [tool.evalmode] in pyproject.toml",
        "input 8,3: standard normal numbers",
    ]
    assert main(["check", "torch.nn:ReLU", "--input", "4,2"]) == 0
    assert "--input 4,2: standard normal numbers" in capsys.readouterr().err


def test_one_allow_list_for_several_models(task_folder, capsys):
    more = """
class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.sampling = Broken()
    def forward(self, inputs):
        return self.sampling(inputs)
def wrapper(): return Wrapper()
"""
    with Path("broken.py").open("a", encoding="utf-8") as file:
        file.write(more)
    write('allow = ["sampling", "*.mc_dropout"]\nselect = ["no-randomness"]\ninputs = ["8,4"]')
    assert main(["check", "broken.py:wrapper"]) == 0
    shown = capsys.readouterr()
    assert "~ no-randomness" in shown.out
    assert "settings: '*.mc_dropout' of `allow` matches no module of this model" in shown.err
    assert main(["check", "broken.py:wrapper", "--allow", "*"]) == 0
    assert main(["check", "broken.py:wrapper", "--allow", ""]) == 1
    assert main(["check", "broken.py:wrapper", "--allow", "nothing"]) == 2


def test_certify_uses_the_file(task_folder, capsys):
    write('task = "broken.py"\nselect = ["no-randomness", "finite"]\nignore = ["EM122"]\nprobes = "fast"')
    assert main(["certify", "--limit", "8"]) == 0
    shown = capsys.readouterr()
    assert "settings: task, select, ignore, probes from [tool.evalmode] in pyproject.toml" in shown.err
    assert "~ no-randomness        ignored: EM122 at the model itself (by" in shown.out
    assert "KEPT  1 of 2 clauses" in shown.out
    kept = Certificate.load("certificate.json")
    assert [(finding.code, finding.severity) for finding in kept.findings] == [("EM122", "ignored")]
    assert main(["certify", "--limit", "8", "--ignore", "finite"]) == 1
    assert "not tested: ignored by --ignore" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "certify"])
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('ignroe = ["EM171"]', ["[tool.evalmode] in pyproject.toml", "unknown key 'ignroe'", "`ignore`"]),
        (
            'ignore = ["EM17x"]',
            ["[tool.evalmode] in pyproject.toml: 'EM17x' is no clause or code", "did you mean `EM17"],
        ),
        ('select = ["finit"]', ["[tool.evalmode] in pyproject.toml: 'finit'", "did you mean `finite`?"]),
        ('task = "nowhere.py"', ["there is no file nowhere.py"]),
        ('task = ["task.py"]', ["`task` of [tool.evalmode] in pyproject.toml is a list"]),
        ("task = ", ["pyproject.toml cannot be read as TOML"]),
        ("", [" was given no TASK", 'task = "task.py"']),
    ],
)
def test_mistakes_end_with_2(task_folder, capsys, command, text, parts):
    write(text)
    assert main([command]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [part for part in parts if part not in shown.err] == []
    assert "Traceback" not in shown.err


def test_a_shape_in_the_file_that_cannot_be_read(task_folder, capsys):
    write('inputs = ["8x3"]')
    assert main(["check", "torch.nn:ReLU"]) == 2
    assert "`inputs` of [tool.evalmode] in pyproject.toml '8x3' cannot be read" in capsys.readouterr().err
