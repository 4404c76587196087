import json
import math
import subprocess
import sys
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from tests.test_model_card import OPTIMIZATION, evaluation, tables
from tests.test_terminal import certificate

from evalmode.certificate import MetricRecord
from evalmode.cli.main import main
from evalmode.evaluation.predictions import write_predictions
from evalmode.evaluation.samples import Samples
from evalmode.terminal.model_card import HONEST, card_text


@pytest.fixture
def saved(tmp_path):
    """A certificate, the JSON of an evaluation, and its predictions."""
    made = certificate(optimization=OPTIMIZATION)
    found = evaluation("the test set", metrics=(MetricRecord(name="loss", value=math.inf),))
    parts = {"subject": found.subject, "evaluation": found.record, "model": found.model}
    parts |= {"inferred": (), "environment": found.environment}
    (tmp_path / "evaluation.json").write_bytes(msgspec.json.encode(parts))
    samples = Samples(np.arange(540))
    kept = evaluation("kept predictions")
    written = SimpleNamespace(**vars(kept), inferred=(), samples=samples, metrics={})
    return (
        made,
        str(made.save(tmp_path / "certificate.json")),
        str(tmp_path / "evaluation.json"),
        str(write_predictions(tmp_path / "predictions.parquet", written)),
    )


def test_the_card_of_a_certificate_is_printed(saved, capsys):
    made, path, _, _ = saved
    assert main(["card", path]) == 0
    shown = capsys.readouterr()
    assert shown.out == card_text(made)
    assert shown.err == ""


def test_a_certificate_and_evaluations_of_both_kinds_make_one_card(saved, capsys):
    _, *paths = saved
    assert main(["card", *paths]) == 0
    shown = capsys.readouterr().out
    assert "### Test set of the test set, evaluation.json, 540 samples" in shown
    assert "### Test set of kept predictions, predictions.parquet, 540 samples" in shown
    rows = tables(shown)
    assert ["accuracy", "99.8 %", "99.0 to 100.0 (95 %)", "539 of 540"] in rows
    assert ["loss", "nan", "none", ""] in rows  # JSON has no infinity, and the file says null
    assert shown.endswith(f"{HONEST}\n")


def test_it_is_written_to_a_file(saved, tmp_path, capsys):
    made, path, _, _ = saved
    assert main(["card", path, "--out", str(tmp_path / "new" / "CARD.md")]) == 0
    assert (tmp_path / "new" / "CARD.md").read_text(encoding="utf-8") == card_text(made)
    assert capsys.readouterr().out == ""


def test_no_torch_is_needed_for_a_certificate(saved):
    code = f"""
import sys
from evalmode.cli.main import main
main(["card", {saved[1]!r}])
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[]", "neither a certificate nor an evaluation"),
        (b'{"evaluation": 3}', "neither a certificate nor an evaluation"),
        (b'{"evaluation": {"samples": "many"}}', "is no evaluation"),
        (b'{"format_version": 9}', "certificate format 9"),
        (b'{"format_version": 1}', "is no certificate"),
        (b"PAR1", "is damaged"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, capsys, content, said):
    (tmp_path / "file").write_bytes(content)
    assert main(["card", str(tmp_path / "file")]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


def test_wrong_uses_end_with_2(saved, tmp_path, capsys):
    assert main(["card"]) == 2
    assert main(["card", str(tmp_path / "missing.json")]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert main(["card", saved[1], saved[1]]) == 2
    assert "2 certificates were given" in capsys.readouterr().err
    assert main(["card", saved[1], "-o", str(tmp_path)]) == 2
    assert "cannot write" in capsys.readouterr().err
    other = json.loads((tmp_path / "evaluation.json").read_text())
    other["model"]["fingerprint"] = "99"
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert main(["card", saved[1], str(tmp_path / "other.json")]) == 2
    assert "other weights" in capsys.readouterr().err
