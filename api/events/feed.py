"""What the event streams of one process share: a bound on their number, one reader for each run.

A burst of events wakes every stream of its run; the first one reads them, the others take what it
has read. No stream holds a database connection while it waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from api.context import Context
from api.db.run_models import Run
from api.events import repository
from api.events.order import place_new
from api.events.repository import Placed
from api.problems import TooManyStreams

_KEPT = 1_000
_PAGE = 500
# A run that is read more often than this wastes queries: events that come at once go together.
_PACE_S = 0.05


class Tail:
    """The newest events of one run; whoever is further behind reads for itself."""

    def __init__(self, run_id: UUID, position: int) -> None:
        self.run_id = run_id
        self.upto = position  # everything up to here was read
        self.ended: Run | None = None  # only with everything up to ``upto``
        self.users = 0
        self._floor = position  # events behind this position are kept
        self._kept: deque[Placed] = deque()
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()

    async def read(self, ctx: Context, wanted_at: float) -> None:
        """Read on, unless somebody has read since ``wanted_at`` (of ``time.monotonic``)."""
        async with self._lock:
            if self._read_at > wanted_at:
                return
            await asyncio.sleep(max(0.0, self._read_at + _PACE_S - time.monotonic()))
            started = time.monotonic()
            async with ctx.database.read() as session:
                # First whether the run has ended: then the events below are all that there are.
                ended = await repository.ended(session, self.run_id)
            await place_new(ctx)
            async with ctx.database.read() as session:
                while True:
                    new = await repository.of_run(session, self.run_id, self.upto, _PAGE)
                    self._keep(new)
                    if len(new) < _PAGE:
                        break
            self.ended, self._read_at = ended, started

    def _keep(self, new: list[Placed]) -> None:
        if new:
            self._kept.extend(new)
            self.upto = new[-1].position
        while len(self._kept) > _KEPT:
            self._floor = self._kept.popleft().position

    async def behind(self, ctx: Context, position: int) -> list[Placed]:
        """Events that were read, behind a position, oldest first; [] at the end of the tail."""
        if position >= self._floor:
            return [placed for placed in self._kept if placed.position > position]
        async with ctx.database.read() as session:
            return await repository.of_run(session, self.run_id, position, _PAGE)


class Feeds:
    """All event streams of this process."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tails: dict[UUID, Tail] = {}
        self.open = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Room for one stream, or ``TooManyStreams``."""
        if self.open >= self._limit:
            raise TooManyStreams(
                f"this process serves {self._limit} event streams already",
                mend="Close streams that nobody reads, read GET /v1/events instead, or raise "
                "FHV_MAX_STREAMS.",
            )
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    @contextmanager
    def tail(self, run_id: UUID, position: int) -> Iterator[Tail]:
        """The run's tail, begun at ``position`` by its first user, forgotten by its last one."""
        tail = self._tails.setdefault(run_id, Tail(run_id, position))
        tail.users += 1
        try:
            yield tail
        finally:
            tail.users -= 1
            if not tail.users:
                del self._tails[run_id]
