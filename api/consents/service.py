"""A site's word on a plan: asked once for each run and client, given once, never taken back.

No work is made for a client that has not approved (``core.federation.rounds``), so nothing is
reserved for it either. What is kept here steers the coordinator and is shown to auditors; a site
does not rely on it but on its own configuration and its own ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal
from api.clients import repository as clients
from api.consents import repository, views
from api.consents.repository import Asked
from api.consents.views import Costed
from api.context import Context
from api.db import outbox
from api.db.engine import TOPIC_SWEEP, ring, topic_of_client
from api.db.models import Client
from api.db.run_models import Run
from api.problems import Conflict, NotFound
from api.webhooks import kinds as webhooks
from core.wire.messages import ConsentDecision

log = structlog.get_logger(__name__)
State = Literal["asked", "approved", "refused"]
_STATES: dict[str, State] = {"approve": "approved", "refuse": "refused"}
_NONE = "there is no such plan, or it is not yours"
OLD_AGENT = "the site speaks protocol 1: it is not asked, its policy judges every order"


async def ask(
    session: AsyncSession, run: Run, epsilons: Sequence[tuple[Client, float]], now: datetime
) -> None:
    """Put a run's plan before its clients, each with what its account would come to."""
    of = {client.id: client for client, _ in epsilons}
    added = await repository.add(session, run, epsilons)
    if added:
        await webhooks.tell(
            session,
            "plan-awaiting-consent",
            see=f"/v1/runs/{run.id}",
            run_id=run.id,
            clients=len(added),
        )
    for consent in added:
        if of[consent.client_id].managed:
            await outbox.announce_consent(session, consent, now)
        else:
            await ring(session, topic_of_client(consent.client_id))


async def refused_by(session: AsyncSession, run_id: UUID) -> set[UUID]:
    """Clients whose sites have refused this run: they are not asked again."""
    states = await repository.states(session, run_id)
    return {client for client, state in states.items() if state == "refused"}


async def next_plan(
    session: AsyncSession, client_id: UUID, run_id: UUID | None, seen: Iterable[UUID]
) -> Costed | None:
    """The oldest plan that awaits this client's word and that its agent has not seen."""
    found = await repository.awaiting(session, client_id, run_id=run_id, but=seen, limit=1)
    return await views.costed(session, found[0]) if found else None


async def speak_for_old_agent(
    ctx: Context, session: AsyncSession, who: Principal, client_id: UUID, run_id: UUID | None
) -> None:
    """An agent of protocol 1 asks for work: whatever awaits its word is approved by the policy
    with which it judges every order, as it always did.
    """
    for asked in await repository.awaiting(session, client_id, run_id=run_id):
        await repository.lock(session, asked.run.id, client_id)
        await session.refresh(asked.consent)
        if asked.consent.state == "asked":
            now = await ctx.database.now(session)
            await _settle(session, who, asked, "approved", "policy", OLD_AGENT, now)


async def speak_for_old_worker(
    ctx: Context, session: AsyncSession, who: Principal, plan_id: UUID
) -> None:
    """The same for a train worker of protocol 1: it has claimed a plan as if it were work."""
    asked = await repository.of_managed(session, plan_id)
    if asked is None:
        return
    await repository.lock(session, asked.run.id, asked.client.id)
    await session.refresh(asked.consent)
    if asked.consent.state == "asked":
        now = await ctx.database.now(session)
        await _settle(session, who, asked, "approved", "policy", OLD_AGENT, now)


async def decide(
    ctx: Context, session: AsyncSession, who: Principal, run_id: UUID, body: ConsentDecision
) -> Costed:
    """Set a plan's state, once. The same decision again changes nothing; another is refused."""
    client = (await clients.by_names(session, [body.client])).get(body.client)
    mine = client is not None and (
        client.managed if who.scope == "worker" else client.id == who.client_id
    )
    if client is None or not mine:
        raise NotFound(_NONE)
    await repository.lock(session, run_id, client.id)
    asked = await repository.one(session, run_id, client.id)
    if asked is None:
        raise NotFound(_NONE)
    consent, state = asked.consent, _STATES[body.decision]
    if body.spec_digest != consent.spec_digest:
        raise Conflict(
            f"the run's specification is {consent.spec_digest}",
            field="spec_digest",
            mend="Look at the plan again, and decide on what it is.",
        )
    if consent.state == "asked":
        if not await repository.is_wanted(session, consent):
            raise Conflict(
                f"the run is {asked.run.state} and awaits nothing of {client.name!r}",
                field="run_id",
            )
        now = await ctx.database.now(session)
        await _settle(session, who, asked, state, body.by, body.why, now)
    elif consent.state != state:
        raise Conflict(
            f"the site has {consent.state} this plan, and a decision is final",
            field="decision",
            mend=f"Leave the run: POST /v1/runs/{run_id}/clients/{client.id}/leave. What was "
            "accepted stays, and nothing more is asked of the site."
            if consent.state == "approved"
            else "Take part in another run.",
        )
    return await views.costed(session, asked)


async def _settle(
    session: AsyncSession,
    who: Principal,
    asked: Asked,
    state: State,
    by: str,
    why: str,
    now: datetime,
) -> None:
    consent = asked.consent
    await repository.settle(session, consent, state=state, by=by, why=why, now=now)
    # Without ``why``: it is the site's and the coordinator's, and the trail has other readers.
    await audit.record(
        session,
        f"consent-{state}",
        who,
        run_id=asked.run.id,
        client_id=asked.client.id,
        by=by,
        spec_digest=consent.spec_digest,
        epsilon_after=consent.epsilon,
    )
    await ring(session, TOPIC_SWEEP)
    log.info("plan_decided", run_id=str(asked.run.id), client=asked.client.name, state=state, by=by)


async def announce_again(session: AsyncSession, now: datetime, resend_s: float) -> int:
    """Managed clients' plans that nobody has answered: the pause doubles, as with work."""
    count = 0
    for consent in await repository.unannounced(session):
        if outbox.due(consent.queued_at, consent.queued_count, now, resend_s):
            await outbox.announce_consent(session, consent, now)
            count += 1
    return count
