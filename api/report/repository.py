"""SQL of reports: what the ledger and the rounds know of a published model."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from api.db.run_models import LedgerEntry, Round, Update
from api.db.secure_models import SecureSum
from core.privacy.events import PrivacyEvent
from core.report.spending import Reserved


async def reserved(
    session: AsyncSession, run_id: UUID, up_to_round: int
) -> dict[UUID, list[Reserved]]:
    """Account -> what the run reserved of it up to a round, oldest first."""
    outcome = aliased(LedgerEntry)
    query = (
        select(
            LedgerEntry.account_id,
            LedgerEntry.round_number,
            LedgerEntry.event,
            func.coalesce(outcome.kind == "lost", False),
        )
        .outerjoin(outcome, outcome.reserve_id == LedgerEntry.id)
        .where(
            LedgerEntry.run_id == run_id,
            LedgerEntry.round_number <= up_to_round,
            LedgerEntry.kind == "reserve",
        )
        .order_by(LedgerEntry.id)
    )
    found: dict[UUID, list[Reserved]] = {}
    for account, number, event, lost in await session.execute(query):
        one = Reserved(number, PrivacyEvent.model_validate(event), lost)
        found.setdefault(account, []).append(one)
    return found


async def accepted(session: AsyncSession, run_id: UUID, up_to_round: int) -> dict[UUID, int]:
    """Client -> how many of its updates are in the model of a round."""
    query = (
        select(Update.client_id, func.count())
        .join(Round, (Round.run_id == Update.run_id) & (Round.number == Update.round_number))
        .where(
            Update.run_id == run_id,
            Update.round_number <= up_to_round,
            Round.state == "published",
        )
        .group_by(Update.client_id)
    )
    return {row[0]: row[1] for row in await session.execute(query)}


async def joins(session: AsyncSession, run_id: UUID, last_round: int, up_to_round: int) -> int:
    """Published join rounds up to a round; ``last_round`` of the plan."""
    query = select(func.count()).where(
        Round.run_id == run_id,
        Round.state == "published",
        Round.number > last_round,
        Round.number <= up_to_round,
    )
    return int((await session.execute(query)).scalar_one())


async def summed(session: AsyncSession, run_id: UUID) -> tuple[int, int] | None:
    """How many clients a run's first secure sum asked, and how many are in it; None if it has
    none.
    """
    here = (
        select(func.count())
        .where(Update.run_id == run_id, Update.round_number == 0)
        .scalar_subquery()
    )
    query = select(func.jsonb_array_length(SecureSum.session["sites"]), here).where(
        SecureSum.run_id == run_id, SecureSum.round_number == 0
    )
    found = (await session.execute(query)).first()
    return None if found is None else (found[0], found[1])
