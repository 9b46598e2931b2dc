"""Synthesis jobs as their owners see them: asked for, looked at, given up, downloaded."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field, TypeAdapter
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal
from api.context import Context
from api.db.base import uuid7
from api.db.outbox import announce_file
from api.db.run_models import Run
from api.db.synthesis_models import SynthesisJob, SynthesisPart
from api.idempotency import remember, replay
from api.problems import FileGone, FileNotReady, NotFound, TooManyAnswers
from api.synthesis.models import Generators, Models
from api.synthesis_jobs import repository
from api.usage import service as usage
from core.synthesis.request import SynthesisRequest

State = Literal["ready", "leased", "done", "failed", "cancelled", "expired"]
DEFAULT_FORMAT = "parquet"
_STATES = TypeAdapter[State](State)
_WHY = {
    "ready": "waits for a worker of the queue synthesis",
    "leased": "a worker makes rows",
    "cancelled": "nobody wants it any more",
    "expired": "the file has had its time and was deleted",
}
_RETRY_S = 30


class JobView(BaseModel):
    id: UUID
    state: State
    why: str
    run: str
    run_id: UUID
    round: int
    format: str
    request: SynthesisRequest
    seed: int
    rows: int
    rows_done: int = Field(description="Of this attempt.")
    attempt: int
    size: int | None = Field(description="Bytes of the file, once it is done.")
    receipt_id: str | None
    receipt: str | None = Field(description="Path of the receipt.")
    file: str | None = Field(description="Path of the file, while it can be downloaded.")
    created_at: datetime
    finished_at: datetime | None
    expires_at: datetime | None = Field(description="The file is deleted then.")


def path_of(job_id: UUID) -> str:
    return f"/v1/synthesis-jobs/{job_id}"


def view(job: SynthesisJob, run: Run) -> JobView:
    return JobView(
        id=job.id,
        state=_state(job),
        why=job.reason or _WHY.get(job.state, ""),
        run=run.name,
        run_id=job.run_id,
        round=job.round_number,
        format=job.format,
        request=SynthesisRequest.model_validate(job.request),
        seed=job.seed,
        rows=job.rows,
        rows_done=job.rows_done,
        attempt=job.attempt,
        size=job.size,
        receipt_id=job.receipt_id,
        receipt=None if job.receipt_id is None else f"/v1/receipts/{job.receipt_id}",
        file=f"{path_of(job.id)}/file" if job.state == "done" else None,
        created_at=job.created_at,
        finished_at=job.finished_at,
        expires_at=job.expires_at,
    )


def _state(job: SynthesisJob) -> State:
    state: State = _STATES.validate_python(job.state)
    return state


async def create(
    ctx: Context,
    who: Principal,
    models: Models,
    generators: Generators,
    body: SynthesisRequest,
    key: str | None,
) -> tuple[JobView, bool, dict[str, str]]:
    """The new job, whether this is a repeated request for it, and what is left of the quota. Wrong
    requests are refused here, not by the worker.
    """
    usage.must_be_allowed(ctx.settings, body.size, "n" if body.n is not None else "class_counts")
    number = None if body.round == "latest" else body.round
    found = await models.published(ctx, who, body.run, number)
    request = found.resolved(body).model_copy(
        update={
            "run": str(found.run.id),
            "round": found.model.round,
            "format": body.format or DEFAULT_FORMAT,
        }
    )
    seed = secrets.randbelow(2**63) if body.seed is None else body.seed
    async with ctx.heavy:
        generator = await generators.get(ctx, found)
        await asyncio.to_thread(generator.rows, request, seed)  # raises for what cannot be made
    async with ctx.database.write() as session:
        if before := await replay(session, who, key, "createSynthesisJob", body):
            return JobView.model_validate(before), True, {}
        await repository.lock_token(session, who.token_id)
        most = ctx.settings.synthesis_jobs_per_token
        if await repository.count_open(session, who.token_id) >= most:
            raise TooManyAnswers(
                f"{most} jobs of this token are under way",
                mend="Wait for one of them to end, or cancel it.",
                retry_after_s=_RETRY_S,
            )
        left = await usage.charge(ctx, who, body.size)
        now = await ctx.database.now(session)
        job = SynthesisJob(
            id=uuid7(),
            token_id=who.token_id,
            run_id=found.run.id,
            round_number=found.model.round,
            request=request.model_dump(mode="json"),
            seed=seed,
            format=request.format or DEFAULT_FORMAT,
            rows=request.size,
            state="ready",
            available_at=now,
        )
        session.add(job)
        await session.flush()
        await session.refresh(job)
        await announce_file(session, job, now)
        await told(session, "synthesis-job-created", who, job, n=job.rows)
        answer = view(job, found.run)
        await remember(session, who, key, answer.model_dump(mode="json"))
    return answer, False, left


async def told(
    session: AsyncSession, kind: str, who: Principal | None, job: SynthesisJob, **facts: Any
) -> None:
    await audit.record(
        session,
        kind,
        who,
        run_id=job.run_id,
        round_number=job.round_number,
        job=str(job.id),
        **facts,
    )


def _mine(who: Principal, job: SynthesisJob | None) -> SynthesisJob:
    """The job, if there is one and the caller may see it; else ``NotFound`` either way."""
    if job is None or (who.scope != "admin" and job.token_id != who.token_id):
        raise NotFound("there is no such job, or it is not yours")
    return job


async def _run_of(session: AsyncSession, job: SynthesisJob) -> Run:
    run = await session.get(Run, job.run_id)
    if run is None:
        raise NotFound("there is no such run")
    return run


async def one(session: AsyncSession, who: Principal, job_id: UUID) -> JobView:
    job = _mine(who, await session.get(SynthesisJob, job_id))
    return view(job, await _run_of(session, job))


async def some(
    session: AsyncSession, who: Principal, limit: int, after: UUID | None
) -> list[JobView]:
    """Of the caller's token; an administrator sees all. One more than ``limit``, if there is."""
    owner = None if who.scope == "admin" else who.token_id
    jobs = await repository.page(session, owner, limit, after)
    return [view(job, await _run_of(session, job)) for job in jobs]


