"""SQL of secure sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb
from sqlalchemy import ColumnElement, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.base import uuid7
from api.db.engine import Database
from api.db.models import Client
from api.db.run_models import Round, Run, RunClient
from api.db.secure_models import SecureSum, SumStep
from core.wire.secure import StepName

# In which state of its round a step may be answered.
STATE_OF: Mapping[StepName, str] = {
    "keys": "keys",
    "shares": "shares",
    "confirm": "confirming",
    "open": "opening",
}
STEP_OF: Mapping[str, StepName] = {state: step for step, state in STATE_OF.items()}

# The oldest step that a client may answer now. A pause holds nothing up that spends nothing.
NEXT = """
SELECT s.id FROM sum_steps s
JOIN rounds r ON r.run_id = s.run_id AND r.number = s.round_number
JOIN run_clients m ON m.run_id = s.run_id AND m.client_id = s.client_id
WHERE s.client_id = %(client_id)s AND s.state = 'asked'
  AND (%(run_id)s::uuid IS NULL OR s.run_id = %(run_id)s)
  AND r.state = CASE s.step WHEN 'confirm' THEN 'confirming' WHEN 'open' THEN 'opening'
                ELSE s.step END
  AND m.left_at IS NULL AND m.quarantined_at IS NULL
ORDER BY s.id LIMIT 1
"""
STILL_ASKED = """
SELECT 1 FROM sum_steps
WHERE run_id = %(run_id)s AND round_number = %(number)s AND step = %(step)s AND state = 'asked'
LIMIT 1
"""
# A client's word, in one statement that finds nothing unless the step is still asked in a round
# that is still at this step, as things are once the locks are held. FOR SHARE: what a step of the
# driver has read of the answers is all that will ever be there of them. Locks in the order of
# everywhere: the round, then what is of a client.
SETTLE = """
WITH held AS (
    SELECT s.id, s.run_id, s.round_number, s.client_id
    FROM rounds r JOIN sum_steps s ON s.run_id = r.run_id AND s.round_number = r.number
    WHERE s.id = %(step_id)s AND s.state = 'asked' AND r.state = %(round_state)s
    FOR SHARE OF r FOR NO KEY UPDATE OF s
), settled AS (
    UPDATE sum_steps SET state = %(state)s, body = %(body)s, reason = %(reason)s,
        answered_at = clock_timestamp() + %(clock)s
    FROM held WHERE sum_steps.id = held.id
), told AS (
    INSERT INTO audit_events
        (id, kind, actor_scope, actor_token, run_id, round_number, client_id, request_id, detail)
    SELECT %(event_id)s, %(kind)s, %(actor_scope)s, %(actor_token)s, run_id, round_number,
           client_id, %(request_id)s, %(detail)s
    FROM held
)
SELECT id FROM held
"""


@dataclass(frozen=True)
class Asked:
    """A step with everything around it."""

    step: SumStep
    round: Round
    run: Run
    client: Client

    @property
    def name(self) -> StepName:
        return self.step.step  # type: ignore[return-value]

    @property
    def is_open(self) -> bool:
        """Whether an answer would count now."""
        return self.step.state == "asked" and self.round.state == STATE_OF[self.name]


async def one(session: AsyncSession, step_id: UUID) -> Asked | None:
    query = (
        select(SumStep, Round, Run, Client)
        .join(Round, (Round.run_id == SumStep.run_id) & (Round.number == SumStep.round_number))
        .join(Run, Run.id == SumStep.run_id)
        .join(Client, Client.id == SumStep.client_id)
        .where(SumStep.id == step_id)
    )
    found = (await session.execute(query)).first()
    return None if found is None else Asked(*found)


async def sum_of(session: AsyncSession, run_id: UUID, number: int) -> SecureSum | None:
    return await session.get(SecureSum, (run_id, number))


async def said(
    session: AsyncSession, run_id: UUID, number: int, step: StepName
) -> dict[UUID, tuple[str, str]]:
    """(state, reason) by client of everybody who was asked for the step."""
    query = select(SumStep.client_id, SumStep.state, SumStep.reason).where(
        SumStep.run_id == run_id, SumStep.round_number == number, SumStep.step == step
    )
    return {row[0]: (row[1], row[2]) for row in await session.execute(query)}


def _answered(run_id: UUID, number: int, step: StepName) -> tuple[ColumnElement[bool], ...]:
    return (
        SumStep.run_id == run_id,
        SumStep.round_number == number,
        SumStep.step == step,
        SumStep.state == "answered",
    )


async def answers(
    session: AsyncSession,
    run_id: UUID,
    number: int,
    step: StepName,
    names: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Bodies by client's name (of these clients), in the order of names."""
    query = (
        select(Client.name, SumStep.body)
        .join(Client, Client.id == SumStep.client_id)
        .where(*_answered(run_id, number, step))
    )
    if names is not None:
        query = query.where(Client.name.in_(names))
    found = {row[0]: row[1] for row in await session.execute(query)}
    return {name: found[name] for name in sorted(found)}


async def sharers(session: AsyncSession, run_id: UUID, number: int) -> list[str]:
    """Names of those who have shared secrets; the shares stay where they are."""
    query = (
        select(Client.name)
        .join(SumStep, SumStep.client_id == Client.id)
        .where(*_answered(run_id, number, "shares"))
    )
    return sorted(await session.scalars(query))


async def ask(
    session: AsyncSession, run_id: UUID, number: int, step: StepName, client_ids: Sequence[UUID]
) -> dict[UUID, UUID]:
    """New steps; their ids by client."""
    ids = {client_id: uuid7() for client_id in client_ids}
    if not ids:
        return ids
    rows = [
        {
            "id": step_id, "run_id": run_id, "round_number": number, "client_id": client_id,
            "step": step, "state": "asked", "reason": "", "queued_count": 0,
        }
        for client_id, step_id in ids.items()
    ]  # fmt: skip
    await session.execute(insert(SumStep), rows)
    return ids


async def settle(
    database: Database,
    step_id: UUID,
    *,
    round_state: str,
    state: str,
    body: dict[str, Any] | None,
    reason: str,
    event: Mapping[str, Any],
) -> bool:
    """Whether the word counts now. ``event``: the columns of ``api.audit.row``. Run again it finds
    the step settled, and does nothing.
    """
    told = {name: event[name] for name in ("kind", "actor_scope", "actor_token", "request_id")}
    found = await database.act(
        SETTLE,
        step_id=step_id, round_state=round_state, state=state,
        body=None if body is None else Jsonb(body), reason=reason,
        event_id=event["id"], detail=Jsonb(event["detail"]), **told,
    )  # fmt: skip
    return bool(found)


async def unannounced(session: AsyncSession) -> Sequence[SumStep]:
    """Steps of managed clients that could be answered now, locked."""
    at_this_step = [
        (SumStep.step == step) & (Round.state == state) for step, state in STATE_OF.items()
    ]
    query = (
        select(SumStep)
        .join(Round, (Round.run_id == SumStep.run_id) & (Round.number == SumStep.round_number))
        .join(Client, Client.id == SumStep.client_id)
        .join(
            RunClient,
            (RunClient.run_id == SumStep.run_id) & (RunClient.client_id == SumStep.client_id),
        )
        .where(
            Client.managed,
            Client.revoked_at.is_(None),
            RunClient.left_at.is_(None),
            RunClient.quarantined_at.is_(None),
            SumStep.state == "asked",
            or_(*at_this_step),
        )
        .with_for_update(of=SumStep, key_share=True, skip_locked=True)
    )
    return (await session.scalars(query)).all()
