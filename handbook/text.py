"""Small pieces of Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST = 60  # items of a list, keys of an object in an example; more are left out


def cell(text: object) -> str:
    """Text inside a table: one line, no cell of its own."""
    flat = re.sub(r"\s+", " ", str(text)).strip()
    return flat.replace("|", "\\|").replace("<", "&lt;")


def code(text: object) -> str:
    """A literal inside a table."""
    plain = re.sub(r"[`\s]+", " ", str(text)).replace("|", "\\|")
    return f"`{plain}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already. No rows, no table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines]) + "\n"


def fence(language: str, text: str, indent: str = "") -> str:
    """A block of code, also inside of a list or a fold."""
    lines = [f"```{language}", *text.rstrip("\n").split("\n"), "```"]
    return "\n".join(indent + line if line else "" for line in lines) + "\n"


def fold(title: str, body: str) -> str:
    """Something to open by a click."""
    inner = "\n".join(f"    {line}" if line else "" for line in body.rstrip("\n").split("\n"))
    return f'??? example "{title}"\n\n{inner}\n'


def shown(value: Any) -> str:
    """An example as JSON; long lists are cut, which the text says."""
    return json.dumps(_cut(value), indent=2, ensure_ascii=False)


def _cut(value: Any) -> Any:
    if isinstance(value, list):
        kept = [_cut(item) for item in value[:_LONGEST]]
        return kept if len(value) <= _LONGEST else [*kept, f"... {len(value)} in all"]
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    return value
