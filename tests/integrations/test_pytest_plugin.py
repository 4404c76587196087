import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import evalmode
from evalmode.errors import ContractBrokenError, ModelRunError, UsageError
from evalmode.integrations import pytest_plugin
from evalmode.integrations.pytest_plugin import assert_evaluation_contract

ROOT = Path(evalmode.__file__).parents[2]
NETS = """
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return F.dropout(self.linear(x), 0.5)

    def broken():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), Head()).eval()

    def clean():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3)).eval()

    batch = torch.linspace(-1, 1, 32).reshape(8, 4)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with models and a function that runs pytest there on a test file, in a fresh process."""
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(textwrap.dedent(NETS), encoding="utf-8")
    Path("pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n', encoding="utf-8")

    def run(code, *options, plugin=True, **variables):
        Path("test_net.py").write_text(textwrap.dedent(code), encoding="utf-8")
        loaded = ["-p", "evalmode.integrations.pytest_plugin", "-W", "error"] if plugin else []
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100", **variables}
        if plugin:
            environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        return subprocess.run(
            [sys.executable, "-m", "pytest", *loaded, *options],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=170,
        )

    return run


BOTH = """
    from nets import batch, broken, clean

    def test_clean(assert_evaluation_contract):
        report = assert_evaluation_contract(clean(), batch)
        assert report.ok

    def test_broken(assert_evaluation_contract):
        assert_evaluation_contract(broken(), batch)
"""


@pytest.mark.parametrize("style", ["auto", "native"])
def test_a_clean_model_passes_and_a_broken_one_fails_with_its_findings(project, style):
    done = project(BOTH, f"--tb={style}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "breaks the evaluation contract: no-randomness" in done.stdout
    assert re.search(r"✗ no-randomness\s+functional dropout is on in evaluation mode", done.stdout)
    assert re.search(r"where\s+1\s+nets\.py:12\s+return F\.dropout\(self\.linear\(x\), 0\.5\)", done.stdout)
    assert "evalmode explain EM122" in done.stdout
    report = done.stdout[done.stdout.index("breaks the evaluation contract") :].splitlines()
    last = next(index for index, line in enumerate(report) if " kept, " in line)
    assert max(map(len, report[: last + 1])) <= 100


def test_the_traceback_ends_in_the_users_own_line(project):
    done = project(BOTH)
    assert ">       assert_evaluation_contract(broken(), batch)" in done.stdout
    assert "pytest_plugin.py" not in done.stdout
    assert "runner.py" not in done.stdout


def test_a_model_that_fails_shows_its_own_line_and_not_those_of_evalmode(project):
    done = project("""
        import torch
        from nets import clean

        def test_it(assert_evaluation_contract):
            assert_evaluation_contract(clean(), torch.zeros(8, 5))
    """)
    assert done.returncode == 1
    assert "ModelRunError" in done.stdout
    assert "mat1 and mat2 shapes cannot be multiplied" in done.stdout
    assert "pytest_plugin.py" not in done.stdout


def test_the_function_can_be_imported_and_serves_unittest(project):
    done = project("""
        import unittest
        from evalmode.integrations.pytest_plugin import assert_evaluation_contract
        from nets import batch, broken, clean

        class TestNets(unittest.TestCase):
            def test_clean(self):
                assert_evaluation_contract(clean(), batch, clauses=["no-randomness"])

            def test_broken(self):
                with self.assertRaises(AssertionError):
                    assert_evaluation_contract(broken(), batch, clauses=["no-randomness"])
    """)
    assert done.returncode == 0, done.stdout


PROBES = """
    import evalmode.checking.runner as runner
    from nets import batch, clean

    def test_it(assert_evaluation_contract, monkeypatch):
        asked = []
        check = runner.check
        monkeypatch.setattr(runner, "check", lambda *a, **k: asked.append(k["probes"]) or check(*a, **k))
        assert_evaluation_contract(clean(), batch, clauses=["finite"])
        assert_evaluation_contract(clean(), batch, clauses=["finite"], probes="thorough")
        print("asked:", *asked)
"""


@pytest.mark.parametrize(
    ("file", "options", "asked"),
    [
        ("", [], "default thorough"),
        ('probes = "fast"', [], "fast thorough"),
        ('probes = "thorough"', ["--evalmode-probes", "fast"], "fast thorough"),
    ],
)
def test_probes_of_the_call_then_the_option_then_the_file(project, file, options, asked):
    with Path("pyproject.toml").open("a", encoding="utf-8") as settings:
        settings.write(f"[tool.evalmode]\n{file}\n")
    done = project(PROBES, "-s", *options)
    assert done.returncode == 0, done.stdout
    assert f"asked: {asked}" in done.stdout


def test_the_option_knows_its_values_and_stands_in_the_help(project):
    assert "invalid choice: 'many'" in project(PROBES, "--evalmode-probes", "many").stderr
    assert "--evalmode-probes={fast,default,thorough}" in project(PROBES, "--help").stdout
    assert "assert_evaluation_contract" in project(PROBES, "--fixtures").stdout


def test_settings_of_the_project_above_the_root_folder_are_used_and_named(project):
    with Path("pyproject.toml").open("a", encoding="utf-8") as settings:
        settings.write('[tool.evalmode]\nignore = ["EM122"]\nallow = ["*.nothing"]\nselect = ["no-randomness"]\n')
    code = """
        import os
        from nets import batch, broken

        def test_ignored(assert_evaluation_contract, tmp_path, monkeypatch):
            monkeypatch.chdir(tmp_path)
            report = assert_evaluation_contract(broken(), batch)
            assert [finding.severity for finding in report.findings] == ["ignored"]

        def test_not_ignored(assert_evaluation_contract):
            assert_evaluation_contract(broken(), batch, ignore=["EM121"])
    """
    done = project(code)
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert re.search(r"settings: select from \[tool\.evalmode\] in pyproject\.toml", done.stdout)


def test_a_mistake_in_the_settings_fails_only_the_tests_that_need_them(project):
    with Path("pyproject.toml").open("a", encoding="utf-8") as settings:
        settings.write("[tool.evalmode]\nignored = []\n")
    done = project(BOTH + "\n    def test_other():\n        pass\n")
    assert "2 failed, 1 passed" in done.stdout
    assert "unknown key 'ignored'" in done.stdout


def test_it_works_with_xdist(project):
    pytest.importorskip("xdist")
    done = project(BOTH, "-p", "xdist", "-n", "2", "--evalmode-probes", "fast")
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "✗ no-randomness" in done.stdout


START = """
    import sys

    def test_nothing():
        assert "evalmode.integrations.pytest_plugin" in sys.modules
        assert {"torch", "rich", "numpy", "msgspec"} & set(sys.modules) == set()
"""


def test_starting_pytest_loads_neither_torch_nor_rich(project):
    done = project(START)
    assert done.returncode == 0, done.stdout


def test_an_installed_evalmode_is_found_by_its_entry_point(project, tmp_path):
    points = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    assert points == {"pytest11": {"evalmode": pytest_plugin.__name__}}
    installed = tmp_path / "site" / "evalmode-0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: evalmode\nVersion: 0\n", encoding="utf-8")
    (installed / "entry_points.txt").write_text(
        f"[pytest11]\nevalmode = {pytest_plugin.__name__}\n", encoding="utf-8"
    )  # fmt: skip
    path = os.pathsep.join([str(ROOT / "src"), str(tmp_path / "site")])
    done = project(BOTH, plugin=False, PYTHONPATH=path)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "✗ no-randomness" in done.stdout
    refused = project(BOTH, "-p", "no:evalmode", plugin=False, PYTHONPATH=path)
    assert "fixture 'assert_evaluation_contract' not found" in refused.stdout


def test_the_pytest_line_of_the_readme_works(project):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "def test_" in block]
    assert "1 passed" in project(f"from nets import batch, clean\nmodel = clean()\n\n{code}").stdout
    done = project(f"from nets import batch, broken\nmodel = broken()\n\n{code}")
    assert "1 failed" in done.stdout
    assert "✗ no-randomness" in done.stdout


