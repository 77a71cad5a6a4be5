"""The pages in a real browser: whole, quiet, offline, and readable on a phone and in the dark."""

import re
import struct
from pathlib import Path

import pytest

from suptickets_ray.report.load import write_report

LARGEST = 3_000_000
PHONE, DESK = 360, 1100
TEXTS = "[...document.querySelectorAll('svg text')].filter(text => text.checkVisibility())"
"""What figures say that are seen at this width; each is there for a phone and for a desk."""


@pytest.fixture(scope="module")
def pages(stored_runs, tmp_path_factory):
    """The page of a run and that of a comparison, by name."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [str(stored_runs / name) for name in "abc"]
    return {
        "run": write_report(runs[:1], str(folder / "run.html")),
        "comparison": write_report(runs, str(folder / "comparison.html")),
    }


@pytest.fixture(params=["run", pytest.param("comparison", marks=pytest.mark.slow)])
def path(request, pages):
    return pages[request.param]


@pytest.fixture
def show(browser):
    """Opens a page from disk, without a network, and returns it with what it asked for and complained about."""
    contexts = []

    def opened(path, width=DESK, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True, service_workers="block"
        )
        contexts.append(context)
        page = context.new_page()
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(f"file://{path}")
        return page

    yield opened
    for context in contexts:
        context.close()


def save_screenshot(page, path, *, whole=False):
    """Saves what is on the screen, or the whole page, as a PNG."""
    page.screenshot(path=str(path), full_page=whole)


def contrast(first, second):
    """The contrast of two colours as the browser writes them, from 1 to 21, after WCAG 2."""

    def luminance(color):
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_page_is_quiet_and_asks_for_nothing_but_itself(path, show):
    page = show(path)
    assert page.requests == [f"file://{path}"]
    assert page.complaints == []


def test_the_page_is_under_3_mb(path):
    assert Path(path).stat().st_size < LARGEST


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_every_figure_is_seen(path, show, width):
    page = show(path, width)
    figures = page.query_selector_all("figure")
    assert len(figures) == (2 if "comparison" in path else 5)
    for figure in figures:
        (drawing,) = (svg for svg in figure.query_selector_all("svg") if svg.is_visible())
        box = drawing.bounding_box()
        assert min(box["width"], box["height"]) > 50
        assert drawing.get_attribute("aria-label") == figure.query_selector("figcaption").inner_text()


def test_on_a_phone_wide_things_scroll_in_their_own_box(path, show):
    page = show(path, PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
    assert page.evaluate("[...document.querySelectorAll('.wide')].some(box => box.scrollWidth > box.clientWidth)")


def test_on_a_phone_the_words_of_figures_are_large_enough_to_be_read(path, show):
    sizes = show(path, PHONE).evaluate(
        f"{TEXTS}.map(text => {{ const svg = text.ownerSVGElement; "
        "return parseFloat(getComputedStyle(text).fontSize) * svg.clientWidth / svg.viewBox.baseVal.width; })"
    )
    assert min(sizes) >= 8


def test_on_a_phone_the_answer_is_on_the_screen_without_scrolling_sideways(pages, show):
    page = show(pages["run"], PHONE)
    inside = page.evaluate(
        "(() => { const svg = [...document.querySelectorAll('figure svg')].find(svg => svg.checkVisibility());"
        "return [...svg.querySelectorAll('use, text')].map(part => part.getBoundingClientRect().right); })()"
    )
    assert page.query_selector("figcaption").inner_text() == "Test accuracy of every network"
    assert len(inside) > 10
    assert max(inside) <= PHONE
    gain = page.evaluate("document.querySelectorAll('table')[0].rows[0].cells[2].getBoundingClientRect().right")
    assert gain <= PHONE


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_the_page_in_both_modes(path, show, scheme):
    page = show(path, scheme=scheme)
    text, background = page.evaluate(
        "(() => { const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]; })()"
    )
    assert contrast(text, background) >= 7
    assert (contrast(background, "rgb(0, 0, 0)") < 2) == (scheme == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_of_figures_have_the_pages_colour_in_both_modes(path, show, scheme):
    page = show(path, scheme=scheme)
    text = page.evaluate("getComputedStyle(document.body).color")
    found = page.evaluate(f"{TEXTS}.map(text => [text.textContent, getComputedStyle(text).fill])")
    # On a bar of the timeline words are black, whatever the mode.
    assert [words for words, color in found if color != text and not re.fullmatch(r"\d+\.\d+", words)] == []


def test_a_screenshot_can_be_taken(pages, show, tmp_path):
    save_screenshot(show(pages["run"]), tmp_path / "report.png")
    content = (tmp_path / "report.png").read_bytes()
    assert struct.unpack(">II", content[16:24]) == (DESK, 800)
