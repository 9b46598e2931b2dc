"""Run ``fedhypevae`` as it runs in an image: only the image's packages, a root that is read-only.

``python image_guard.py REQUIREMENTS FOLDERS ARGUMENTS...``: what is not in the requirements file
cannot be imported, and Python writes nothing outside of the folders (with colons between them).
Every attempt to write ends up on standard error, as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OURS = {"api", "benchmarks", "core", "worker"}
_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


class OnlyThese:
    """A finder before all others: it refuses what the image does not have."""

    def __init__(self, requirements: Path) -> None:
        lines = requirements.read_text().splitlines()
        allowed = {_normal(line.partition("==")[0]) for line in lines if "==" in line}
        self.absent = {
            name
            for name, wheels in packages_distributions().items()
            if name not in OURS and not allowed & {_normal(wheel) for wheel in wheels}
        }

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in self.absent:
            raise ModuleNotFoundError(f"{name} is not in this image", name=name)
        return None


def read_only(folders: Sequence[str]) -> None:
    """Refuse every write outside of the folders."""
    allowed = [os.path.realpath(folder) for folder in (*folders, "/dev", "/proc")]

    def inside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # a descriptor that is open already
        found = os.path.realpath(os.fsdecode(path))
        return any(found == each or found.startswith(each + "/") for each in allowed)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and bool(
                flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            )
            writes = writes or (isinstance(mode, str) and bool(set(mode) & set("wax+")))
        elif event in _WRITES:
            path, writes = arguments[0], True
        else:
            return
        if writes and not inside(path):
            os.write(2, f"IMAGE GUARD: {event} {path!r}\n".encode())
            raise OSError(30, "Read-only file system", path)

    sys.addaudithook(hook)


def main() -> None:
    requirements, folders, *arguments = sys.argv[1:]
    sys.path[0] = str(ROOT)
    sys.dont_write_bytecode = True
    sys.meta_path.insert(0, OnlyThese(Path(requirements)))
    read_only(folders.split(":"))
    # As the image's console script would, from pyproject.toml: an installed copy may be older.
    import tomllib
    from importlib.metadata import EntryPoint

    from core import cli

    with (ROOT / "pyproject.toml").open("rb") as file:
        known = tomllib.load(file)["project"]["entry-points"][cli.GROUP]
    found = {name: EntryPoint(name, value, cli.GROUP) for name, value in known.items()}
    cli.commands = lambda: found
    cli.main(arguments)


if __name__ == "__main__":
    main()
