"""The dashboard in a real browser: signing in, what pages show by themselves, dialogs, looks.

Needs Chromium, as the tests of the report do. ``FHV_SHOTS`` names a folder that gets a picture of
every page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from api.config import Settings
from tests.api.support import Coordinator
from tests.browser.furnished import Beside, coordinator, furnish
from tests.browser.test_report_page import CONTRASTS, browser, wide
from tests.conftest import empty
from tests.worker.real import served

__all__ = ["browser"]  # the fixture
pytestmark = pytest.mark.slow
PHONE = {"viewport": {"width": 390, "height": 844}}
# Console lines about answers that a test has provoked.
_STATUS = re.compile(r"Failed to load resource: the server responded with a status of 4")
_TICK = "htmx.trigger('#live', 'every')"  # as its interval does
# What everybody must be able to find out: names of fields, buttons and links, captions, landmarks.
_NAMELESS = """() => {
  const named = e => (e.getAttribute('aria-label') || '').trim() || e.textContent.trim()
    || (e.labels && [...e.labels].some(l => l.textContent.trim()));
  const shown = e => e.checkVisibility();
  const wrong = [];
  for (const e of document.querySelectorAll('input:not([type=hidden]), select'))
    if (shown(e) && !(e.labels && e.labels.length)) wrong.push('no label: ' + e.name);
  for (const e of document.querySelectorAll('a, button, summary, progress, [role=img]'))
    if (shown(e) && !named(e)) wrong.push('no name: ' + e.outerHTML.slice(0, 80));
  for (const e of document.querySelectorAll('table:not(.u-legend)'))
    if (!e.caption || !e.caption.textContent.trim()) wrong.push('no caption: ' + e.className);
  if (document.querySelector('img:not([alt])')) wrong.push('no alt');
  for (const [what, count] of [['h1', 1], ['main', 1]])
    if (document.querySelectorAll(what).length !== count) wrong.push(what);
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  if (new Set(ids).size !== ids.length) wrong.push('an id twice');
  for (const e of document.querySelectorAll('[aria-labelledby]'))
    if (!e.matches('dialog') && !document.getElementById(e.getAttribute('aria-labelledby')))
      wrong.push('labelled by nothing: ' + e.outerHTML.slice(0, 80));
  if (document.documentElement.lang !== 'en') wrong.push('lang');
  return wrong;
}"""


@dataclass
class Site:
    """A served coordinator in which something has happened, and who may sign in to it."""

    url: str
    beside: Beside
    coordinator: Coordinator
    ids: dict[str, str]
    tokens: dict[str, str]


@pytest.fixture(scope="module")
def site(
    worker_database_url: str, tmp_path_factory: pytest.TempPathFactory, browser: Browser
) -> Iterator[Site]:
    empty(worker_database_url)
    settings = Settings(
        env="prod",
        token_pepper="a pepper for tests only",
        database_url=worker_database_url,
        object_store_url=f"file://{tmp_path_factory.mktemp('objects')}",
        broker_url=None,
        database_pool=5,
    )
    with coordinator(settings) as (beside, made):
        ids = beside.run(furnish(made))
        tokens = {scope: beside.run(made.token(scope)) for scope in ("admin", "auditor")}
        with served(settings) as url:
            yield Site(url, beside, made, ids, tokens)


@dataclass
class Visit:
    """A page, and all that the browser complained of or asked of others."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    abroad: list[str] = field(default_factory=list)

    def go(self, path: str = "") -> None:
        self.page.goto(f"{self.url}/dashboard{path}")

    def sign_in(self, token: str) -> None:
        self.go()
        self.page.get_by_label("Access token").fill(token)
        self.page.get_by_role("button", name="Sign in").click()

    @property
    def unexpected(self) -> list[str]:
        return [text for text in self.complaints if not _STATUS.match(text)]


def visit(browser: Browser, site: Site, scope: str | None = "admin", **options: Any) -> Visit:
    page = browser.new_context(**options).new_page()
    made = Visit(page, site.url)
    page.on("console", lambda message: made.complaints.append(message.text))
    page.on("pageerror", lambda error: made.complaints.append(str(error)))

    def only_here(route: Route) -> None:
        if route.request.url.startswith(site.url):
            route.continue_()
        else:
            made.abroad.append(route.request.url)
            route.abort()

    page.route("**/*", only_here)
    if scope is not None:
        made.sign_in(site.tokens[scope])
        expect(page.get_by_role("navigation", name="Pages")).to_be_visible()
    return made


