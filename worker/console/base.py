"""What the commands share: the connection, errors as a person reads them, tables, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from core.errors import DomainError
from core.terminal import printable
from worker.answers import JsonObject, Retry
from worker.config import WorkerSettings, load_settings
from worker.errors import ApiProblem, WorkerError

if TYPE_CHECKING:  # httpx is imported by the commands that need it
    from worker.client import CoordinatorClient

CODES = "Exit codes: 0 done, 1 failed or refused, 2 wrong usage."
# Somebody waits at a terminal: a coordinator that starts again is waited for, an outage is not.
_PATIENCE = Retry(attempts=5, total_s=15.0)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def app(text: str) -> typer.Typer:
    """Plain tracebacks: decorated ones print local variables, which may hold tokens."""
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        help=f"{text}\n\nFHV_COORDINATOR_URL says where, FHV_TOKEN or FHV_TOKEN_FILE who. {CODES}",
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        pretty_exceptions_show_locals=False,
    )


def stop(message: str, code: int = 1) -> NoReturn:
    typer.echo(f"fedhypevae: {printable(message)}", err=True)
    raise typer.Exit(code)


@contextmanager
def told() -> Iterator[None]:
    """Errors that a person can mend: what is wrong, which input, what to do. Exit code 1."""
    try:
        yield
    except (WorkerError, DomainError) as error:
        stop("\n".join(lines_of(error)))


def lines_of(error: WorkerError | DomainError) -> list[str]:
    """The error's parts, one a line; a coordinator's problem document has all of them."""
    lines = [error.message]
    if isinstance(error, ApiProblem):
        lines = [error.detail or error.message]
        lines += [f"  code:  {error.problem} ({error.status})"]
        fields = [each for each in error.errors if each.get("field") != error.field]
        lines += [f"  also:  {each.get('field')}: {each.get('detail')}" for each in fields]
    if error.field:
        lines.append(f"  field: {error.field}")
    if error.mend:
        lines.append(f"  mend:  {error.mend}")
    lines += [f"  {line}" for line in getattr(error, "problems", ())]
    if isinstance(error, ApiProblem) and error.request_id and error.status >= 500:
        lines.append(f"  request: {error.request_id}")
    return lines


@contextmanager
def connected() -> Iterator[CoordinatorClient]:
    """The coordinator that settings name, with their token; errors are told."""
    from worker.client import CoordinatorClient

    with told():
        settings = settings_of_person()
        with CoordinatorClient(
            settings.coordinator_url, settings.token_source(), retry=_PATIENCE
        ) as client:
            yield client


def settings_of_person() -> WorkerSettings:
    """Says so where the token would cross a network unencrypted. Raises ``ConfigError``."""
    settings = load_settings()
    if settings.plain_http_to_elsewhere:
        typer.echo(
            f"fedhypevae: the token goes to {settings.coordinator_url} unencrypted; "
            "use https://, or a network that nobody else can read.",
            err=True,
        )
    return settings


def named(items: Iterable[JsonObject], name: str, what: str) -> JsonObject:
    """The item with this id or name; else exit code 1, with what there is."""
    known = list(items)
    for item in known:
        if name in (str(item["id"]), item.get("name")):
            return item
    there = ", ".join(str(item["name"]) for item in known[-10:]) or "none"
    stop(f"there is no {what} {name!r}; the newest are: {there}.")


def confirmed(question: str, yes: bool) -> None:
    """Ask before something that cannot be undone; a program must say --yes. Exit code 1: no."""
    if yes:
        return
    if not at_terminal():
        stop(f"{question} Nobody can answer here: give --yes.", 2)
    typer.confirm(question, abort=True)


def at_terminal() -> bool:
    """Can somebody answer a question?"""
    return sys.stdin.isatty()


def show_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def show_list(
    items: Sequence[JsonObject],
    heads: Sequence[str],
    row: Callable[[JsonObject], Sequence[object]],
    nothing: str,
    *,
    as_json: bool,
) -> None:
    """All items as JSON for a program, or one row each for a person."""
    if as_json:
        show_json(items)
    else:
        show_table(heads, map(row, items), nothing)


def show_table(heads: Sequence[str], rows: Iterable[Sequence[object]], nothing: str) -> None:
    """Columns with two spaces between; easily read, and easily cut by a program."""
    cells = [[printable("" if cell is None else str(cell)) for cell in row] for row in rows]
    if not cells:
        typer.echo(nothing)
        return
    table = [list(heads), *cells]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    for row in table:
        typer.echo("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip())


def moment(value: str | None) -> str:
    """A time of the coordinator without its fractions of a second."""
    return "" if value is None else value[:19].replace("T", " ")
