"""The page in a real browser: Debian's Chromium, driven by Playwright, judged by axe-core."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from evalmode.certificate import ConfusionRecord
from evalmode.report.page import write_report

PHONE, WIDE = {"width": 390, "height": 844}, {"width": 1600, "height": 1000}
REACHABLE = "a[href], summary, [tabindex='0']"


def of_many_classes(certificate):
    """The certificate with a confusion matrix of 200 classes, each of which is mistaken for the next."""
    counts = tuple(tuple(3 * (other == (one + 1) % 200) for other in range(200)) for one in range(200))
    confusion = ConfusionRecord(labels=tuple(map(str, range(100, 300))), counts=counts)
    return replace(certificate, evaluation=replace(certificate.evaluation, confusion=confusion))


@pytest.fixture(scope="session")
def pages(certificate, broken, tmp_path_factory):
    """The pages as files, by name."""
    folder = tmp_path_factory.mktemp("pages")
    written = {"kept": certificate, "broken": broken, "many": of_many_classes(certificate)}
    return {name: write_report(folder / f"{name}.html", made) for name, made in written.items()}


@pytest.fixture
def show(browser, pages):
    """Opens a page; every request but the one for the page itself, every message and every error fails the test."""
    contexts, wrong = [], []

    def opened(name, size=WIDE, scheme="light", **options):
        context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce", **options)
        contexts.append(context)
        address = pages[name].as_uri()

        def judged(route):
            if route.request.url == address or route.request.url.startswith("data:"):
                route.continue_()
            else:
                wrong.append(f"asks for {route.request.url}")
                route.abort()

        context.route("**/*", judged)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [
        ("kept", PHONE, "light"),
        ("kept", WIDE, "light"),
        ("kept", WIDE, "dark"),
        ("broken", PHONE, "dark"),
        ("broken", WIDE, "light"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_axe_finds_nothing_and_nothing_runs_over_the_edge(show, name, size, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = show(name, size, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    cut = page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(item => !item.closest('.scroll, .skip, .hidden, svg')
           && item.getBoundingClientRect().right > innerWidth + 1).map(item => item.outerHTML.slice(0, 80))"""
    )
    assert cut == []
    found = Axe().run(page)
    assert found.response["violations"] == [], found.generate_report()
    assert len(found.response["passes"]) > 20


def test_the_labels_of_many_classes_stay_on_one_line_on_a_phone(show):
    page = show("many", PHONE)
    lines = page.evaluate(
        """() => [...document.querySelectorAll('.confusion tbody th')].map(label => {
           const range = document.createRange();
           range.selectNodeContents(label);
           return range.getClientRects().length })"""
    )
    assert lines[:-1] == [1] * 24


