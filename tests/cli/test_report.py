from pathlib import Path

import pytest

from evalmode.cli.main import main


@pytest.fixture
def certified(task_folder):
    assert main(["certify", "broken.py", "--out", "made", "--limit", "10"]) == 1
    return Path("made/certificate.json")


def test_the_page_lies_beside_its_certificate_or_where_it_is_asked_for(certified, capsys):
    first = Path("made/report.html").read_text(encoding="utf-8")
    Path("made/report.html").unlink()
    capsys.readouterr()
    assert main(["report", str(certified)]) == 0
    assert Path("made/report.html").read_text(encoding="utf-8") == first
    assert main(["report", str(certified), "-o", "elsewhere/page.html"]) == 0
    shown = capsys.readouterr()
    assert Path("elsewhere/page.html").read_text(encoding="utf-8") == first
    assert [line.split("  ")[0] for line in shown.out.splitlines()] == ["made/report.html", "elsewhere/page.html"]
    assert shown.err == ""
    assert "<title>BROKEN: broken.py</title>" in first
    assert "F.dropout(self.head(inputs), 0.5)" in first


def test_evaluations_stand_beside_the_certificate_or_alone(certified, capsys):
    import torch

    from evalmode.evaluation.evaluator import evaluate

    data = torch.rand(40, 4), torch.arange(40) % 3
    evaluate(torch.nn.Linear(4, 3), data, progress=False).save("other.json")
    evaluate(torch.nn.Linear(4, 3), data, progress=False, keep_predictions="other.parquet")
    assert main(["report", str(certified), "other.json", "other.parquet", "-o", "all.html"]) == 0
    page = Path("all.html").read_text(encoding="utf-8")
    assert [f'id="test-{number}"' in page for number in (1, 2, 3, 4)] == [True, True, True, False]
    assert main(["report", "other.json"]) == 0
    assert "<title>Linear</title>" in Path("report.html").read_text(encoding="utf-8")
    assert main(["report", str(certified), str(certified)]) == 2
    assert "2 certificates were given" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "{}", "not JSON"])
def test_what_is_no_certificate_is_the_users_mistake(task_folder, capsys, content):
    if content is not None:
        Path("c.json").write_text(content, encoding="utf-8")
    assert main(["report", "c.json"]) == 2
    assert "UsageError" in capsys.readouterr().err
    assert not Path("report.html").exists()


def test_a_place_that_cannot_be_written_is_the_users_mistake(certified, capsys):
    assert main(["report", str(certified), "-o", "task.py/report.html"]) == 2
    assert "cannot write 'task.py/report.html'" in capsys.readouterr().err


def test_each_evaluation_names_its_file_and_weights_and_equal_ones_are_one(certified, capsys):
    import torch

    from evalmode.evaluation.evaluator import evaluate

    data = torch.rand(40, 4), torch.arange(40) % 3
    digests = []
    for name in ("one", "two"):
        result = evaluate(torch.nn.Linear(4, 3), data, progress=False, keep_predictions=f"{name}.parquet")
        result.save(f"{name}.json")
        digests.append(result.model.fingerprint[:8])
    assert main(["report", "one.json", "one.parquet", "two.json", "-o", "all.html"]) == 0
    page = Path("all.html").read_text(encoding="utf-8")
    assert 'id="test-2"' in page and 'id="test-3"' not in page
    assert "one.json and one.parquet, Linear" in page and "two.json, Linear" in page
    assert all(f"weights {digest}" in page for digest in digests)
    assert f"Of other weights ({digests[1]}) than the first evaluation ({digests[0]})." in page
    for folder, name in (("a", "one"), ("b", "two")):
        Path(folder).mkdir()
        Path(f"{name}.json").rename(f"{folder}/result.json")
    assert main(["report", "a/result.json", "b/result.json", "-o", "both.html"]) == 0
    page = Path("both.html").read_text(encoding="utf-8")
    assert "a/result.json, Linear" in page and "b/result.json, Linear" in page
