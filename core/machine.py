"""Checks of ``fedhypevae doctor`` that need no setting: Python, packages, limits, memory."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from core.findings import Check, Finding, failed, ok, warn

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
_PYTHON = (3, 11)
_FEW_FILES, _ENOUGH_FILES = 256, 1024
_SHOWN = 6
_IMAGE = "Images leave out what their commands do not need."
_INSTALL = "Install the locked packages: make install (or pip install -r requirements.lock)."


def checks() -> Iterator[Check]:
    yield Check("python", python)
    yield Check("packages", packages)
    yield Check("open files", open_files)


def python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] != _PYTHON:
        yield failed("python", f"this is Python {found}", "Use Python 3.11.")
    else:
        yield ok("python", f"{found} in {sys.prefix}")


def packages() -> Iterator[Finding]:
    """Is what this program asks for there, in the versions of the lock file?"""
    if not LOCK.exists():
        yield warn(
            "packages",
            f"there is no {LOCK.name} beside the program to compare with",
            "Install from a checkout, or from an image that was built from one.",
        )
        return
    pinned = read_lock(LOCK)
    lacking = [name for name in needed() if name in pinned and _installed(name) is None]
    if lacking:
        # An image holds what its own commands need; a command that lacks one says so itself.
        yield warn("packages", f"not installed: {_some(sorted(lacking))}", f"{_INSTALL} {_IMAGE}")
    other = [
        f"{name} {found} (locked: {wanted})"
        for name, wanted in pinned.items()
        if (found := _installed(name)) is not None and found != wanted
    ]
    if other:
        yield warn("packages", f"other versions than tested: {_some(other)}", _INSTALL)
    if not lacking and not other:
        yield ok("packages", f"{len(pinned)} locked versions; none differs")


def read_lock(path: Path) -> dict[str, str]:
    """Name (lower case, dashes) -> version, of a file of ``name==version`` lines."""
    found = {}
    for line in path.read_text().splitlines():
        name, separator, rest = line.partition("==")
        if separator and not line.lstrip().startswith("#"):
            found[_plain(name)] = rest.split(";")[0].split()[0]
    return found


def needed() -> list[str]:
    """What the installed program depends on directly, without its extras; [] if not installed."""
    try:
        wanted = distribution("fedhypevae").requires or []
    except PackageNotFoundError:
        return []
    plain = [each for each in wanted if "extra ==" not in each]
    return [_plain(re.split(r"[\[<>=!~; ]", each, maxsplit=1)[0]) for each in plain]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip().partition("[")[0]).lower()


def _installed(name: str) -> str | None:
    """Its version without a local part (2.1.0+cpu is 2.1.0); None if it is not installed."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def open_files() -> Iterator[Finding]:
    """A coordinator holds a socket for every agent that polls, and connections besides."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    mend = "Raise it: ulimit -n 65536 (LimitNOFILE=65536 in a systemd unit)."
    text = f"{soft} may be open in one process (hard limit {hard})"
    if soft < _FEW_FILES:
        yield failed("open files", text, mend)
    elif soft < _ENOUGH_FILES:
        yield warn("open files", text, mend)
    else:
        yield ok("open files", text)
