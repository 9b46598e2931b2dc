"""Is the process alive, and can it do its work?"""

from __future__ import annotations

import asyncio

import structlog
from fastapi import APIRouter, Request
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from api.context import Ctx
from api.db.outbox import Dispatcher
from api.openapi import answers
from api.problems import NotReady
from core.storage import sha256_of

log = structlog.get_logger(__name__)
router = APIRouter(tags=["health"])


@router.get(
    "/healthz",
    operation_id="getHealth",
    summary="Does the process live?",
    description="Asks nobody else.",
    responses=answers(200, {"status": "ok"}, "It does.", public=True),
)
async def health() -> dict[str, str]:
    return {"status": "ok"}


@router.get(
    "/readyz",
    operation_id="getReadiness",
    summary="Can it serve?",
    description="Asks the database, the object store and, if one is configured, the broker.",
    responses=answers(
        200,
        {"database": "ok", "store": "ok", "broker": "ok"},
        "It can.",
        "not-ready",
        public=True,
    ),
)
async def ready(ctx: Ctx, request: Request) -> dict[str, str]:
    state = {"database": "ok", "store": "ok", "broker": "ok"}
    try:
        async with ctx.database.read() as session:
            await session.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError):
        state["database"] = "unreachable"
    try:
        await asyncio.to_thread(ctx.store.exists, sha256_of(b""))
    except Exception as error:
        # obstore raises a type of its own for every backend; any of them means: not usable.
        log.warning("store_unreachable", error=type(error).__name__)
        state["store"] = "unreachable"
    dispatcher = request.app.state.dispatcher
    if ctx.settings.broker_url is None:
        state["broker"] = "not configured"
    elif not isinstance(dispatcher, Dispatcher) or not await dispatcher.reachable():
        state["broker"] = "unreachable"
    away = [name for name, value in state.items() if value == "unreachable"]
    if away:
        raise NotReady(f"unreachable: {', '.join(away)}", **state)
    return state
