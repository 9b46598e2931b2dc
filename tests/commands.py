"""The commands of this checkout, as its pyproject.toml registers them, whatever is installed."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def registered(group: str) -> list[EntryPoint]:
    """In the place of ``importlib.metadata.entry_points(group=...)``."""
    read = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    return [EntryPoint(name, value, group) for name, value in read.get(group, {}).items()]


def main() -> None:
    """``python -m tests.commands ...`` is ``fedhypevae ...``."""
    from core import cli, doctor

    cli.entry_points = registered  # type: ignore[assignment]
    doctor.entry_points = registered  # type: ignore[assignment]
    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