def pages(site: Site) -> dict[str, str]:
    client, ids = site.coordinator.clients, site.ids
    return {
        "overview": "",
        "runs": "/runs",
        "run": f"/runs/{ids['retina-main']}",
        "run-ended": f"/runs/{ids['retina-pilot']}",
        "run-paused": f"/runs/{ids['night-shift']}",
        "run-draft": f"/runs/{ids['next-one']}",
        "clients": "/clients",
        "code-form": "/enrolments/new",
        "client": f"/clients/{client['site-a']}",
        "client-empty": f"/clients/{client['ward']}",
        "models": "/models",
        "synthesis": "/synthesis",
        "audit": "/audit",
        "confirm": f"/runs/{ids['retina-main']}/cancel",
        "error": "/nothing",
    }


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("FHV_SHOTS"):
        page.wait_for_timeout(300)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_the_door(browser: Browser, site: Site) -> None:
    opened = visit(browser, site, None)
    page = opened.page
    opened.sign_in("fhv_admin_" + "x" * 43)
    expect(page.get_by_role("alert")).to_contain_text("not a token that is valid here")
    assert page.evaluate(_NAMELESS) == []
    keep(page, "door-wrong")
    page.get_by_label("Access token").fill(site.tokens["admin"])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    (cookie,) = [c for c in page.context.cookies() if c["name"] == "__Host-fhv-dashboard"]
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Strict")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("status")).to_have_text("You are signed out.")
    opened.go("/runs")
    expect(page.get_by_label("Access token")).to_be_visible()
    assert opened.unexpected == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dark", wide(1280) | {"color_scheme": "dark"}),
        ("phone", PHONE | {"color_scheme": "light", "has_touch": True}),
    ],
)
def test_every_page_can_be_read_by_everybody(
    browser: Browser, site: Site, name: str, options: dict[str, Any]
) -> None:
    opened = visit(browser, site, **options)
    page = opened.page
    for which, path in pages(site).items():
        opened.go(path)
        if which.startswith("client") and which != "clients":
            expect(page.locator("#budget .budget")).to_be_visible(timeout=20_000)
        if which in ("client", "run-ended", "synthesis"):
            expect(page.locator(".plot canvas").first).to_be_visible()
        assert page.evaluate(_NAMELESS) == [], which
        worst = page.evaluate(CONTRASTS)
        assert worst[0][0] >= 4.5, (which, worst[:4])
        across, room = page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert across <= room, which
        keep(page, f"{name}-{which}")
    assert opened.unexpected == []
    assert opened.abroad == []


def test_pages_follow_what_happens_and_can_be_stopped(browser: Browser, site: Site) -> None:
    opened = visit(browser, site)
    page = opened.page
    opened.go(f"/runs/{site.ids['retina-main']}")
    page.locator("details").first.evaluate_all("all => all.forEach(one => { one.open = true })")
    standing = page.locator("tr", has_text="site-c").first
    expect(standing).to_contain_text("order waits to be fetched")
    site.beside.run(site.coordinator.poll("site-c"))
    expect(standing).to_contain_text("at work", timeout=15_000)  # without loading it again
    live = page.get_by_role("button", name="Live")
    live.click()
    expect(live).to_have_attribute("aria-pressed", "false")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate(_TICK)
    page.wait_for_timeout(300)
    assert asked == []
    # No answer is said, and the page stays.
    live.click()
    page.context.set_offline(True)
    page.evaluate(_TICK)
    expect(page.locator("#lost")).to_be_visible(timeout=15_000)
    expect(standing).to_be_visible()
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    expect(page.locator("#lost")).to_be_in_viewport(ratio=1)
    expect(page.locator("#lost")).to_contain_text("No answer")
    page.context.set_offline(False)
    page.evaluate(_TICK)
    expect(page.locator("#lost")).to_be_hidden(timeout=15_000)
    # An error is said as one, and that of an action is a page of its own.
    page.route("**/*", _only_parts_fail)
    page.evaluate(_TICK)
    expect(page.locator("#lost")).to_contain_text("answers with an error", timeout=15_000)
    page.get_by_role("link", name="Pause").click()
    expect(page.get_by_role("heading", name="Pause this run?", level=1)).to_be_attached()
    assert page.url.endswith("/pause")


