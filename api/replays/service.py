"""A replay: the coordinator's worker sums a published round again and says which digests it finds.

It stores nothing and changes nothing: not the round, not the run, not the ledger. Its whole result
is whether the bytes are the same.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal
from api.context import Context
from api.db.base import uuid7
from api.db.outbox import announce_job
from api.db.run_models import Job, Round, Run
from api.idempotency import remember, replay
from api.problems import NotFound, NotReplayable
from api.replays import repository
from api.rounds import repository as rounds
from api.rounds import service as round_service
from api.runs import service as runs
from core.wire.messages import AggregateResult

_OPERATION = "replayRound"
_AT_ONCE = 16
_STATES: dict[str, Literal["waiting", "running", "done", "failed"]] = {
    "ready": "waiting",
    "leased": "running",
    "done": "done",
    "failed": "failed",
}


class _Nothing(BaseModel):
    """The body of a request that has none."""


File = Literal["frame", "weights", "optimiser"]
_FILES: tuple[File, ...] = ("frame", "weights", "optimiser")


class FileView(BaseModel):
    """One file of the round: as it was published, and as it was found now."""

    file: File
    expected: str
    found: str | None


class ReplayView(BaseModel):
    id: UUID
    run_id: UUID
    round: int
    state: Literal["waiting", "running", "done", "failed"]
    why: str = Field(description="What it waits for, or why it failed.")
    same: bool | None = Field(description="Once done: are all files the same, byte for byte?")
    files: list[FileView]
    attempt: int
    created_at: datetime
    finished_at: datetime | None


def files_of(row: Round, job: Job) -> list[FileView]:
    """Digests expected and found. The round must be published."""
    here: tuple[str | None, str | None, str | None] = (None, None, None)
    if job.result is not None:
        result = AggregateResult.model_validate(job.result)
        here = (result.frame.digest, result.weights.digest, result.optimiser_digest)
    before = (row.frame_digest, row.weights_digest, row.optimiser_digest)
    return [
        FileView(file=file, expected=old or "", found=new)
        for file, old, new in zip(_FILES, before, here, strict=True)
    ]


def is_same(row: Round, job: Job) -> bool | None:
    """None before the result is there."""
    if job.result is None:
        return None
    return all(file.found == file.expected for file in files_of(row, job))


def view(row: Round, job: Job) -> ReplayView:
    waits = {"ready": "waits for a worker of the queue coordinator", "leased": "a worker sums"}
    why = job.reason or waits.get(job.state, "")
    return ReplayView(
        id=job.id,
        run_id=job.run_id,
        round=job.round_number,
        state=_STATES[job.state],
        why=why if job.state != "done" else "",
        same=is_same(row, job),
        files=files_of(row, job),
        attempt=job.attempt,
        created_at=job.created_at,
        finished_at=job.finished_at,
    )


_AFTER = {
    "retention": "the retention period",
    "requested": "a client's request",
    "revoked": "a client was revoked",
}


async def _check(ctx: Context, session: AsyncSession, run: Run, row: Round) -> None:
    """Raises ``NotReplayable``, saying why and since when."""
    if row.state != "published":
        raise NotReplayable(
            f"round {row.number} is {row.state}; only published rounds can be recomputed",
            mend="Choose a published round: GET /v1/runs/{id}/rounds.",
            reason="not-published",
        )
    erased = await repository.first_erasure(session, run.id, row.number)
    if erased is not None:
        after = _AFTER[erased.reason]
        raise NotReplayable(
            f"updates of round {row.number} were erased after {after}",
            mend="The published model stays as it is. Later rounds may be replayable.",
            reason="erased",
            erased_because=erased.reason,
            since=erased.created_at.isoformat(),
        )
    needed = [update.digest for update, _ in await rounds.updates_of(session, run.id, row.number)]
    if row.number > 0:
        before = await rounds.model(session, run.id, None, before=row.number)
        if before is not None:
            needed += [before.frame.digest, before.weights.digest, before.optimiser_digest]
    missing = await _missing(ctx, needed)
    if missing:
        raise NotReplayable(
            f"the object store has lost {len(missing)} of {len(needed)} files of this round, "
            f"first {missing[0]}",
            mend="Restore the object store from its backup.",
            reason="object-missing",
        )


async def _missing(ctx: Context, digests: list[str]) -> list[str]:
    room = asyncio.Semaphore(_AT_ONCE)

    async def there(digest: str) -> bool:
        async with room:
            return await asyncio.to_thread(ctx.store.exists, digest)

    found = await asyncio.gather(*(there(digest) for digest in digests))
    return [digest for digest, here in zip(digests, found, strict=True) if not here]


async def ask(
    ctx: Context, who: Principal, run_id: UUID, number: int, key: str | None
) -> tuple[ReplayView, bool]:
    """A new replay, and whether this is a repeated request for it."""
    async with ctx.database.read() as session:
        run = await runs.visible(session, who, run_id)
        row = await round_service.one(session, run, number)
        await _check(ctx, session, run, row)
    async with ctx.database.write() as session:
        operation = f"{_OPERATION} {run_id} {number}"
        if before := await replay(session, who, key, operation, _Nothing()):
            return ReplayView.model_validate(before), True
        now = await ctx.database.now(session)
        job = Job(
            id=uuid7(),
            kind=repository.KIND,
            run_id=run_id,
            round_number=number,
            available_at=now,
            state="ready",
        )
        session.add(job)
        await session.flush()
        await session.refresh(job)
        await announce_job(session, job, now)
        await audit.record(
            session,
            "replay-asked",
            who,
            run_id=run_id,
            round_number=number,
            replay=str(job.id),
        )
        answer = view(row, job)
        await remember(session, who, key, answer.model_dump(mode="json"))
    return answer, False


async def one(
    session: AsyncSession, who: Principal, run_id: UUID, number: int, replay_id: UUID
) -> ReplayView:
    run = await runs.visible(session, who, run_id)
    row = await round_service.one(session, run, number)
    job = await repository.one(session, run_id, number, replay_id)
    if job is None:
        raise NotFound("this round has no such replay")
    return view(row, job)
