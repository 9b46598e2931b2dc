"""Wake-ups: one LISTEN connection a process, topics, waiters.

Waking is only ever an acceleration. Every waiter also looks by itself after a while, so a lost
notification (the connection broke, a replica restarted) costs a moment and nothing else.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import structlog

from api.db.engine import CHANNEL, Database

log = structlog.get_logger(__name__)
_RECONNECT_S = 1.0
_LOOKS = 100.0  # a second, of all waiters of a process that nobody woke


class Hub:
    """Subscribe BEFORE looking at the database; then wait. No wake-up is missed that way."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._waiting = 0
        self.closing = False

    def pace(self, seconds: float) -> float:
        """After how long a waiter that nobody woke should look by itself: after ``seconds``, or
        later if so many wait that they would look more than ``_LOOKS`` times a second together.
        """
        return max(seconds, self._waiting / _LOOKS)

    @contextmanager
    def subscribe(self, *topics: str) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._waiting += 1
        for topic in topics:
            self._waiters[topic].add(event)
        try:
            yield event
        finally:
            self._waiting -= 1
            for topic in topics:
                self._waiters[topic].discard(event)
                if not self._waiters[topic]:
                    del self._waiters[topic]

    def wake(self, topic: str) -> None:
        for event in self._waiters.get(topic, ()):
            event.set()

    def close(self) -> None:
        """Everybody who waits returns now: the process is about to end."""
        self.closing = True
        self._wake_all()

    def _wake_all(self) -> None:
        for events in self._waiters.values():
            for event in events:
                event.set()

    async def run(self) -> None:
        """Listen until cancelled; connect again after a failure."""
        while True:
            try:
                async with await self._database.connect_alone() as connection:
                    await connection.execute(f"LISTEN {CHANNEL}".encode())
                    self._wake_all()  # what rang while nobody listened
                    async for notice in connection.notifies():
                        self.wake(notice.payload)
            except psycopg.Error as error:
                log.warning("listen_interrupted", error=type(error).__name__)
            await asyncio.sleep(_RECONNECT_S)


async def wait(event: asyncio.Event, seconds: float) -> bool:
    """Until the event or the time, whichever is first; was it the event? It is cleared."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True
