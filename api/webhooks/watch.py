"""What nobody does, but what becomes so with time: rounds that are stuck, budgets that run out.

Each has a key, so it is told once, whoever finds it and however often. A webhook that is the first
to ask for a kind is told what holds at that moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import datetime, timedelta

import psycopg
import structlog
from sqlalchemy.exc import SQLAlchemyError

from api.context import Context
from api.metrics import books
from api.metrics import repository as ledger
from api.secure_sums.repository import STEP_OF
from api.webhooks import kinds, repository
from api.webhooks.repository import Late

log = structlog.get_logger(__name__)
_PACE_S = 5.0
_BUDGETS_S = 60.0  # a look at every ledger entry
_FORGET_S = 600.0
_GRACE = timedelta(seconds=60)  # a living coordinator ends a round within a second
SHARE = 0.8


class Watcher:
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._budgets_due = self._forget_due = 0.0

    async def run(self) -> None:
        """Until cancelled, in every replica."""
        while True:
            try:
                await self.look(thorough=time.monotonic() >= self._budgets_due)
            except (SQLAlchemyError, psycopg.Error, OSError) as error:
                log.warning("watcher_without_database", error=type(error).__name__)
            await asyncio.sleep(_PACE_S)

    async def look(self, *, thorough: bool = True) -> None:
        await self._rounds()
        if thorough:
            await self._budgets()
            self._budgets_due = time.monotonic() + _BUDGETS_S
        if time.monotonic() >= self._forget_due:
            kept = timedelta(days=self._ctx.settings.webhooks_retention_days)
            async with self._ctx.database.write() as session:
                await repository.forget(session, await self._ctx.database.now(session), kept)
            self._forget_due = time.monotonic() + _FORGET_S

    async def _rounds(self) -> None:
        ctx = self._ctx
        async with ctx.database.read() as session:
            if not await repository.is_wanted(session, "round-stuck"):
                return
            now = await ctx.database.now(session)
            known = await repository.told_keys(session, "round-stuck")
            found = await repository.waiting_rounds(session)
        limit = timedelta(seconds=ctx.settings.webhooks_stuck_s)
        for late in found:
            for why in _stuck(late, now, limit):
                key = kinds.stuck_key(late.run_id, late.number, why)
                if key in known:
                    continue
                async with ctx.database.write() as session:
                    await kinds.tell(
                        session, "round-stuck", key=key,
                        see=f"/v1/runs/{late.run_id}/rounds/{late.number}",
                        run_id=late.run_id, round=late.number, state=late.state, why=why,
                    )  # fmt: skip

    async def _budgets(self) -> None:
        ctx = self._ctx
        async with ctx.database.read() as session:
            if not await repository.is_wanted(session, "budget-80"):
                return
            known = await repository.told_keys(session, "budget-80")
            ids = await repository.client_ids(session)
        asked = [
            client
            for client in await ledger.clients(ctx.database)
            if client.name in ids and budget_key(ids[client.name]) not in known
        ]
        reserved = await ledger.reserved(ctx.database)
        for spent in await asyncio.to_thread(books.spent, asked, reserved):
            if spent.worst < SHARE * spent.budget:
                continue
            client_id = ids[spent.client]
            async with ctx.database.write() as session:
                await kinds.tell(
                    session, "budget-80", key=budget_key(client_id),
                    see=f"/v1/clients/{client_id}/ledger", client_id=client_id,
                )  # fmt: skip


def budget_key(client_id: object) -> str:
    return f"budget-80:{client_id}"


def _stuck(late: Late, now: datetime, limit: timedelta) -> Iterator[str]:
    """Why a round counts as stuck, if it does; ``extended`` is told where it happens."""
    waits_for_sites = late.state == "open" or late.state in STEP_OF
    if waits_for_sites and late.deadline is not None and now > late.deadline + _GRACE:
        yield "overdue"
    if late.state in STEP_OF:  # which end of themselves
        return
    if now - late.since > limit:
        yield "open-too-long" if late.state == "open" else "summed-too-long"