class Scaled(nn.Module):
    def forward(self, x):
        return x / x.abs().amax()


def test_in_process():
    batch = torch.randn(8, 4)
    assert assert_evaluation_contract(nn.Linear(4, 3).eval(), batch, probes="fast").ok
    with pytest.raises(ContractBrokenError, match="breaks the evaluation contract: batch-independent") as caught:
        assert_evaluation_contract(nn.Sequential(Scaled()).eval(), batch, clauses=["batch-independent"])
    assert "evalmode explain EM171" in str(caught.value)
    report = assert_evaluation_contract(nn.Sequential(Scaled()).eval(), batch, clauses=["EM17"], ignore="EM171")
    assert [finding.severity for finding in report.findings] == ["ignored"]
    assert_evaluation_contract(nn.Sequential(Scaled()).eval(), batch, allow=["0"], clauses=["batch-independent"])


def test_mistakes_in_a_call():
    batch = torch.randn(8, 4)
    with pytest.raises(UsageError, match="clauses=: 'finit' is no clause or code"):
        assert_evaluation_contract(nn.Linear(4, 3).eval(), batch, clauses=["finit"])
    with pytest.raises(UsageError, match="ignore=: 'EM999'"):
        assert_evaluation_contract(nn.Linear(4, 3).eval(), batch, ignore=["EM999"])
    with pytest.raises(ModelRunError) as caught:
        assert_evaluation_contract(nn.Linear(5, 3).eval(), batch)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(TypeError, match="unknown_option"):
        assert_evaluation_contract(nn.Linear(4, 3).eval(), batch, unknown_option=1)
