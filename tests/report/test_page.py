"""The page as a browser's parser sees it: its structure, its content, and what hostile or broken records do to it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from evalmode.certificate import (
    CalibrationBin,
    Certificate,
    ClauseResult,
    ConfusionRecord,
    Environment,
    EvaluationRecord,
    MetricRecord,
    ModelRecord,
    PlanRecord,
    SampleRecord,
    SliceRecord,
)
from evalmode.clause import Verdict
from evalmode.errors import MissingExtraError, UsageError
from evalmode.finding import Finding, Place
from evalmode.report.page import PROMISE, report_html, write_report

VOID = {"meta", "link", "img", "br", "input", "hr", "line"}
replace = msgspec.structs.replace


class Seen(HTMLParser):
    """Tags in order, with their attributes; text; and whether every tag that was opened is closed in its place."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of <{tag}> stands twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def skeleton(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attributes)) for tag, attributes in self.tags]


@pytest.fixture(scope="module")
def page(certificate: Certificate) -> str:
    return report_html(certificate)


def test_landmarks_headings_captions_and_alternatives(page):
    seen = Seen(page)
    assert seen.open == []
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(seen.all(landmark)) == 1, landmark
    levels = [int(tag[1]) for tag, _ in seen.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    tables = len(seen.all("table"))
    assert tables >= 7
    assert len(seen.all("caption")) == tables
    assert all(cell.get("scope") in {"row", "col"} for cell in seen.all("th"))
    assert all(image.get("alt") for image in seen.all("img"))
    assert seen.all("html") == [{"lang": "en"}]


def test_ids_are_unique_and_every_reference_has_its_end(page):
    seen = Seen(page)
    ids = [attributes["id"] for _, attributes in seen.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    referred = [link["href"][1:] for link in seen.all("a")]
    referred += [attributes["aria-labelledby"] for _, attributes in seen.tags if attributes.get("aria-labelledby")]
    assert len(referred) > 12
    assert set(referred) <= set(ids)


def test_nothing_is_loaded_from_anywhere(page):
    seen = Seen(page)
    for tag, attributes in seen.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:image/png;base64,", "data:,")) or not value, (tag, name, value[:80])
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert not re.search(r"@import|url\(|\bfetch\b|XMLHttpRequest|\beval\b\s*\(\s*[^)\s<]", seen_code(page))


def seen_code(page: str) -> str:
    return "".join(re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", page, re.DOTALL))


def test_the_policy_lets_this_style_and_this_script_run_and_nothing_else(page):
    meta = next(item for item in Seen(page).all("meta") if item.get("http-equiv") == "Content-Security-Policy")
    rules = dict(part.split(" ", 1) for part in meta["content"].split("; "))
    for tag in ("style", "script"):
        inner = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL).group(1)
        mark = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{mark}'"
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"


def test_the_verdict_and_the_promise_come_first(page, broken):
    kept = Seen(page).words
    assert kept.index(PROMISE) < kept.index("kept") < kept.index("examples/digits/task.py", 60) < kept.index("Contract")
    assert "10 of 10 clauses kept on 243 probes, 0 not tested" in kept
    seen = Seen(report_html(broken))
    assert "KEPT" not in seen.words
    assert "5 of 9 clauses kept on 223 probes, 2 broken, 1 allowed, 1 undecided, 1 not tested" in seen.words
    assert [item["class"] for item in seen.all("p") if "verdict" in (item.get("class") or "")] == ["verdict broken"]
    assert "BROKEN: net.py" in seen.words


def test_a_finding_has_its_place_what_was_seen_and_the_fix(broken):
    words = Seen(report_html(broken)).words
    for finding in broken.findings:
        place = finding.place
        for part in (finding.summary, finding.code, place.module, place.source, finding.seen, finding.fix):
            assert part in words, part
        assert f"evalmode explain {finding.code}" in words
    assert "net.py:41" in words
    assert "net.py:57" in words


def test_every_figure_of_the_evaluation_is_there(page, evaluation):
    words = Seen(page).words
    accuracy = evaluation.metrics[0]
    assert f"{accuracy.count} of {accuracy.total}" in words
    assert f"{100 * accuracy.value:.1f} %" in words
    assert f"{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}" in words
    for item in evaluation.calibration:
        if item.count:
            assert f"{100 * item.confidence:.1f} % {100 * item.accuracy:.1f} %" in words
    for bad in evaluation.bad:
        assert f"{bad.id} {bad.reason}" in words
    images = [image["src"].removeprefix("data:image/png;base64,") for image in Seen(page).all("img")]
    assert images == [sample.image for sample in evaluation.worst]
    assert "evidence, not a proof" in words


def test_several_evaluations_are_told_apart(certificate, evaluation):
    class Result:
        record = msgspec.structs.replace(evaluation, batch_size=32)
        subject = "candidate.py"

    other = msgspec.structs.replace(evaluation, batch_size=16)
    words = Seen(report_html(certificate, [Result(), other])).words
    assert "Test set 1 openvino" in words
    assert "Test set 2 candidate.py, openvino" in words
    assert "Test set 3" in words


def test_an_evaluation_that_is_there_already_is_shown_once(certificate, evaluation):
    import dataclasses

    @dataclasses.dataclass
    class Given:
        record: object
        model: object
        subject: str = "digits"
        source: str = "kept.parquet"

    again = msgspec.structs.replace(evaluation, seconds=9.0, same_answers=None)
    same = [again, Given(again, certificate.model), again]
    assert report_html(certificate, same).count('id="test-title-') == 1
    assert report_html(None, same[:1] * 3).count('id="test-title-') == 1
    other = msgspec.structs.replace(certificate.model, fingerprint="77" * 32)
    assert report_html(certificate, [Given(again, other)]).count('id="test-title-') == 2
    assert report_html(certificate, [msgspec.structs.replace(again, plan="")]).count('id="test-title-') == 2


def test_no_plan_is_said_to_be_tried_that_was_not(certificate):
    outcomes = {plan.outcome for plan in certificate.optimization.plans}
    assert {"not tried", "not installed"} <= outcomes
    assert "Plans that were tried" not in report_html(certificate)


def test_an_evaluation_alone_needs_no_certificate(evaluation):
    seen = Seen(report_html(None, [evaluation], title="the candidate"))
    assert "the candidate" in seen.words
    assert "Contract" not in seen.words
    assert not [item for item in seen.all("p") if "verdict" in (item.get("class") or "")]


def test_an_empty_certificate_says_that_nothing_was_tested(certificate):
    bare = Certificate(created="", subject="", model=certificate.model, environment=certificate.environment)
    words = Seen(report_html(bare)).words
    assert "not tested" in words
    assert "no clause was tested" in words
    assert "kept" not in words


def test_neither_certificate_nor_evaluation():
    with pytest.raises(UsageError, match="neither a certificate nor an evaluation"):
        report_html(None)


@pytest.mark.parametrize("name", ["altair", "jinja2", "vl_convert"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(certificate, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"(?s)pip install 'evalmode\[evaluate\]'"):
        report_html(certificate)


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; alert(1); '",
    "</style></script></title><b>",
    "{{ 7 * 7 }}{% raw %}",
    "a & b &amp; c &#60;",
    "]]>--><!--",
    "\x00\x1b[31m\u202egnp.exe\ud800\ufffe",
    "javascript:alert(1)",
)


def named(certificate: Certificate, name: str) -> Certificate:
    """The certificate with `name` wherever a user, a model or a file may name something."""
    test = certificate.evaluation
    sample = replace(test.worst[0], id=name, target=name, prediction=name)
    odd = replace(sample, image=name)
    part = SliceRecord(by=name, name=name, samples=3, metrics=(replace(test.metrics[0], name=name),), note=name)
    finding = Finding("EM171", "finite", name, Place(name, name, 3, name), seen=name, fix=name)
    plans = tuple(replace(plan, name=name, reason=name) for plan in certificate.optimization.plans)
    return replace(
        certificate,
        subject=name,
        created=name,
        inputs=name,
        probes=name,
        inferred=(name,),
        findings=(finding, replace_finding(finding, name)),
        model=replace(certificate.model, name=name, fingerprint=name),
        environment=replace(certificate.environment, processor=name, platform=name, device=name, torch=name),
        clauses=tuple(replace(item, evidence=name, notes=(name, name)) for item in certificate.clauses),
        optimization=replace(certificate.optimization, plans=plans, notes=(name,), tolerance=name, objective=name),
        evaluation=replace(
            test,
            plan=name,
            metrics=tuple(replace(metric, name=name, method=name) for metric in test.metrics),
            slices=(part,),
            confusion=replace(test.confusion, labels=(name,) * 10),
            worst=(sample, odd),
            bad=tuple(replace(item, id=name, reason=name) for item in test.bad),
            notes=(name,),
            data=name,
        ),
    )


def replace_finding(finding: Finding, clause: str) -> Finding:
    return Finding(finding.code, clause, finding.summary, finding.place, finding.seen, finding.fix)


@pytest.fixture(scope="module")
def harmless(certificate: Certificate) -> Seen:
    return Seen(report_html(named(certificate, "harmless")))


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_text_and_change_nothing_else(certificate, harmless, name):
    page = report_html(named(certificate, name))
    page.encode("utf-8")
    seen = Seen(page)
    assert seen.skeleton() == harmless.skeleton()
    assert seen.open == []
    plots = [ET.fromstring(plot) for plot in re.findall(r'<svg class="plot".*?</svg>', page, re.DOTALL)]
    points = [item for item in plots[0].iter() if "point" in (item.get("class") or "").split()]
    assert len(plots) == 2
    assert len(points) == 6
    if name.isprintable():
        assert seen.words.count(" ".join(name.split())) > 25
        assert all(name in item.get("aria-label") for item in points)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\ufffe]", page)


NOTHING = (None, float("nan"), float("inf"), float("-inf"))


@pytest.mark.parametrize("value", NOTHING)
def test_values_that_are_no_numbers(certificate, value):
    number = float("nan") if value is None else value
    metric = MetricRecord(name="loss", value=number, low=value, high=value, count=3, total=4)
    plan = PlanRecord(
        name="odd", outcome="verified", samples_per_second=value, speedup=value, error=value, build_seconds=value
    )
    sizes = ClauseResult(
        clause="batch-independent",
        verdict=Verdict.KEPT,
        measured={
            "size classes": [[1], [2]],
            "largest difference": value,
            "differences between classes": [[], [value]],
        },
    )
    test = EvaluationRecord(
        samples=0,
        batch_size=0,
        seconds=number,
        metrics=(metric,),
        slices=(SliceRecord(by="a", name="b", samples=0, metrics=(metric,), p_value=value),),
        calibration=(CalibrationBin(low=0, high=1, count=2, confidence=value, accuracy=value),),
        worst=(SampleRecord(id="1", loss=value),),
        confusion=ConfusionRecord(labels=(), counts=()),
    )
    record = replace(certificate.optimization, plans=(plan, plan), seconds=number)
    seen = Seen(
        report_html(replace(certificate, clauses=(sizes,), optimization=record, evaluation=test, seconds=number))
    )
    assert not re.search(r"\bnan\b|\binf\b|None", seen.words)
    assert "≠" in seen.words


@pytest.mark.parametrize(
    "measured",
    [
        {"size classes": None},
        {"size classes": [["a"], 3]},
        {"size classes": [[1], [2]], "differences between classes": [[], None]},
        {"size classes": [[1], [2]], "differences between classes": "far", "answers compared": "all"},
    ],
)
def test_measurements_of_another_form_break_no_page(certificate, measured):
    odd = ClauseResult(clause="batch-independent", verdict=Verdict.KEPT, measured=measured)
    Seen(report_html(replace(certificate, clauses=(odd,))))


def test_a_page_of_everything_at_once_is_below_3_mb(certificate):
    classes = 1_000
    rows = [[0] * classes for _ in range(classes)]
    for one in range(classes):
        rows[one][one], rows[one][(one * 7 + 1) % classes] = 40, 1 + one % 5
    metric = MetricRecord(name="accuracy", value=0.5, low=0.2, high=0.8, count=5, total=10)
    image = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(200_000)).decode()
    huge = "x" * 1_000_000
    finding = Finding("EM171", "finite", huge, Place(huge, huge, 1, huge), seen=huge, fix=huge)
    test = replace(
        certificate.evaluation,
        confusion=ConfusionRecord(labels=tuple(map(str, range(classes))), counts=tuple(map(tuple, rows))),
        slices=tuple(SliceRecord(by="class", name=f"{i}", samples=10, metrics=(metric,) * 3) for i in range(200)),
        worst=tuple(SampleRecord(id=str(i), image=image) for i in range(100)),
        notes=(huge,),
    )
    full = replace(
        certificate,
        evaluation=test,
        subject=huge,
        findings=(finding,) * 500,
        optimization=replace(certificate.optimization, plans=certificate.optimization.plans * 100),
    )
    page = report_html(full)
    assert len(page.encode()) < 3_000_000
    words = Seen(page).words
    assert "188 more slices" in words
    assert "475 further findings in the certificate" in words
    assert "680 further plans in the certificate" in words
    assert "image left out: the page is full" in words
    assert "24 most confused of 1,000 classes" in words


def test_an_image_that_is_no_png_is_not_drawn(certificate, evaluation):
    for image in ("aGVsbG8=", 'x" onerror="alert(1)', base64.b64encode(b"<svg onload=alert(1)>").decode(), "é"):
        odd = replace(evaluation, worst=(SampleRecord(id="5", image=image),))
        seen = Seen(report_html(None, [odd]))
        assert seen.all("img") == []
        assert "its image is no PNG" in seen.words


def test_written_whole_or_not_at_all(certificate, tmp_path, monkeypatch):
    import os

    path = write_report(tmp_path / "deep" / "report.html", certificate)
    first = path.read_bytes()
    assert first.decode() == report_html(certificate)
    assert path.stat().st_mode & 0o777 == 0o644

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UsageError, match="No space left"):
            write_report(path, replace(certificate, subject="other"))
    assert path.read_bytes() == first
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_a_folder_in_the_way_is_said(certificate, tmp_path):
    with pytest.raises(UsageError, match="cannot write"):
        write_report(tmp_path, certificate)


