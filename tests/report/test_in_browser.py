"""The page in a real browser: nothing asked of a network, no complaint, pictures visible, three clicks, phone, dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saga_dist.report.build import Settings, report_page


@pytest.fixture(scope="module")
def page(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_page(run_dir, Settings(rows=4, attention=1)).html, "utf-8")
    return path


@pytest.fixture(scope="module")
def browser(browser_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if browser_module.CHROMIUM is None:
        pytest.skip("no chromium on the PATH (apt-get install chromium)")
    with browser_module.headless(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def tab(browser: Any, page: Path) -> Any:
    browser.theme("light")
    browser.size(1200, 900)
    browser.open(page)
    return browser


@pytest.mark.integration
def test_it_opens_without_complaint_and_asks_nothing_of_a_network(tab: Any) -> None:
    assert tab.complaints() == []
    assert tab.requests() == []
    assert tab.run("window.hacked") is None


def test_every_picture_is_visible(tab: Any) -> None:
    assert tab.run("document.images.length") > 20
    assert tab.run("[...document.images].filter(image => !(image.complete && image.naturalWidth > 0)).length") == 0


def test_any_group_in_three_clicks(tab: Any) -> None:
    tab.choose("#viewer .filters label:nth-child(1) select", "2")  # one: the step
    assert tab.run("document.querySelectorAll('#viewer .item').length") == 4
    tab.click("#viewer .item[data-id='s000002.m0.p03']")  # two: the group
    assert tab.run("document.querySelector('#viewer .detail h3').textContent") == "s000002.m0.p03"
    assert tab.run("document.querySelectorAll('#viewer .text').length") == 4
    assert tab.run("document.querySelectorAll('#viewer .duo img:not(.heat)').length") == 2
    tab.choose("#colour", "gradient")  # three: coloured by the policy gradient
    painted = "[...document.querySelectorAll('#viewer .body span')].filter(span => span.style.backgroundColor).length"
    assert tab.run(painted) > 50
    assert tab.complaints() == []


def test_tokens_show_where_engine_and_replay_differ(tab: Any) -> None:
    painted = "[...document.querySelectorAll('#viewer .body span')].filter(span => span.style.backgroundColor).length"
    for step, there in (("2", False), ("3", True)):  # only the groups of the last step were replayed
        tab.choose("#viewer .filters label:nth-child(1) select", step)
        tab.click(f"#viewer .item[data-id='s00000{step}.m0.p01']")
        tab.choose("#colour", "mismatch")
        assert (tab.run(painted) > 50) == there
        figures = tab.run("document.querySelector('#viewer .figures').textContent")
        assert ("mismatch 0.05" in figures) == there
    assert "replay +0.05" in tab.run("document.querySelector('#viewer .body span').title")
    assert tab.complaints() == []


def test_filters_keep_what_they_name(tab: Any) -> None:
    def found(test: str) -> list[bool]:
        return tab.run(f"[...document.querySelectorAll('#viewer .item')].map(item => {test})")

    assert len(found("true")) == 12
    tab.choose("#viewer .filters label:nth-child(3) select", "void")
    assert 0 < len(found("true")) < 12
    assert all(found("item.querySelector('i.void') !== null"))
    tab.choose("#viewer .filters label:nth-child(3) select", "mixed")
    mixed = found("item.querySelector('i.yes') !== null && item.querySelector('i.no, i.void') !== null")
    assert mixed and all(mixed)
    tab.choose("#viewer .filters label:nth-child(2) select", "true")
    same = found("item.querySelector('.top span:last-child').textContent === 'same'")
    assert 0 < len(same) < len(mixed) and all(same)


def test_hostile_text_is_text(tab: Any) -> None:
    tab.click("#viewer .item[data-id='s000002.m0.p00']")
    body = tab.run("document.querySelector('#viewer .text .body').textContent")
    assert body.startswith("</script><script>window.hacked=1</script><img src=x")
    tab.settle()
    assert tab.run("window.hacked") is None
    assert tab.run("document.querySelectorAll('#viewer .body img').length") == 0
    assert tab.complaints() == []


def test_the_pooler_switch_shows_and_hides_the_overlays(tab: Any) -> None:
    seen = "[...document.querySelectorAll('.overlay .heat')].filter(image => image.offsetParent !== null).length"
    assert tab.run(seen) == 0
    tab.click(".heat-switch")
    assert tab.run(seen) > 0


def test_a_phone_needs_no_sideways_scrolling(browser: Any, page: Path) -> None:
    browser.size(375, 800, mobile=True)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") <= 375
    browser.size(320, 700, mobile=True)
    assert browser.run("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(browser: Any, page: Path, theme: str) -> None:
    browser.theme(theme)
    browser.open(page)
    paper = _luminance(browser.run("getComputedStyle(document.body).backgroundColor"))
    assert (paper < 0.1) == (theme == "dark")
    for selector in ("h1", ".note", "th", ".legend b", "#viewer .body", "a"):
        ink = _luminance(browser.run(f"getComputedStyle(document.querySelector('{selector}')).color"))
        lighter, darker = max(ink, paper), min(ink, paper)
        assert (lighter + 0.05) / (darker + 0.05) > 4.5, f"{selector} hardly shows in the {theme} theme"  # WCAG AA


def test_pointing_at_a_chart_shows_the_values_of_its_step(tab: Any) -> None:
    point = (
        "(() => { const svg = document.querySelector('#curves .chart svg'), box = svg.getBoundingClientRect();"
        " svg.dispatchEvent(new PointerEvent('pointermove', {clientX: box.right - 12, clientY: box.y + 50})); })()"
    )
    shown = "document.querySelector('#curves .chart .tip').offsetParent !== null"
    assert not tab.run(shown)
    tab.run(point)
    assert tab.run(shown)
    assert tab.run("document.querySelector('#curves .chart .tip').textContent") == "step 3Mean reward 0.7"
    assert tab.complaints() == []


def test_a_dot_of_the_map_leads_to_its_image_and_its_class(tab: Any) -> None:
    assert tab.run("document.querySelectorAll('#map .place-detail img').length") == 0
    tab.click("#map circle[data-index='5']")
    assert tab.run("document.querySelectorAll('#map .of-class').length") == 4  # images of a class
    assert tab.run("document.querySelector('#map .place-detail b').textContent") == tab.run(
        "document.querySelector('#map select').value"
    )
    tab.choose("#map select", "k one")
    assert tab.run("[...document.querySelectorAll('#map .strip img')].map(image => image.alt)") == [
        f"k one/{index}.png" for index in range(4)
    ]
    assert tab.complaints() == []


def test_a_completion_that_disagrees_is_marked(tab: Any) -> None:
    tab.click("#viewer .item[data-id='s000001.m0.p03']")
    assert tab.run("[...document.querySelectorAll('#viewer .agreement .odd')].map(cell => cell.textContent)") == [
        "maroon ≠"
    ]
    assert (
        tab.run("document.querySelectorAll('#viewer .agreement tbody tr').length") == 12
    )  # six attributes, two images
    assert not tab.run("document.querySelector('#viewer .prompt pre').checkVisibility()")
    tab.click("#viewer .prompt summary")
    assert "same_species" in tab.run("document.querySelector('#viewer .prompt pre').textContent")
    assert tab.run("document.querySelector('#viewer .prompt pre').checkVisibility()")


def test_a_table_that_is_cut_off_says_so(browser: Any, page: Path) -> None:
    hints = (
        "[...document.querySelectorAll('#results .scroll, #attributes .scroll')].map(box => box.matches('.overflows'))"
    )
    for width, cut in ((1200, [False, False]), (375, [True, True])):
        browser.size(width, 800, mobile=width < 500)
        browser.open(page)
        assert browser.run(hints) == cut


def _luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` as WCAG defines it."""
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
