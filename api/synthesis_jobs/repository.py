"""SQL of synthesis jobs and of the parts of their files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from api.db.models import StoredObject, Token
from api.db.synthesis_models import IssuedReceipt, SynthesisJob, SynthesisPart
from api.pages import cut
from core.receipts.receipt import Receipt

OPEN = ("ready", "leased")
_ENDED = ("failed", "cancelled", "expired")
# Advisory lock: parts are named under its shared mode, bytes are deleted under its exclusive one,
# so that nobody names a part in the moment in which its bytes go.
_PARTS = 0x464856_0002


async def lock_token(session: AsyncSession, token_id: UUID) -> None:
    """One after the other from here on: jobs of this token are counted before one is added."""
    await session.execute(
        select(Token.id).where(Token.id == token_id).with_for_update(key_share=True)
    )


async def count_open(session: AsyncSession, token_id: UUID) -> int:
    query = select(func.count()).where(
        SynthesisJob.token_id == token_id, SynthesisJob.state.in_(OPEN)
    )
    return int(await session.scalar(query) or 0)


async def locked(session: AsyncSession, job_id: UUID) -> SynthesisJob | None:
    found: SynthesisJob | None = await session.scalar(
        select(SynthesisJob)
        .where(SynthesisJob.id == job_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    return found


async def page(
    session: AsyncSession, token_id: UUID | None, limit: int, after: UUID | None
) -> Sequence[SynthesisJob]:
    """Of a token, or (None) all."""
    query = select(SynthesisJob)
    if token_id is not None:
        query = query.where(SynthesisJob.token_id == token_id)
    return (await session.scalars(cut(query, SynthesisJob.id, limit, after))).all()


async def remember_receipt(session: AsyncSession, receipt: Receipt, job: SynthesisJob) -> None:
    await session.execute(
        insert(IssuedReceipt)
        .values(
            id=receipt.id,
            run_id=job.run_id,
            round_number=job.round_number,
            body=receipt.model_dump(mode="json", exclude={"content"}),
        )
        .on_conflict_do_nothing()
    )


async def overdue(session: AsyncSession, now: datetime) -> Sequence[SynthesisJob]:
    """Jobs whose lease has ended, locked; those that somebody else holds come another time."""
    query = (
        select(SynthesisJob)
        .where(SynthesisJob.state == "leased", SynthesisJob.lease_expires <= now)
        .with_for_update(key_share=True, skip_locked=True)
    )
    return (await session.scalars(query)).all()


async def stale(session: AsyncSession, now: datetime) -> Sequence[SynthesisJob]:
    """Jobs whose file has had its time, locked."""
    query = (
        select(SynthesisJob)
        .where(SynthesisJob.state == "done", SynthesisJob.expires_at <= now)
        .with_for_update(key_share=True, skip_locked=True)
    )
    return (await session.scalars(query)).all()


# --- parts ---


async def lock_parts(session: AsyncSession, *, deleting: bool = False) -> None:
    lock = func.pg_advisory_xact_lock if deleting else func.pg_advisory_xact_lock_shared
    await session.execute(select(lock(_PARTS)))


async def parts(session: AsyncSession, job_id: UUID, attempt: int) -> Sequence[SynthesisPart]:
    """In order."""
    query = (
        select(SynthesisPart)
        .where(SynthesisPart.job_id == job_id, SynthesisPart.attempt == attempt)
        .order_by(SynthesisPart.number)
    )
    return (await session.scalars(query)).all()


async def summed(session: AsyncSession, job_id: UUID, attempt: int) -> tuple[int, int]:
    """(number, bytes) of the parts that an attempt has stored."""
    query = select(func.count(), func.coalesce(func.sum(SynthesisPart.size), 0)).where(
        SynthesisPart.job_id == job_id, SynthesisPart.attempt == attempt
    )
    count, size = (await session.execute(query)).one()
    return int(count), int(size)


async def part(
    session: AsyncSession, job_id: UUID, attempt: int, number: int
) -> SynthesisPart | None:
    return await session.get(SynthesisPart, (job_id, attempt, number))


async def unwanted(session: AsyncSession, limit: int) -> Sequence[SynthesisPart]:
    """Parts of jobs that have ended without a file, or whose file has had its time, and parts of
    attempts that came to nothing of those that are done.
    """
    query = (
        select(SynthesisPart)
        .join(SynthesisJob, SynthesisJob.id == SynthesisPart.job_id)
        .where(
            SynthesisJob.state.in_(_ENDED)
            | ((SynthesisJob.state == "done") & (SynthesisPart.attempt < SynthesisJob.attempt))
        )
        .order_by(SynthesisPart.job_id, SynthesisPart.attempt, SynthesisPart.number)
        .limit(limit)
    )
    return (await session.scalars(query)).all()


async def only_here(session: AsyncSession, one: SynthesisPart) -> bool:
    """Does nothing else name these bytes: no part of another file, no update, no model?"""
    other = aliased(SynthesisPart)
    elsewhere = exists().where(
        other.digest == one.digest,
        (other.job_id != one.job_id)
        | (other.attempt != one.attempt)
        | (other.number != one.number),
    )
    stored = exists().where(StoredObject.digest == one.digest)
    return not await session.scalar(select(elsewhere | stored))


async def forget(session: AsyncSession, one: SynthesisPart) -> None:
    await session.execute(
        delete(SynthesisPart).where(
            SynthesisPart.job_id == one.job_id,
            SynthesisPart.attempt == one.attempt,
            SynthesisPart.number == one.number,
        )
    )
