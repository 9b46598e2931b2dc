"""HTTP of replays."""

from __future__ import annotations

import time
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from api import examples
from api.auth import Admin, Overseer, Principal
from api.context import Context, Ctx
from api.db.engine import topic_of_run
from api.db.hub import wait as pause
from api.idempotency import REPLAYED_HEADER, Key
from api.openapi import answers
from api.replays import service
from api.replays.service import ReplayView
from api.rounds.endpoints import Number

router = APIRouter(prefix="/v1/runs", tags=["rounds"])
Wait = Annotated[
    float, Query(ge=0, le=3_600, description="Seconds to wait for its end; the server may cut it.")
]


async def _ended(
    ctx: Context,
    request: Request,
    who: Principal,
    run_id: UUID,
    number: int,
    replay_id: UUID,
    seconds: float,
) -> ReplayView:
    """The replay once it has ended, or as it is after the wait."""
    until = time.monotonic() + min(seconds, ctx.settings.max_wait_s)
    with ctx.hub.subscribe(topic_of_run(run_id)) as bell:
        while True:
            async with ctx.database.read() as session:
                found = await service.one(session, who, run_id, number, replay_id)
            left = until - time.monotonic()
            over = found.state in ("done", "failed") or left <= 0
            if over or ctx.hub.closing or await request.is_disconnected():
                return found
            await pause(bell, min(left, ctx.settings.poll_s))


@router.post(
    "/{run_id}/rounds/{number}/replay",
    operation_id="replayRound",
    summary="Recompute a published round",
    description="A worker sums the stored updates again and compares digests with what was "
    "published. Nothing is stored and nothing changes. Each request is a replay of its own.",
    status_code=202,
    responses=answers(
        202,
        examples.REPLAY,
        "Asked for (done already, with `wait` and luck).",
        "not-found",
        "not-replayable",
        "idempotency-key-reused",
    ),
)
async def ask(
    ctx: Ctx,
    who: Admin,
    request: Request,
    response: Response,
    run_id: UUID,
    number: Number,
    wait: Wait = 0,
    key: Key = None,
) -> ReplayView:
    made, repeated = await service.ask(ctx, who, run_id, number, key)
    response.headers["Location"] = f"/v1/runs/{run_id}/rounds/{number}/replays/{made.id}"
    if repeated:
        response.headers[REPLAYED_HEADER] = "true"
    if not wait and not repeated:
        return made
    return await _ended(ctx, request, who, run_id, number, made.id, wait)


@router.get(
    "/{run_id}/rounds/{number}/replays/{replay_id}",
    operation_id="getReplay",
    summary="One replay",
    description="Its state; once done, whether the bytes are the same.",
    responses=answers(
        200,
        {
            **examples.REPLAY,
            "state": "done",
            "why": "",
            "same": True,
            "files": [{**file, "found": file["expected"]} for file in examples.REPLAY["files"]],
            "attempt": 1,
            "finished_at": examples.AT,
        },
        "The replay.",
        "not-found",
    ),
)
async def one(
    ctx: Ctx,
    who: Overseer,
    request: Request,
    run_id: UUID,
    number: Number,
    replay_id: UUID,
    wait: Wait = 0,
) -> ReplayView:
    return await _ended(ctx, request, who, run_id, number, replay_id, wait)