async def cancel(ctx: Context, session: AsyncSession, who: Principal, job_id: UUID) -> None:
    """What is being made is dropped, what was made is deleted. Repeatable."""
    job = _mine(who, await repository.locked(session, job_id))
    if job.state in repository.OPEN:
        job.state, job.finished_at = "cancelled", await ctx.database.now(session)
        await told(session, "synthesis-job-cancelled", who, job)
    elif job.state == "done":
        job.state = "expired"
        await told(session, "synthesis-job-expired", who, job)


@dataclass(frozen=True)
class File:
    """A finished file: its parts in order."""

    parts: Sequence[SynthesisPart]
    size: int
    etag: str
    name: str
    format: str
    receipt_id: str


async def file(ctx: Context, who: Principal, models: Models, job_id: UUID) -> File:
    """Raises ``FileNotReady``, ``FileGone``, or ``ClientWithdrawn`` for rows of a client that was
    revoked meanwhile.
    """
    async with ctx.database.read() as session:
        job = _mine(who, await session.get(SynthesisJob, job_id))
        parts = await repository.parts(session, job.id, job.attempt)
    if job.state in ("ready", "leased"):
        raise FileNotReady(f"the job is {job.state}: {_WHY[job.state]}", mend="Ask again later.")
    if job.state != "done" or job.size is None or job.receipt_id is None:
        raise FileGone(f"the job is {job.state}", mend="Ask for the rows again.")
    found = await models.published(ctx, who, str(job.run_id), job.round_number)
    request = SynthesisRequest.model_validate(job.request)
    found.must_allow(request.mixture)
    columns = "+".join(request.columns)
    return File(
        parts=parts,
        size=job.size,
        etag=f'"{job.receipt_id}.{job.format}.{request.dtype}.{columns}"',
        name=f"{found.run.name}-round-{job.round_number}-seed-{job.seed}.{job.format}",
        format=job.format,
        receipt_id=job.receipt_id,
    )


async def pieces(ctx: Context, file: File, first: int, last: int) -> AsyncIterator[bytes]:
    """Bytes ``first`` to ``last`` of the file, part by part."""
    at = 0
    for part in file.parts:
        start, end = max(first - at, 0), min(last - at + 1, part.size)
        if start < end:
            body = await asyncio.to_thread(ctx.store.get, part.digest)
            yield body[start:end]
        at += part.size
        if at > last:
            return