def _only_parts_fail(route: Route) -> None:
    if route.request.headers.get("hx-request"):
        route.fulfill(status=500, content_type="text/html", body="")
    else:
        route.continue_()


def test_an_administrator_acts_with_the_keyboard_alone(browser: Browser, site: Site) -> None:
    opened = visit(browser, site)
    page = opened.page
    opened.go(f"/runs/{site.ids['night-shift']}")
    page.get_by_role("link", name="Resume").press("Enter")
    dialog = page.get_by_role("dialog", name="Resume this run?")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.get_by_role("link", name="Resume").press("Enter")
    dialog.get_by_role("button", name="Resume").press("Enter")
    expect(page.get_by_role("status").first).to_have_text("The run goes on.")

    page.get_by_role("link", name="Pause").press("Enter")
    page.get_by_label("For how long at most").select_option("8")
    page.get_by_role("button", name="Pause").press("Enter")
    expect(page.get_by_role("status").first).to_have_text("The run is paused.")

    page.get_by_role("link", name="Cancel").press("Enter")
    typed = page.get_by_label("Type night-shift to confirm")
    expect(typed).to_be_focused()
    typed.fill("night-shift")
    typed.press("Enter")
    expect(page.get_by_role("status").first).to_have_text("The run was cancelled.")
    expect(page.locator(".strip")).to_contain_text("cancelled")

    opened.go("/clients")
    page.get_by_role("link", name="Approve").press("Enter")
    page.get_by_label("The fingerprint that its people have told you").fill("WRONG-ONE")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("The request is not valid")
    opened.go("/clients")
    page.get_by_role("link", name="Approve").press("Enter")
    page.get_by_label("The fingerprint that its people have told you").fill(site.ids["fingerprint"])
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_have_text("The site is in.")
    expect(page.get_by_role("row", name=re.compile("site-new"))).to_contain_text("never seen")

    page.get_by_role("link", name="Issue a code").press("Enter")
    for label, text in (("Name of the client", "site-east"), ("Site", "hospital-east"),
                        ("Population", "east/all"), ("Budget ε", "1000")):  # fmt: skip
        page.get_by_label(label, exact=True).fill(text)
    page.get_by_label("Budget ε").press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This does not fit.")
    expect(page.get_by_label("Budget ε")).to_be_focused()
    expect(page.get_by_label("Population", exact=True)).to_have_value("east/all")
    page.get_by_label("Budget ε").fill("8")
    page.keyboard.press("Enter")
    expect(page.locator("output")).to_have_text(re.compile("^([0-9A-Z]{5}-){4}[0-9A-Z]{5}$"))
    assert page.evaluate(_NAMELESS) == []
    keep(page, "code")
    page.go_back()
    page.go_forward()
    assert page.locator("output").count() == 0  # the browser has not kept it
    opened.go("/clients")
    page.get_by_role("link", name="Withdraw").press("Enter")
    page.get_by_label("Reason").fill("a trial")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_have_text("The code was withdrawn.")
    assert opened.unexpected == []


def test_an_auditor_looks_and_a_revoked_token_is_out(browser: Browser, site: Site) -> None:
    opened = visit(browser, site, "auditor")
    page = opened.page
    opened.go(f"/runs/{site.ids['retina-main']}")
    expect(page.get_by_role("link", name="Report", exact=True)).to_be_visible()
    assert page.get_by_role("link", name=re.compile("Pause|Cancel|Release")).count() == 0
    page.get_by_role("link", name="Report", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.go_back()
    tokens = site.beside.run(site.coordinator.ok("GET", "/v1/tokens?limit=200"))["items"]
    mine = [one["id"] for one in tokens if one["scope"] == "auditor"]
    for token in mine:
        site.beside.run(site.coordinator.ok("POST", f"/v1/tokens/{token}/revoke"))
    # The page that refreshes itself finds out.
    page.evaluate(_TICK)
    expect(page.get_by_label("Access token")).to_be_visible(timeout=15_000)
    assert opened.unexpected == []
