"""What the commands of the coordinator's machine share: settings, transactions, one-line errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

import typer
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from api.config import S, Secrets, SettingsError, load
from api.db.engine import Database
from core.errors import DomainError

T = TypeVar("T")


def stop(message: str, code: int = 1) -> NoReturn:
    typer.echo(f"fedhypevae: {message}", err=True)
    raise typer.Exit(code)


def settings(kind: type[S], **overrides: object) -> S:
    try:
        return load(kind, **{k: v for k, v in overrides.items() if v is not None})
    except SettingsError as error:
        stop(str(error))


def first_line(error: Exception) -> str:
    origin = getattr(error, "orig", None) or error
    return str(origin).strip().partition("\n")[0]


def run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except DomainError as error:
        stop(str(error))
    except SQLAlchemyError as error:
        stop(f"database: {first_line(error)} (has 'fedhypevae db upgrade' been run?)")


@asynccontextmanager
async def transaction(secrets: Secrets) -> AsyncIterator[tuple[AsyncSession, Database]]:
    """One transaction of this command."""
    database = Database(secrets.database_url, pool_size=2)
    try:
        async with database.write() as session:
            yield session, database
    finally:
        await database.close()
