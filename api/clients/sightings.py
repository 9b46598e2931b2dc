"""When a client's agent was heard of last, and which version it is."""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Context
from api.db.dashboard_models import ClientSighting
from core.recent import Recent

EVERY_S = 60.0
_MOST = 20_000
_AGENT = re.compile(r"fedhypevae-client/([0-9A-Za-z.+-]{1,40})")
# Replicas keep no common clock of what they have written: the row decides, and a second writing
# within the minute changes nothing. A client that is revoked meanwhile keeps its row.
_NOTE = """
    INSERT INTO client_sightings AS s (client_id, at, version)
    VALUES (%(client_id)s, clock_timestamp() + %(clock)s, %(version)s)
    ON CONFLICT (client_id) DO UPDATE SET at = EXCLUDED.at, version = EXCLUDED.version
    WHERE s.at < EXCLUDED.at - interval '30 seconds' OR s.version <> EXCLUDED.version
    RETURNING 1
"""


@dataclass(frozen=True)
class Sighting:
    at: datetime
    version: str


class Sightings:
    """What this process has written of each client lately, so that polls cost a row a minute."""

    def __init__(self) -> None:
        self._written: Recent[UUID, tuple[float, str]] = Recent(_MOST)

    async def note(self, ctx: Context, client_id: UUID, user_agent: str | None) -> None:
        """The client's agent is there."""
        found = _AGENT.fullmatch(user_agent or "")
        version, now = found.group(1) if found else "", time.monotonic()
        before = self._written.get(client_id)
        if before is not None and before[1] == version and now - before[0] < EVERY_S:
            return
        await ctx.database.act(_NOTE, client_id=client_id, version=version)
        self._written.keep(client_id, (now, version))


async def of(session: AsyncSession, client_ids: Collection[UUID]) -> dict[UUID, Sighting]:
    """Of those that were ever heard of."""
    query = select(ClientSighting).where(ClientSighting.client_id.in_(client_ids))
    return {row.client_id: Sighting(row.at, row.version) for row in await session.scalars(query)}
