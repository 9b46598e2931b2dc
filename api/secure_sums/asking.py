"""Steps of secure sums as effects of the round's table. Called under the round's locks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from api.db import outbox
from api.db.engine import ring_all, topic_of_client
from api.db.secure_models import SecureSum
from api.rounds.moment import Moment
from api.secure_sums import known, progress, repository
from api.updates.repository import remember_object
from api.work import assignment
from core.federation.rounds import AskStep
from core.federation.secure_sum import bound, session_of
from core.secagg.messages import Session, Transcript


def session_for(at: Moment, wanted: AskStep, inputs: Sequence[str] = ()) -> Session:
    """The session of the round's sum over these clients. Raises ``ValueError`` if there is none."""
    return session_of(at.spec, at.row.number, wanted.clients, inputs)


async def ask(at: Moment, wanted: AskStep) -> None:
    """Put a step before these clients; with ``keys`` the session is written down."""
    session, run_id, number = at.session, at.run.id, at.row.number
    if wanted.step == "keys":
        inputs = await assignment.inputs_of(session, run_id, at.spec, number)
        made = session_for(at, wanted, bound(inputs))
        session.add(
            SecureSum(run_id=run_id, round_number=number, session=made.model_dump(mode="json"))
        )
        await session.flush()
    places = [at.place(name).client for name in wanted.clients]
    ids = await repository.ask(
        session, run_id, number, wanted.step, [client.id for client in places]
    )
    managed = [ids[client.id] for client in places if client.managed]
    await outbox.announce_steps(session, managed, at.now)
    topics = [topic_of_client(client.id) for client in places if not client.managed]
    await ring_all(session, topics)


async def keep_transcript(at: Moment) -> None:
    """Store what opens the sum. The same answers make the same bytes, so that a process that died
    after it was stored leaves nothing that the next one does not find.
    """
    session, run_id, number = at.session, at.run.id, at.row.number
    fixed = await known.at(session, run_id, number, "open")
    transcript = Transcript(
        session=fixed.session,
        adverts=fixed.roster,
        sharers=fixed.sharers,
        openings=await progress.openings(session, run_id, number),
    )
    body = transcript.model_dump_json().encode()
    stored = await asyncio.to_thread(at.ctx.store.put, body)
    await remember_object(session, stored.digest, stored.size)
    row = await repository.sum_of(session, run_id, number)
    if row is None:
        raise RuntimeError(f"round {number} of run {run_id} has no secure sum")
    row.transcript = stored.digest
    await session.flush()


async def announce_again(session: AsyncSession, now: datetime, resend_s: float) -> int:
    """Managed clients' steps that nobody has answered: the pause doubles, as with work."""
    again = [
        step.id
        for step in await repository.unannounced(session)
        if outbox.due(step.queued_at, step.queued_count, now, resend_s)
    ]
    await outbox.announce_steps(session, again, now)
    return len(again)
