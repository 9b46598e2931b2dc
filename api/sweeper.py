"""Drives runs: opens rounds, ends leases and deadlines, publishes, starts the next round.

One replica at a time holds a Postgres advisory lock on a connection of its own; when it dies, the
server frees the lock and another replica goes on. The lock only saves work: every step is a
transaction under row locks, so two sweepers at once would do no harm.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
import structlog

from api.consents import service as consents
from api.context import Context
from api.db import outbox
from api.db.engine import TOPIC_SWEEP
from api.db.hub import wait
from api.erasure import service as erasure
from api.events import order
from api.jobs import service as jobs
from api.joins import queue as joins
from api.rounds import driver
from api.rounds import repository as rounds
from api.secure_sums import asking
from api.synthesis_jobs import making as files

log = structlog.get_logger(__name__)
# "fhv-sweep" as a number; advisory locks have no names.
LOCK_KEY = 0x6668_7673_7765_6570
# A run that changes more often than this in one sweep is stuck in a loop: look at others first.
_STEPS_AT_ONCE = 100
# After an error a run is left alone for a moment: the others go on, the log stays readable.
_REST = timedelta(seconds=2)
_HOUSEKEEPING = timedelta(minutes=10)
_REST_SHARE = 20
# But never longer than this: a sweep may have taken long because it waited for a lock, and a run
# that had to give in to a migration has nobody who rings for it.
_LONGEST_REST_S = 5.0
# How often what is not a round's is looked at if nobody rings: ends of jobs' leases, messages to
# send again, joins that wait. Most of it has tens of seconds.
_CHORES_S = 1.0


class Leader:
    """The advisory lock, on its own connection."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._connection: psycopg.AsyncConnection | None = None

    async def holds(self) -> bool:
        """Do we hold the lock (and is the connection that holds it alive)?"""
        try:
            if self._connection is not None:
                await self._connection.execute("SELECT 1")
                return True
            connection = await self._ctx.database.connect_alone()
            cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_KEY,))
            row = await cursor.fetchone()
            if row is not None and row[0]:
                self._connection = connection
                self._ctx.meters.leads.set(1)
                log.info("sweeper_leads")
                return True
            await connection.close()
        except psycopg.Error as error:
            log.warning("sweeper_lost_database", error=type(error).__name__)
            await self.release()
        return False

    async def release(self) -> None:
        self._ctx.meters.leads.set(0)
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


class Sweeper:
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._leader = Leader(ctx)
        self._grace_until: datetime | None = None
        self._tidied: datetime | None = None
        self._erasing = True  # what a crash left is looked for at once
        self._rests: dict[UUID, datetime] = {}

    async def run(self) -> None:
        """Until cancelled. Whoever follows looks at the lock once a second."""
        try:
            with self._ctx.hub.subscribe(TOPIC_SWEEP) as bell:
                rung, did_all = True, 0.0
                while True:
                    if await self._leader.holds():
                        began = time.monotonic()
                        thorough = rung or began - did_all >= _CHORES_S
                        await self._guarded_sweep(thorough)
                        did_all = began if thorough else did_all
                        # Looking at a round of a thousand clients takes this process a while: as
                        # long for others as for itself, however often it is woken, and much longer
                        # if nobody wakes it.
                        pace, took = self._ctx.settings.sweep_s, time.monotonic() - began
                        await asyncio.sleep(min(took, pace))
                        rest = min(_REST_SHARE * took, _LONGEST_REST_S)
                        rung = await wait(bell, max(pace, rest))
                    else:
                        self._grace_until, rung = None, True
                        await asyncio.sleep(self._ctx.settings.poll_s)
        finally:
            await self._leader.release()

    async def _guarded_sweep(self, thorough: bool) -> None:
        try:
            await self.sweep(thorough=thorough)
        except Exception:
            log.exception("sweep_failed")

    async def sweep(self, *, thorough: bool = True) -> None:
        """Everything that is due now; unless ``thorough``, of rounds that are under way only. Sites
        could not reach a coordinator that was down: after a start nobody is declared late until the
        grace has passed.
        """
        ctx = self._ctx
        async with ctx.database.read() as session:
            now = await ctx.database.now(session)
            live = await rounds.live(session)
        if self._grace_until is None:
            self._grace_until = now + timedelta(seconds=ctx.settings.grace_s)
        if thorough and now >= self._grace_until:
            async with ctx.database.write() as session:
                await jobs.expire(ctx, session)
        self._rests = {run: until for run, until in self._rests.items() if until > now}
        for run_id in live:
            if run_id in self._rests:
                continue
            try:
                for _ in range(_STEPS_AT_ONCE):
                    if not await driver.step(ctx, run_id, self._grace_until):
                        break
            except Exception:
                log.exception("step_failed", run_id=str(run_id))
                self._rests[run_id] = now + _REST
        if thorough:
            await self._chores(now)

    async def _chores(self, now: datetime) -> None:
        ctx = self._ctx
        await joins.place(ctx)
        await files.look_after(ctx)
        async with ctx.database.write() as session:
            await outbox.announce_again(session, now, ctx.settings.resend_s)
            await consents.announce_again(session, now, ctx.settings.resend_s)
            await asking.announce_again(session, now, ctx.settings.resend_s)
            if self._tidied is None or now - self._tidied > _HOUSEKEEPING:
                await outbox.sweep_up(session, now)
                self._tidied, self._erasing = now, True
                await order.place(session)  # if nobody has read the trail for a while
        if self._erasing:  # batch by batch: rounds must not wait for it
            self._erasing = await erasure.tidy(ctx)
