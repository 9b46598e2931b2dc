"""Gives committed events their places in the trail. Done by readers, so that writers pay nothing.

A place is given to what is visible, under one lock that is held until the places are committed:
whoever sees a position sees all that are smaller, and an event that commits late gets a later one.
Between events that become visible together, the order is that in which they were written.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Context

# "fvaudit!" as a number; advisory locks have no names.
_LOCK = text("SELECT pg_advisory_xact_lock(7383229283083154465)")
_WAITING = "SELECT 1 FROM audit_inbox LIMIT 1"
_PLACE = text(
    """
    WITH taken AS (DELETE FROM audit_inbox RETURNING number, event_id, run_id)
    INSERT INTO audit_order (event_id, run_id) SELECT event_id, run_id FROM taken ORDER BY number
    """
)


async def place(session: AsyncSession) -> None:
    """Every event that was committed before has its place once this transaction has ended."""
    await session.execute(_LOCK)  # apart: the next statement sees what this one waited for
    await session.execute(_PLACE)


async def place_new(ctx: Context) -> None:
    """Every event that was committed before has its place now."""
    if await ctx.database.glance(_WAITING):
        async with ctx.database.write() as session:
            await place(session)
