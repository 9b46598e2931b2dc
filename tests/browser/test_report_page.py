"""The report in a real browser: nothing is fetched, nothing breaks, and it can be read.

Needs Chromium (Debian: ``apt-get install chromium``). Without one the tests are skipped, unless
``FHV_REQUIRE_BROWSER`` is set, as in the gate of this repository.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

from api.report.endpoints import HEADERS
from core.report import page as pages
from core.report.make import make
from tests.core import reports

URL = "http://report.test/"
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
pytestmark = pytest.mark.slow

# Of every text: its own colour against the nearest background that is painted. A cell of a heat
# map has its own, half transparent, over the figure's.
CONTRASTS = """() => {
  const rgba = text => {
    const n = text.match(/[\\d.]+/g).map(Number);
    return n.length < 4 ? [...n, 1] : n;
  };
  const over = (top, below, alpha) =>
    [0, 1, 2].map(i => alpha * top[i] + (1 - alpha) * below[i]);
  const linear = v => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || ['STYLE', 'title', 'desc'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    let ground = behind(element);
    if (element.classList.contains('cell')) {
      const fill = getComputedStyle(element.previousElementSibling);
      ground = over(rgba(fill.fill), ground, Number(fill.fillOpacity));
    }
    const ink = rgba(element instanceof SVGElement ? style.fill : style.color);
    const [low, high] = [light(ink), light(ground)].sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05), element.textContent.slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        if os.environ.get("FHV_REQUIRE_BROWSER"):
            pytest.fail(f"none of {', '.join(NAMES)} is installed, and FHV_REQUIRE_BROWSER is set")
        pytest.skip(f"none of {', '.join(NAMES)} is installed: apt-get install chromium")
    with sync_playwright() as started:
        made = started.chromium.launch(executable_path=path, args=list(FLAGS))
        yield made
        made.close()


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    """The page of a run with a report round, and of one without."""
    generator = reports.generator()
    known = reports.known(generator.spec)
    return {
        "measured": pages.html(make(known, generator, reports.statistics())),
        "data-free": pages.html(make(known, generator)),
        "stamped": pages.html(make(reports.stamped(known), generator)),
    }


class Opened:
    """A page as the coordinator sends it, and all that the browser complained of or asked for."""

    def __init__(self, browser: Browser, body: str, **options: Any) -> None:
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page: Page = browser.new_context(**options).new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

        def answer(route: Route) -> None:
            self.asked.append(route.request.url)
            if route.request.url == URL:
                headers = {**HEADERS, "Content-Type": "text/html; charset=utf-8"}
                route.fulfill(body=body, headers=headers)
            else:
                route.abort()

        self.page.route("**/*", answer)
        self.page.goto(URL)


def wide(width: int = 1100, height: int = 900) -> dict[str, Any]:
    return {"viewport": {"width": width, "height": height}}


@pytest.mark.parametrize("kind", ["measured", "data-free", "stamped"])
def test_it_opens_by_itself(browser: Browser, written: dict[str, str], kind: str) -> None:
    opened = Opened(browser, written[kind], **wide())
    assert opened.complaints == []
    assert set(opened.asked) <= {URL, URL + "favicon.ico"}
    page = opened.page
    assert page.locator("h1").count() == 1
    headings = page.locator("h2").all_inner_texts()
    for wanted in ("In short", "Privacy: what is guaranteed", "What the data are", "Who took part"):
        assert wanted in headings
    figures = page.locator("figure > svg")
    assert figures.count() >= (15 if kind == "measured" else 6)
    for figure in figures.all():
        box = figure.bounding_box()
        assert box is not None
        assert box["width"] >= 300
        assert box["height"] >= 60
        assert figure.locator("title").first.text_content()
        assert figure.locator("desc").first.text_content()
        assert figure.locator("xpath=following-sibling::figcaption").inner_text().strip()
    # What others have written is text here, never markup.
    assert page.locator("script").count() == 0
    assert page.get_by_text(reports.HOSTILE).count() == 1


@pytest.mark.parametrize("width", [390, 768, 1100])
def test_nothing_is_wider_than_the_screen(
    browser: Browser, written: dict[str, str], width: int, tmp_path: Path
) -> None:
    opened = Opened(browser, written["measured"], **wide(width))
    found = opened.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert found[0] <= found[1] == width
    drawn = opened.page.evaluate(
        "[...document.querySelectorAll('svg text')].filter(t => { const own = "
        "t.getBoundingClientRect(), svg = t.closest('svg').getBoundingClientRect(); return "
        "own.left < svg.left - 1 || own.right > svg.right + 1 || own.top < svg.top - 1 || "
        "own.bottom > svg.bottom + 1 }).map(t => t.textContent)"
    )
    assert drawn == [], "text that is cut off by the edge of its figure"
    small = opened.page.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')].map(t => "
        "t.getBoundingClientRect()).map(r => Math.min(r.width, r.height)).filter(s => s > 0))"
    )
    assert small >= 4
    shot = tmp_path / f"report-{width}.png"
    opened.page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 20_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["measured", "stamped"])
def test_everything_stands_out_from_its_ground(
    browser: Browser, written: dict[str, str], scheme: str, kind: str
) -> None:
    opened = Opened(browser, written[kind], color_scheme=scheme, **wide())
    contrasts = opened.page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert contrasts[0][0] >= 4.5, f"hard to read: {contrasts[:5]}"
    ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    is_dark = sum(int(part) for part in ground[4:-1].split(",")[:3]) < 200
    assert is_dark == (scheme == "dark")
