"""Fenced blocks of a Markdown page: language, title, text, and why one is not run.

A block that cannot be run says so in a comment right above it: ``<!-- not run: the reason -->``.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_OPEN = re.compile(r"(?P<indent>\s*)(?P<fence>```+|~~~+)\s*(?P<language>[\w+-]*)\s*(?P<info>.*)")
_TITLE = re.compile(r'title="([^"]+)"')
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")


@dataclass(frozen=True)
class Block:
    """``line``: of the page, of the first line of ``text``, counted from 1; ``section``: the
    heading of level 2 that it is under.
    """

    page: str
    line: int
    section: str
    language: str
    title: str
    text: str
    not_run: str | None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """The README and all pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(path: Path, root: Path = ROOT) -> list[Block]:
    """All of a page, in their order. Raises ``ValueError`` for a block that never ends."""
    page = path.relative_to(root).as_posix()
    lines = path.read_text(encoding="utf-8").splitlines()
    found, at, said, section = [], 0, "", ""
    while at < len(lines):
        opened = _OPEN.fullmatch(lines[at])
        if opened is None:
            said = lines[at] if lines[at].strip() else said
            section = lines[at].removeprefix("## ") if lines[at].startswith("## ") else section
            at += 1
            continue
        body, start = [], at + 1
        at += 1
        while at < len(lines) and lines[at].strip() != opened["fence"]:
            body.append(lines[at])
            at += 1
        if at == len(lines):
            raise ValueError(f"{page}:{start}: the block has no end")
        title, reason = _TITLE.search(opened["info"]), _NOT_RUN.fullmatch(said.strip())
        found.append(
            Block(
                page, start + 1, section, opened["language"], title[1] if title else "",
                textwrap.dedent("\n".join(body)) + "\n", reason[1] if reason else None,
            )
        )  # fmt: skip
        at, said = at + 1, ""
    return found