def test_the_template_style_and_script_are_package_data():
    import evalmode.report

    folder = Path(evalmode.report.__file__).parent
    assert {"template.html", "style.css", "script.js"} <= {path.name for path in folder.iterdir()}
    for path in folder.glob("*.*"):
        assert "</script" not in path.read_text(encoding="utf-8") or path.name == "template.html"


def test_figures_of_a_model_that_draws_or_heeds_companions_are_not_said_to_be_exact():
    def said(**verdicts):
        clauses = tuple(
            ClauseResult(clause=name.replace("_", "-"), verdict=verdict) for name, verdict in verdicts.items()
        )
        model = ModelRecord(name="Net", modules=1, parameters=2, bytes=8, fingerprint="00")
        machine = Environment(
            evalmode="", python="", torch="", device="", processor="", cores=2, threads=2, platform=""
        )
        made = Certificate(
            created="", subject="net", model=model, environment=machine, clauses=clauses,
            evaluation=EvaluationRecord(samples=4, batch_size=2),
        )  # fmt: skip
        return Seen(report_html(made)).words

    exact = "Exact: the figures are the same bits for any batch size"
    assert exact in said(no_randomness=Verdict.KEPT, batch_independent=Verdict.KEPT, finite=Verdict.BROKEN)
    for name in ("no_randomness", "deterministic"):
        words = said(**{name: Verdict.BROKEN})
        assert "One draw: " in words and exact not in words
    words = said(batch_independent=Verdict.BROKEN)
    assert "The figures may change with the batch: batch-independent is broken." in words and exact not in words
