"""The site is built without a warning, fetches nothing, and can be read, also on a phone."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from playwright.sync_api import Browser, Page, expect

from api.problems import CATALOGUE
from core import cli
from handbook import sources
from handbook.http import Interface
from tests.browser.test_report_page import browser
from tests.docs.blocks import ROOT

__all__ = ["browser"]  # the fixture
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def _build(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", *arguments], cwd=folder, text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, timeout=200,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(shared_folder: Path) -> Path:
    """Built as ``make docs`` does it, once for all test processes."""
    folder, built = shared_folder / "site", shared_folder / "site.built"
    with FileLock(shared_folder / "site.lock"):
        if not built.exists():
            done = _build("--strict", "--site-dir", str(folder))
            assert done.returncode == 0, done.stdout + done.stderr
            built.touch()
    return folder


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """Links may lead out of the site; what a page needs may not."""
    loads = re.compile(
        r"<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=\"?(?:https?:)?//[^\s\">]+"
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        found = loads.findall(page.read_text())
        assert [tag for tag in found if 'rel="canonical"' not in tag] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?https?:|@import", sheet.read_text()), sheet


def test_references_are_complete(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text()
    assert [name for name in cli.commands() if f'id="{name}"' not in commands] == []
    problems = (site / "reference" / "problems.html").read_text()
    assert [code for code in CATALOGUE if f'id="{code}"' not in problems] == []
    interface = Interface()
    for tag, operations in interface.by_tag.items():
        page = (site / "reference" / "http" / f"{tag}.html").read_text()
        for _, _, operation in operations:
            assert f'id="{operation["operationId"]}"' in page
    decided = (site / "decisions" / "index.html").read_text()
    for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"):
        assert f'href="{path.stem}.html"' in decided


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[x](no-such-page.md)", "no-such-page.md"),
        ("[x](other.md#no-such-anchor)", "no-such-anchor"),
        ("[x](/absolute.md)", "absolute"),
    ],
)
def test_a_broken_link_fails_the_build(tmp_path: Path, text: str, complaint: str) -> None:
    """By the rules of this repository's own configuration, on two pages of their own."""
    rules = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["validation"]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A\n\n{text}\n")
    (tmp_path / "docs" / "other.md").write_text("# B\n")
    config = {
        "site_name": "x",
        "validation": rules,
        "plugins": [],
        "theme": {"name": "material", "font": False},
    }
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    done = _build("--strict", folder=tmp_path)
    assert done.returncode == 1
    assert complaint in done.stdout + done.stderr


def test_links_out_of_docs_lead_to_the_pages_of_those_files() -> None:
    text = "[b](../benchmarks/README.md#utility) [p](privacy.md) [n](../api/app.py)"
    assert sources.relinked(text, "architecture.md") == (
        "[b](explanation/benchmarks.md#utility) [p](privacy.md) [n](../api/app.py)"
    )
    assert sources.relinked("[d](docs/api.md)", "changelog.md") == "[d](api.md)"


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


PAGES = (
    "index.html", "tutorial/images-to-rows.html", "how-to/scientist.html",
    "reference/http/runs.html", "reference/commands.html", "explanation/privacy-for-officers.html",
    "privacy.html",
)  # fmt: skip


def _opened(browser: Browser, served: str, scheme: str, width: int) -> Iterator[tuple[str, Page]]:
    context = browser.new_context(
        color_scheme=scheme,  # type: ignore[arg-type]
        viewport={"width": width, "height": 900},
    )
    shown = context.new_page()
    complaints: list[str] = []
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.on(
        "requestfailed",  # what the next page cuts off is no failure
        lambda request: (
            None if request.failure == "net::ERR_ABORTED" else complaints.append(request.url)
        ),
    )
    shown.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((served, "data:", "blob:"))
            else complaints.append(request.url)
        ),
    )
    for name in PAGES:
        shown.goto(f"{served}/{name}")
        yield name, shown
    context.close()
    assert complaints == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_pages_can_be_read(browser: Browser, served: str, scheme: str, width: int) -> None:
    for name, shown in _opened(browser, served, scheme, width):
        expect(shown.locator("article h1").first).to_be_visible()
        assert shown.evaluate("document.documentElement.scrollWidth") <= width, name
        chosen = shown.evaluate("document.body.getAttribute('data-md-color-scheme')")
        assert chosen == {"light": "default", "dark": "slate"}[scheme], name


def test_the_search_finds_an_operation(browser: Browser, served: str) -> None:
    shown = browser.new_page()
    shown.goto(f"{served}/index.html")
    shown.get_by_role("textbox", name="Search").fill("quarantine")
    expect(shown.locator(".md-search-result__item").first).to_be_visible(timeout=20_000)
    shown.close()


def test_the_folder_is_not_part_of_the_repository() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("no checkout by git")
    assert subprocess.run([git, "check-ignore", "-q", "site/"], cwd=ROOT).returncode == 0
