"""What mkdocs calls while it builds: adds the made pages, and finds a place for every page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from handbook import commands, settings, sources
from handbook.http import FOLDER, Interface


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the sections of the navigation that the programs determine."""
    interface = Interface()
    config["fhv_pages"] = {
        **interface.pages(),
        **sources.outside(),
        "decisions/index.md": sources.decisions(),
        "tutorial/notebook.md": sources.notebook(),
        "reference/commands.md": commands.page(),
        "reference/settings.md": settings.environment(),
        "reference/site-file.md": settings.site_file(),
        "reference/plan.md": settings.plan(),
    }
    http = [f"{FOLDER}/index.md", *(f"{FOLDER}/{name}.md" for name, _ in interface.tags)]
    docs = Path(config.docs_dir)
    decided = sorted(path.relative_to(docs).as_posix() for path in docs.glob("decisions/[0-9]*.md"))
    _fill(config.nav, {"HTTP": http, "Decisions": ["decisions/index.md", *decided]})
    named = set(_named(config.nav))
    left = sorted({path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} - named)
    if left and config.nav is not None:  # found by readers, if not at the best place
        config.nav.append({"More": left})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages."""
    for name, text in config["fhv_pages"].items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Make links between docs/ and the rest of the repository fit."""
    return sources.relinked(markdown, page.file.src_uri)


def _fill(nav: Any, sections: dict[str, list[str]]) -> None:
    for item in nav:
        if isinstance(item, dict):
            for title, inner in item.items():
                if title in sections:
                    item[title] = sections[title]
                elif isinstance(inner, list):
                    _fill(inner, sections)


def _named(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    if isinstance(nav, dict):
        return [name for inner in nav.values() for name in _named(inner)]
    return [name for inner in nav or [] for name in _named(inner)]
