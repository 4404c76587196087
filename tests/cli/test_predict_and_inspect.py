"""`evalmode predict` and `evalmode inspect`, on an artifact that a back end for tests has written."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.predictor.fake_backend import FEATURES, backend, predictor

from evalmode.cli.main import main
from evalmode.predictor import artifact, manifest


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`model.evalmode` in the current folder, beside `x.npy` with three samples for it."""
    for module in (artifact, manifest):
        monkeypatch.setattr(module, "backend_of", lambda name: backend())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    np.save("x.npy", inputs())
    return predictor((2, 8)).save(tmp_path / "model.evalmode")


def inputs(samples: int = 3) -> Any:
    return np.linspace(-1, 1, samples * FEATURES, dtype=np.float32).reshape(samples, FEATURES)


def expected(samples: int = 3) -> torch.Tensor:
    """The first output, that of each sample."""
    return artifact.load("model.evalmode").run_flat([torch.from_numpy(inputs(samples))])[0]


def answered(capsys: pytest.CaptureFixture[str]) -> torch.Tensor:
    shown = capsys.readouterr()
    assert shown.err == ""
    return torch.tensor(json.loads(shown.out)["logits"])


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors", "json"])
def test_every_format_is_read_and_written(model: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = predictor((2, 8)).signature.inputs[0].name
    if ending == "npz":
        np.savez("in.npz", **{name: inputs()})
    elif ending == "safetensors":
        safetensors.torch.save_file({name: torch.from_numpy(inputs())}, "in.safetensors")
    elif ending == "json":
        Path("in.json").write_text(json.dumps(inputs().tolist()), encoding="utf-8")
    else:
        np.save("in.npy", inputs())
    assert main(["predict", str(model), f"in.{ending}"]) == 0
    assert torch.equal(answered(capsys), expected())
    assert main(["predict", str(model), "x.npy", "-o", f"out.{ending}"]) == (2 if ending == "npy" else 0)
    shown = capsys.readouterr()
    assert shown.out == ""
    if ending == "npy":
        assert "out.npy can hold one tensor; there are logits" in shown.err
        assert not Path("out.npy").exists()
        return
    if ending == "json":
        written = torch.tensor(json.loads(Path("out.json").read_text(encoding="utf-8"))["logits"])
    elif ending == "safetensors":
        written = safetensors.torch.load_file("out.safetensors")["logits"]
    else:
        written = torch.from_numpy(np.load("out.npz", allow_pickle=False)["logits"])
    assert torch.equal(written, expected())


def test_json_on_standard_input(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(inputs().tolist())))
    assert main(["predict", str(model), "-"]) == 0
    assert torch.equal(answered(capsys), expected())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "standard input is no JSON"),
        ("nonsense", "{name: [...]}\n"),
        ("null", "standard input holds no tensor"),
        ("[null]", "standard input holds no tensor"),
        ('["a"]', "standard input holds no tensor"),
        ("[[1, 2], [3]]", "lists of numbers of equal lengths"),
        ("[[99999999999999999999999, 1]]", "standard input holds no tensor"),
        ("{}", "standard input holds nothing"),
        ('{"other": [[1.0]]}', "standard input holds other"),
        ("3", "BatchError"),
        ("[[1.0]]", f"float32[any, {FEATURES}]"),
    ],
)
def test_json_that_is_no_batch_is_refused(
    model: Path, text: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert main(["predict", str(model), "-"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.evalmode", "missing.npy"], "cannot read missing.npy: No such file"),
        (["model.evalmode", "weights.pt"], "pickled files can run code"),
        (["model.evalmode", "."], "*.npy or *.npz"),
        (["model.evalmode", "objects.npy"], "objects.npy is no .npy file"),
        (["model.evalmode", "double.npy"], "array.astype('float32')"),
        (["model.evalmode", "wide.npy"], f"float32[any, {FEATURES}]"),
        (["model.evalmode", "sample.npy"], "add a batch axis"),
        (["model.evalmode", "x.npy", "-o", "out.txt"], "cannot tell the format of out.txt"),
        (["model.evalmode", "x.npy", "-o", "no/out.npy"], "mkdir -p no"),
        (["missing.evalmode", "x.npy"], "cannot read 'missing.evalmode'"),
        (["x.npy", "x.npy"], "is no artifact of evalmode"),
        (["model.evalmode"], "Missing argument"),
    ],
)
def test_misuse_of_predict_is_refused(
    model: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("double.npy", np.full((2, FEATURES), 0.1))
    np.save("sample.npy", np.ones(FEATURES, dtype=np.float32))
    np.save("wide.npy", np.ones((2, FEATURES + 1), dtype=np.float32))
    assert main(["predict", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert "Traceback" not in shown.err


def test_whole_numbers_and_no_samples_are_taken(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("whole.npy", np.ones((2, FEATURES), dtype=np.int64))
    assert main(["predict", str(model), "whole.npy"]) == 0
    assert len(answered(capsys)) == 2
    np.save("none.npy", np.ones((0, FEATURES), dtype=np.float32))
    assert main(["predict", str(model), "none.npy"]) == 0
    assert answered(capsys).numel() == 0


@pytest.mark.parametrize("width", ["40", "80"])
def test_inspect_shows_what_the_file_holds(
    model: Path, width: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert main(["inspect", "model.evalmode"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert max(map(len, shown.out.splitlines())) <= int(width)
    assert "\x1b" not in shown.out
    for text in ("takes", "gives", "needs", "made on", "certificate"):
        assert any(line.startswith(text) for line in shown.out.splitlines())


def test_inspect_gives_the_whole_manifest_as_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "model.evalmode", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["batch"] for each in found["plan"]["configurations"]] == [2, 8]
    assert found["payloads"] and found["certificate"] is None


def test_inspect_runs_nothing_of_the_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> Any:
        raise AssertionError(f"{name} was asked for")

    for module in (artifact, manifest):
        monkeypatch.setattr(module, "backend_of", fails)
    assert main(["inspect", "model.evalmode"]) == 0


@pytest.mark.parametrize("kind", ["missing", "a folder", "a zip file", "half of it", "a flipped byte", "empty"])
def test_what_is_no_whole_artifact_is_refused(model: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole, path = model.read_bytes(), Path("other.evalmode")
    if kind == "a folder":
        path.mkdir()
    elif kind == "a zip file":
        np.savez("z.npz", a=np.ones(2))
        path.write_bytes(Path("z.npz").read_bytes())
    elif kind == "half of it":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "a flipped byte":
        path.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    elif kind == "empty":
        path.write_bytes(b"")
    for command in (["inspect", str(path)], ["predict", str(path), "x.npy"]):
        assert main(command) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("ArtifactError: ")
        assert "Traceback" not in shown.err
