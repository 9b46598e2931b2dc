"""What a request needs of its process: settings, database, object store, wake-ups."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from api.config import Settings
from api.db.engine import Database
from api.db.hub import Hub
from api.guard import Guard
from api.metrics.meters import Meters
from core.storage import ObjectStore

# Calibrations and draws take seconds on threads, checks of updates milliseconds: each kind
# queues for itself, so that an operator's plan never holds up a site's update.
_HEAVY_AT_ONCE = 2
_CHECKS_AT_ONCE = 4
_WOKEN_AT_ONCE = 2


@dataclass(frozen=True)
class Context:
    settings: Settings
    database: Database
    store: ObjectStore
    hub: Hub
    meters: Meters
    guard: Guard
    heavy: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_HEAVY_AT_ONCE))
    checks: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CHECKS_AT_ONCE))
    woken: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_WOKEN_AT_ONCE))


async def context(request: Request) -> Context:
    """Asynchronous although it waits for nothing: FastAPI sends plain functions to a thread, four
    times a request here.
    """
    found = request.app.state.context
    if not isinstance(found, Context):
        raise RuntimeError("the application was not started (its lifespan did not run)")
    return found


Ctx = Annotated[Context, Depends(context)]