def test_dark_and_light_are_two_looks_and_paper_is_light(show):
    def ground(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    def light(colour):
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3

    assert light(ground(show("kept"))) > 230
    dark = show("kept", scheme="dark")
    assert light(ground(dark)) < 40
    fills = "[...new Set([...document.querySelectorAll('.plot .point')].map(item => getComputedStyle(item).fill))]"
    seen = set(dark.evaluate(fills))
    assert len(seen) >= 4
    assert not seen & set(show("kept").evaluate(fills))
    dark.emulate_media(media="print", color_scheme="dark")
    assert light(ground(dark)) > 230


@pytest.mark.parametrize("plot", ["#plans", "#test-1"])
def test_a_point_tells_its_figures_to_the_mouse_and_to_the_keyboard(show, plot):
    page = show("kept")
    points, tip = page.locator(f"{plot} .plot .point"), page.locator("#tip")
    assert tip.is_hidden()
    for index in range(points.count()):
        points.nth(index).hover()
        words = points.nth(index).get_attribute("aria-label")
        assert tip.inner_text().split("\n") == words.split("; ")
        box = tip.bounding_box()
        assert box["x"] >= 0
        assert box["y"] >= 0
        assert box["x"] + box["width"] <= WIDE["width"]
        lit = page.locator(f"{plot} tr.lit")
        assert lit.count() == 1
        assert lit.get_attribute("data-point") == (words.split(".")[0] if plot == "#plans" else str(index + 1))
    page.mouse.move(1, 1)
    assert tip.is_hidden()
    points.first.focus()
    assert tip.is_visible()
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.locator(f"{plot} tr[data-point]").first.hover()
    assert page.locator(f"{plot} .point.lit").count() == 1


def test_on_a_narrow_phone_small_tables_fit_and_wide_ones_scroll_in_their_own_box_with_the_row_in_sight(show):
    page = show("kept", {"width": 375, "height": 812})
    over = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('.scroll')].filter(box => box.offsetParent)
           .map(box => [box.getAttribute('aria-labelledby'), box.scrollWidth - box.clientWidth]))"""
    )
    assert over["bins-caption-1"] == over["frequent-caption-1"] == 0
    assert min(over["plans-caption"], over["slices-caption-1"]) > 0
    for name in ("plans-caption", "metrics-caption-1", "slices-caption-1"):
        box = page.locator(f"[aria-labelledby={name}]")
        box.evaluate("box => { box.scrollLeft = 1000 }")
        head = box.locator("tbody th").first.bounding_box()
        assert abs(head["x"] - box.bounding_box()["x"]) < 3


def test_a_finger_on_a_phone_gets_the_same(show):
    page = show("kept", PHONE, has_touch=True, is_mobile=True)
    point = page.locator("#plans .plot .point").first
    point.scroll_into_view_if_needed()
    point.tap()
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]


@pytest.mark.parametrize("name", ["kept", "broken"])
def test_tabbing_reaches_everything_in_order_and_shows_where_it_is(show, name):
    page = show(name)
    count = page.locator(REACHABLE).count()
    assert count >= (20 if name == "kept" else 3)
    walk = """() => { const all = [...document.querySelectorAll("%s")].filter(item => item.checkVisibility());
        return [all.length, all.indexOf(document.activeElement), getComputedStyle(document.activeElement).outlineStyle,
        getComputedStyle(document.activeElement).strokeWidth, document.activeElement.matches('.point')]; }"""
    page.evaluate("document.body.focus()")
    visited = []
    for _ in range(count + 1):
        page.keyboard.press("Tab")
        total, place, outline, stroke, is_point = page.evaluate(walk % REACHABLE)
        if place < 0:
            break
        visited.append(place)
        assert stroke == "2.5px" if is_point else outline != "none"
    assert visited == list(range(total))


def test_links_lead_to_their_sections_and_the_first_one_past_the_head(show):
    page = show("kept")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for link in page.locator("nav a").all():
        link.click()
        target = page.locator(link.get_attribute("href"))
        assert target.evaluate("item => item.getBoundingClientRect().top < innerHeight")


def test_everything_is_there_without_script(show):
    page = show("kept", java_script_enabled=False)
    assert page.locator("#plans .plot .point").count() == 6
    assert "KEPT" in page.locator("header").inner_text()


def test_nothing_that_a_name_says_is_run(browser, certificate, tmp_path):
    import msgspec

    attack = "\"><img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    plans = tuple(msgspec.structs.replace(plan, name=attack) for plan in certificate.optimization.plans)
    record = msgspec.structs.replace(certificate.optimization, plans=plans)
    path = write_report(tmp_path / "r.html", msgspec.structs.replace(certificate, subject=attack, optimization=record))
    page = browser.new_page()
    page.goto(path.as_uri())
    page.locator("#plans .plot .point").first.focus()
    assert attack in page.locator("#tip").inner_text()
    assert page.locator("img[src=x]").count() == 0
    assert page.title() == f"KEPT: {attack}"
    page.close()


def test_the_policy_stops_what_would_be_slipped_in(browser, pages):
    page = browser.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(pages["kept"].as_uri())
    page.evaluate(
        """() => { const slipped = document.createElement('script'); slipped.textContent = "document.title = 'run'";
           document.body.append(slipped); const image = new Image(); image.src = 'http://127.0.0.1:9/x.png'; }"""
    )
    page.wait_for_timeout(100)
    assert page.title().startswith("KEPT: examples")
    assert any("Content Security Policy" in line for line in said)
    page.close()


def test_the_pages_are_small(pages):
    assert max(path.stat().st_size for path in pages.values()) < 3_000_000
