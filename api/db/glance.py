"""Single statements outside any transaction, for what every request asks.

A session's transaction costs three round trips (BEGIN, the statement, COMMIT) and ten times the
statement's own work in this process. Here a statement is one round trip on a connection that can
only read. It sees what was committed when it began, like the first statement of a transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, LiteralString

import psycopg
from psycopg.rows import TupleRow

_Connection = psycopg.AsyncConnection[TupleRow]


class Glances:
    """A few connections of their own; SQL with ``%(name)s`` for values."""

    def __init__(self, url: str, options: str, size: int) -> None:
        self._url = url
        self._options = f"{options} -c default_transaction_read_only=on"
        self._idle: list[_Connection] = []
        self._places = asyncio.Semaphore(size)

    async def rows(self, statement: LiteralString, values: Mapping[str, Any]) -> list[TupleRow]:
        """All rows. A connection that broke while it was idle is replaced once: reading again
        does no harm.
        """
        async with self._places:
            if self._idle:
                try:
                    return await self._ask(self._idle.pop(), statement, values)
                except psycopg.OperationalError:
                    await self._forget_all()
            return await self._ask(await self._connect(), statement, values)

    async def _ask(
        self, connection: _Connection, statement: LiteralString, values: Mapping[str, Any]
    ) -> list[TupleRow]:
        try:
            cursor = await connection.execute(statement, values)
            found = await cursor.fetchall()
        except BaseException:  # also a caller that has gone: what it asked may still be under way
            await connection.close()
            raise
        self._idle.append(connection)
        return found

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
