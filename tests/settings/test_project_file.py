import os
import subprocess
import sys
from pathlib import Path

import pytest

import evalmode
from evalmode.errors import UsageError
from evalmode.settings.allowed import split_patterns
from evalmode.settings.project_file import Settings, read_settings

WHOLE = """
[tool.evalmode]
select = ["finite", "EM17"]
ignore = ["EM171"]
allow = ["*.mc_dropout"]
probes = "thorough"
inputs = ["8,3,32,32", "8,5:int64"]
task = "nets/task.py"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text, folder="."):
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "pyproject.toml").write_text(text, encoding="utf-8")


def test_every_key(folder):
    write(WHOLE)
    assert read_settings() == Settings(
        file=folder.resolve() / "pyproject.toml",
        keys=("select", "ignore", "allow", "probes", "inputs", "task"),
        select=("finite", "EM17"),
        ignore=("EM171",),
        allow=("*.mc_dropout",),
        probes="thorough",
        inputs=("8,3,32,32", "8,5:int64"),
        task="nets/task.py",
    )


@pytest.mark.parametrize("text", ["", "[project]\nname = 'x'\n", "tool = 3\n", "[tool]\n", "[tool.other]\na = 1\n"])
def test_nothing_is_set(folder, text):
    write(text)
    assert read_settings() == Settings()
    assert read_settings().origin == "no settings"


def test_the_nearest_file_with_the_table_is_read_from_a_file_or_folder_upward(folder):
    write('[tool.evalmode]\ntask = "far.py"')
    write('[tool.evalmode]\ntask = "near.py"', "one/two")
    write("[tool.ruff]\n", "one/two/three")
    assert read_settings("one/two/three/task.py").task == "near.py"
    assert read_settings("one/two/three").task == "near.py"
    assert read_settings("one").task == "far.py"
    assert read_settings("one/two/nowhere/else").task == "near.py"


@pytest.mark.parametrize(
    ("task", "reference"),
    [
        ("task.py", "../task.py"),
        ("nets/task.py:small", "../nets/task.py:small"),
        ("pkg.mod:attr", "pkg.mod:attr"),
        ("pkg", "pkg"),
    ],
)
def test_a_file_is_meant_from_the_folder_of_the_settings(folder, monkeypatch, task, reference):
    write(f'[tool.evalmode]\ntask = "{task}"')
    Path("below").mkdir()
    monkeypatch.chdir("below")
    settings = read_settings()
    assert settings.task_reference() == reference
    assert settings.origin == "[tool.evalmode] in ../pyproject.toml"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[tool.evalmode]\nignor = []", ["unknown key 'ignor'", "did you mean `ignore`?", "select, ignore"]),
        ("[tool.evalmode]\nxyz = 1", ["unknown key 'xyz'"]),
        ("[tool.evalmode.check]\nignore = []", ["unknown key 'check'"]),
        ('[tool.evalmode]\nignore = "EM171"', ["`ignore`", "a string: 'EM171'", 'fix: ignore = ["EM171"]']),
        ("[tool.evalmode]\nallow = [3]", ["`allow`", "holds a whole number: 3"]),
        ('[tool.evalmode]\nallow = [""]', ["`allow`", "holds a string: ''"]),
        ("[tool.evalmode]\nselect = true", ["`select`", "a boolean: True"]),
        ("[tool.evalmode]\ninputs = [[8, 3]]", ["`inputs`", "holds a list: [8, 3]", "8,3,224,224"]),
        ('[tool.evalmode]\nprobes = "thorogh"', ["`probes`", "'thorogh'", "did you mean 'thorough'?"]),
        ("[tool.evalmode]\nprobes = 3", ["`probes`", "a whole number: 3"]),
        ("[tool.evalmode]\ntask = 1979-05-27", ["`task`", "a date"]),
        ("[tool]\nevalmode = 3", ["is a whole number: 3", "expected: a table"]),
        ("[tool.evalmode\n", ["cannot be read as TOML", "line 1"]),
    ],
)
def test_mistakes_name_the_file_and_the_key(folder, text, parts):
    write(text)
    with pytest.raises(UsageError) as caught:
        read_settings()
    for part in ("pyproject.toml", *parts):
        assert part in str(caught.value)


def test_a_file_in_another_encoding_is_said(folder):
    Path("pyproject.toml").write_bytes("[tool.evalmode]\ntask = 'é.py'".encode("latin-1"))
    with pytest.raises(UsageError, match=r"pyproject\.toml cannot be read as TOML"):
        read_settings()


def test_one_allow_list_serves_every_model():
    from torch import nn

    model = nn.ModuleDict({"head": nn.Dropout(), "body": nn.ModuleDict({"mc_dropout": nn.Dropout()})})
    assert split_patterns(["*.mc_dropout", "tail", "h*"], model) == (("*.mc_dropout", "h*"), ("tail",))
    assert split_patterns(["*.mc_dropout"], print) == ((), ("*.mc_dropout",))
    assert split_patterns([], model) == ((), ())


def test_reading_settings_imports_neither_torch_nor_rich(folder):
    write(WHOLE)
    code = (
        "import sys; from evalmode.settings.project_file import read_settings;"
        "from evalmode.settings.selection import complete_selection;"
        "complete_selection(None, None, read_settings());"
        "sys.exit(str({'torch', 'rich'} & set(sys.modules)) if {'torch', 'rich'} & set(sys.modules) else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(evalmode.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
