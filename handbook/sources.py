"""Pages made of other files: decisions with an index, the notebook, files outside ``docs/``."""

from __future__ import annotations

import json
import re
from pathlib import Path

from handbook.text import fence, table

ROOT = Path(__file__).resolve().parent.parent
# Files outside of docs/ that have a page of their own: links to them lead there.
OUTSIDE = {"benchmarks/README.md": "explanation/benchmarks.md", "CHANGELOG.md": "changelog.md"}


def decisions() -> str:
    """The index of docs/decisions."""
    rows = []
    for path in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        number, _, title = path.read_text().split("\n", 1)[0].removeprefix("# ").partition(" · ")
        rows.append((number, f"[{title}]({path.name})"))
    return (
        "# Decisions\n\nOne page each: what was chosen, what else was possible, and what was "
        "measured. A decision that no longer holds says so.\n\n" + table(("", "decision"), rows)
    )


def notebook() -> str:
    """docs/synthesize.ipynb as a page."""
    cells = json.loads((ROOT / "docs" / "synthesize.ipynb").read_text())["cells"]
    note = "[The notebook](../synthesize.ipynb) as a page; a test runs every cell of it.\n"
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(fence("python", text) if cell["cell_type"] == "code" else text + "\n")
    parts.insert(1, note)
    return "\n".join(parts)


def outside() -> dict[str, str]:
    """Files from elsewhere in the repository. Their links are made to fit by ``relinked``."""
    return {page: (ROOT / source).read_text() for source, page in OUTSIDE.items()}


def relinked(markdown: str, page: str) -> str:
    """Links between docs/ and files outside of it lead to those files' pages.

    A link to a file that has no page stays as it is, and the build fails because of it.
    """
    sources = {made: source for source, made in OUTSIDE.items()}
    here = ROOT / sources[page] if page in sources else ROOT / "docs" / page

    def mended(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        found = (here.parent / target).resolve()
        if not found.is_relative_to(ROOT):
            return match[0]
        inside = found.relative_to(ROOT).as_posix()
        wanted = OUTSIDE.get(inside) or inside.removeprefix("docs/")
        if wanted == inside:  # neither in docs/ nor known
            return match[0]
        up = "../" * page.count("/")
        return f"]({up}{wanted}{anchor})"

    return re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", mended, markdown)
