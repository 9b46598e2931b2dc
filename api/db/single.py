"""Single statements outside any transaction, for what every request asks and every update does.

A session's transaction costs three round trips (BEGIN, the statement, COMMIT) and ten times the
statement's own work in this process. Here a statement is one round trip, and a transaction by
itself: it sees what was committed when it began, and all of it counts or nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, LiteralString

import psycopg
from psycopg.rows import TupleRow

from api.tracing import named
from core import tracing

_Connection = psycopg.AsyncConnection[TupleRow]


class SingleStatements:
    """A few connections of their own; SQL with ``%(name)s`` for values."""

    def __init__(self, url: str, options: str, size: int) -> None:
        self._url = url
        self._options = options
        self._idle: list[_Connection] = []
        self._places = asyncio.Semaphore(size)

    async def rows(self, statement: LiteralString, values: Mapping[str, Any]) -> list[TupleRow]:
        """All rows. Where a connection broke the statement runs once more on a new one: it must be
        one that does no harm when it runs again.
        """
        async with self._places:
            connection = self._idle.pop() if self._idle else await self._connect()
            try:
                return await self._ask(connection, statement, values)
            except psycopg.OperationalError:
                if not connection.broken:
                    raise
            await self._forget_all()
            return await self._ask(await self._connect(), statement, values)

    async def _ask(
        self, connection: _Connection, statement: LiteralString, values: Mapping[str, Any]
    ) -> list[TupleRow]:
        try:
            with tracing.child(*named(statement)) if tracing.is_on() else nullcontext():
                cursor = await connection.execute(statement, values)
                found = await cursor.fetchall()
        except psycopg.Error:  # the server's answer, or its end
            self._keep(connection)
            raise
        except BaseException:  # also a caller that has gone: what it asked may still be under way
            await connection.close()
            raise
        self._keep(connection)
        return found

    def _keep(self, connection: _Connection) -> None:
        if not connection.closed:
            self._idle.append(connection)

    async def _connect(self) -> _Connection:
        return await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, application_name="fedhypevae-api", options=self._options
        )

    async def _forget_all(self) -> None:
        """The server was restarted: the other idle connections are as dead as the one that said
        so.
        """
        dead, self._idle = self._idle, []
        for connection in dead:
            await connection.close()

    async def close(self) -> None:
        await self._forget_all()
