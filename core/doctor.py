"""``fedhypevae doctor``: is everything here that the programs need, and how to mend what is not.

Every package says what it checks through the entry-point group ``fedhypevae.checks``: a function
``checks() -> Iterator[Check]``. Core imports none of them, and they do not import one
another. A check that fails in an unforeseen way is itself a finding: it never hides the others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

from core import machine
from core.findings import Check, Finding, Level, failed, warn
from core.terminal import printable

GROUP = "fedhypevae.checks"
# Settings that say which of the two this machine is for.
_SIGNS: dict[str, tuple[str, ...]] = {
    "coordinator": ("FHV_DATABASE_URL", "FHV_TOKEN_PEPPER"),
    "site": ("FHV_SITE_CONFIG", "FHV_TOKEN", "FHV_COORDINATOR_URL"),
}
_MARKS: dict[Level, str] = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}

doctor_app = typer.Typer(
    add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)

_HELP = """
Check this machine, its settings (FHV_...) and what they name; every line says how to mend it.

Without --coordinator or --site: what the settings are of. Nothing is changed, but for a small
object that is written to the store and deleted.

Exit codes: 0 nothing FAILs, 1 something does, 2 wrong usage.

    fedhypevae doctor

    fedhypevae doctor --site --json | jq '.findings[] | select(.level != "ok")'
"""


@dataclass(frozen=True)
class Line:
    """A finding, and which part of the program has found it."""

    part: str
    finding: Finding


def parts() -> dict[str, EntryPoint]:
    """What has registered checks, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def chosen(*, coordinator: bool, site: bool) -> list[str]:
    """Whose checks are wanted: those that were named, else those that settings speak of."""
    named = [name for name, it in (("coordinator", coordinator), ("site", site)) if it]
    if named:
        return named
    return [name for name, signs in _SIGNS.items() if _named(signs)]


def _named(signs: Iterable[str]) -> bool:
    return any(os.environ.get(sign) or os.environ.get(f"{sign}_FILE") for sign in signs)


def examine(roles: Iterable[str]) -> Iterator[Line]:
    """All findings, as they are made: of the machine, then of each role."""
    yield from _of("machine", machine.checks())
    known = parts()
    for role in roles:
        if role not in known:
            lacking = failed(
                "checks",
                f"the checks of the role {role!r} are not installed",
                "Install the package with its entry points: make install.",
            )
            yield Line(role, lacking)
            continue
        try:
            checks: Callable[[], Iterator[Check]] = known[role].load()
        except (ImportError, AttributeError) as error:
            broken = failed(
                "checks",
                f"the checks of the role {role!r} cannot be loaded: {error}",
                "Install the locked packages: make install.",
            )
            yield Line(role, broken)
            continue
        yield from _of(role, checks())


def _of(part: str, checks: Iterator[Check]) -> Iterator[Line]:
    for check in checks:
        try:
            for finding in check.look():
                yield Line(part, finding)
        except Exception as error:
            # Whatever it is: without its text, which may quote a secret.
            yield Line(
                part,
                failed(
                    check.name,
                    f"this check has failed itself ({type(error).__name__})",
                    "Please report it, with the output of 'fedhypevae doctor --json'.",
                ),
            )


@doctor_app.command(help=_HELP)
def doctor(
    coordinator: Annotated[
        bool, typer.Option("--coordinator", help="Check what a coordinator needs.")
    ] = False,
    site: Annotated[
        bool, typer.Option("--site", help="Check what a site or worker needs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Exit codes: 0 nothing FAILs, 1 something does, 2 wrong usage."""
    roles = chosen(coordinator=coordinator, site=site)
    found: list[Line] = []
    for line in examine(roles):
        found.append(line)
        if not as_json:
            for text in shown(line):
                typer.echo(text)
    if not roles:
        found.append(Line("machine", _nothing_set()))
        if not as_json:
            for text in shown(found[-1]):
                typer.echo(text)
    bad = sum(line.finding.level == "fail" for line in found)
    doubtful = sum(line.finding.level == "warn" for line in found)
    if as_json:
        listed = [{"part": line.part, **asdict(line.finding)} for line in found]
        typer.echo(json.dumps({"roles": roles, "failed": bad, "findings": listed}, indent=2))
    else:
        typer.echo(f"{len(found)} findings: {bad} FAIL, {doubtful} warn")
    if bad:
        raise typer.Exit(1)


def _nothing_set() -> Finding:
    return warn(
        "settings",
        "no FHV_ setting says whether this is a coordinator or a site",
        "Set them (README), or give --coordinator or --site.",
    )


def shown(line: Line) -> list[str]:
    """The lines of one finding; nothing in them steers a terminal."""
    finding = line.finding
    texts = [f"{_MARKS[finding.level]}  {finding.name}: {finding.message}"]
    if finding.mend and finding.level != "ok":
        texts.append(f"      mend: {finding.mend}")
    return [printable(text).replace("\n", "\N{REPLACEMENT CHARACTER}") for text in texts]
