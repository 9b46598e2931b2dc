"""Connections and transactions. One transaction a request, committed at its edge.

Writers use ``write()``, readers ``read()`` (a READ ONLY transaction: a reader that writes by
mistake fails). All times come from the database's clock, so replicas agree.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, LiteralString

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import ARRAY, Text, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from api import tracing as statements
from api.db.ping import check_when_taken
from api.db.single import SingleStatements
from core import tracing

# A request that waits longer than this for a row is stuck: better an error than a pile.
_LOCK_TIMEOUT_MS = 15_000
_STATEMENT_TIMEOUT_MS = 60_000
_OPTIONS = (
    f"-c lock_timeout={_LOCK_TIMEOUT_MS} -c statement_timeout={_STATEMENT_TIMEOUT_MS} "
    "-c idle_in_transaction_session_timeout=120000"
)
# Connections beside the pool's; each takes a millisecond or, to the disk, a few.
_GLANCES = 4
_ACTS = 4


class Database:
    """The engine of one process. ``clock_offset`` lets tests move the clock, nothing else."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self.url = url
        self.clock_offset = timedelta(0)
        self._engine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=30,
            connect_args={
                "application_name": "fedhypevae-api",
                "options": _OPTIONS,
            },
        )
        check_when_taken(self._engine)
        if tracing.is_on():
            statements.watch(self._engine.sync_engine)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        # The same pool; transactions begin with BEGIN READ ONLY.
        readers = self._engine.execution_options(postgresql_readonly=True)
        self._readers = async_sessionmaker(readers, expire_on_commit=False)
        read_only = f"{_OPTIONS} -c default_transaction_read_only=on"
        self._glances = SingleStatements(self._plain_url, read_only, _GLANCES)
        self._acts = SingleStatements(self._plain_url, _OPTIONS, _ACTS)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A transaction that commits when the block ends and rolls back when it raises."""
        async with self._sessions() as session, session.begin():
            yield session

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A READ ONLY transaction."""
        async with self._readers() as session, session.begin():
            yield session

    async def now(self, session: AsyncSession) -> datetime:
        """The database's time (of this statement, not of the transaction's start)."""
        now: datetime = (await session.execute(select(func.clock_timestamp()))).scalar_one()
        return now + self.clock_offset

    async def glance(self, statement: LiteralString, **values: Any) -> list[TupleRow]:
        """Rows of one SELECT outside a transaction: cheap, for what every request asks.

        ``%(clock)s`` is the tests' offset, to be added to ``clock_timestamp()``.
        """
        return await self._glances.rows(statement, {"clock": self.clock_offset, **values})

    async def act(self, statement: LiteralString, **values: Any) -> list[TupleRow]:
        """Rows of one statement that writes and is a transaction by itself: committed when this
        returns. It runs again if its connection broke, so the second time it must find its work
        done and do nothing. ``%(clock)s`` as in ``glance``.
        """
        return await self._acts.rows(statement, {"clock": self.clock_offset, **values})

    @property
    def _plain_url(self) -> str:
        return self.url.replace("postgresql+psycopg://", "postgresql://", 1)

    async def connect_alone(self) -> psycopg.AsyncConnection:
        """A connection of its own outside the pool: for LISTEN and for advisory locks."""
        return await psycopg.AsyncConnection.connect(
            self._plain_url, autocommit=True, application_name="fedhypevae-api"
        )

    async def close(self) -> None:
        await self._glances.close()
        await self._acts.close()
        await self._engine.dispose()


async def ring(session: AsyncSession, topic: str) -> None:
    """Wake whoever waits for ``topic``, in all replicas, when this transaction commits."""
    await session.execute(select(func.pg_notify(CHANNEL, topic)))


async def ring_all(session: AsyncSession, topics: Sequence[str]) -> None:
    """Wake whoever waits for any of them, as ``ring`` does."""
    each = func.unnest(cast(list(topics), ARRAY(Text))).column_valued("topic")
    await session.execute(select(func.pg_notify(CHANNEL, each)))


CHANNEL = "fedhypevae"
TOPIC_SWEEP = "sweep"
TOPIC_OUTBOX = "outbox"


def topic_of_client(client_id: object) -> str:
    return f"work:{client_id}"


def topic_of_run(run_id: object) -> str:
    return f"run:{run_id}"
