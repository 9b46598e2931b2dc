"""What the commands of sites and workers share: settings, the connection, errors as one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from worker import logs
from worker.config import SiteConfig, WorkerSettings, load_settings
from worker.errors import WorkerError

if TYPE_CHECKING:  # httpx is imported by the commands that need it
    from worker.client import CoordinatorClient

ClientOption = Annotated[str | None, typer.Option("--client", help="Only this client.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document.")]


def app(text: str) -> typer.Typer:
    """Plain tracebacks: decorated ones print local variables, which may hold records or tokens."""
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        help=text,
        pretty_exceptions_enable=False,
        pretty_exceptions_show_locals=False,
    )


@contextmanager
def told() -> Iterator[None]:
    """Errors that a person can mend become one message and exit code 1."""
    try:
        yield
    except WorkerError as error:
        stop(str(error))


def stop(message: str) -> NoReturn:
    print(f"fedhypevae: {message}", file=sys.stderr)
    raise typer.Exit(1)


def prepare() -> WorkerSettings:
    settings = load_settings()
    logs.configure(settings.log_level)
    if settings.plain_http_to_elsewhere:
        logs.get("worker").warning(
            "token_over_plain_http",
            coordinator=settings.coordinator_url,
            mend="Use https://, or a network that nobody else can read.",
        )
    return settings


@contextmanager
def connected() -> Iterator[tuple[WorkerSettings, SiteConfig, CoordinatorClient]]:
    """Settings, this site's configuration, and the coordinator with the site's cache."""
    from worker.cache import ObjectCache
    from worker.client import CoordinatorClient

    settings = prepare()
    site = settings.require_site()
    cache = ObjectCache(site.state_dir / "objects")
    token = settings.token_source(site.state_dir)
    with CoordinatorClient(settings.coordinator_url, token, cache=cache) as coordinator:
        yield settings, site, coordinator


def chosen(site: SiteConfig, client: str | None) -> list[Any]:
    return list(site.client) if client is None else [site.require(client)]
