"""/docs and /redoc in a real browser, under the policy that every page is sent with."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect

from api.config import Settings
from tests.browser.test_report_page import browser
from tests.worker.real import served

__all__ = ["browser"]  # the fixture
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("page", "shown"), [("/docs", "#operations-runs-createRun"), ("/redoc", "#tag\\/runs")]
)
def test_the_reference_is_shown_and_nothing_is_blocked(
    browser: Browser,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    page: str,
    shown: str,
) -> None:
    for name in ("FHV_BROKER_URL", "FHV_ENV"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings(
        env="prod",
        token_pepper="a pepper for tests only",
        database_url=database_url,
        object_store_url=f"file://{tmp_path}",
    )
    complaints: list[str] = []
    abroad: list[str] = []
    with served(settings) as url:
        opened = browser.new_context().new_page()
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))

        def only_here(route: Route) -> None:
            if route.request.url.startswith((url, "blob:", "data:")):
                route.continue_()
            else:
                abroad.append(route.request.url)
                route.abort()

        opened.route("**/*", only_here)
        opened.goto(url + page)
        expect(opened.locator(shown).first).to_be_visible(timeout=30_000)
        opened.wait_for_timeout(500)  # what a page asks for once it is drawn counts, too
        opened.close()
    assert [text for text in complaints if "Content Security Policy" in text] == []
    assert abroad == []
