"""A plan as it is put before a site: what it asks for, and what it costs the site's account."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.consents import repository
from api.consents.repository import Asked
from api.ledger import repository as ledger
from api.runs.specs import spec_of
from core.federation.plan import RunSpec
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent
from core.wire.messages import PlanOffer


@dataclass(frozen=True)
class Costed:
    """An asked plan with the events of its price; the accounting itself comes after the
    transaction.
    """

    asked: Asked
    spec: RunSpec
    joins: bool
    plan: Sequence[PrivacyEvent]
    spent: Sequence[PrivacyEvent]
    still: Sequence[PrivacyEvent]


def _events(spec: RunSpec, done: Collection[int], *, joins: int | None) -> list[PrivacyEvent]:
    """What one client has yet to do, if no attempt is lost: of the plan, or in one join round."""
    if joins is None:
        return spec.events(done)
    return [] if joins in done else [spec.event(joins)]


async def costed(session: AsyncSession, asked: Asked) -> Costed:
    """Read what the price is made of. ``still`` is what the clients of the run that share this
    account have yet to do, if nothing (more) is lost: each of them its own rounds.
    """
    spec = spec_of(asked.run)
    joins: int | None = None
    if not asked.founding or asked.run.state == "completed":
        joins = asked.waiting.number if asked.waiting is not None else spec.last_round + 1
    entries = await ledger.of_account(session, asked.client.account_id)
    reserved = [entry for entry in entries if entry.kind == "reserve" and entry.event]
    still: list[PrivacyEvent] = []
    if asked.consent.state == "asked":
        lost = {entry.reserve_id for entry in entries if entry.kind == "lost"}
        done: dict[UUID, set[int]] = {asked.client.id: set()}
        for member in await repository.sharing(session, asked.run.id, asked.client.account_id):
            done.setdefault(member, set())
        for entry in reserved:
            if entry.run_id == asked.run.id and entry.client_id in done and entry.id not in lost:
                done[entry.client_id].add(entry.round_number)
        still = [event for rounds in done.values() for event in _events(spec, rounds, joins=joins)]
    spent = [PrivacyEvent.model_validate(entry.event) for entry in reserved]
    plan = _events(spec, (), joins=joins)
    return Costed(asked, spec, joins is not None, plan, spent, still)


def _offer(costed: Costed) -> PlanOffer:
    consent, client, run = costed.asked.consent, costed.asked.client, costed.asked.run
    open_, delta = consent.state == "asked", client.budget_delta
    waiting = costed.asked.waiting if open_ else None
    after = epsilon([*costed.spent, *costed.still], delta) if open_ else consent.epsilon
    return PlanOffer(
        plan_id=str(consent.id),
        run_id=str(run.id),
        run=run.name,
        client_id=str(client.id),
        client=client.name,
        joins=costed.joins,
        rounds=len(costed.plan),
        spec=costed.spec,
        spec_digest=consent.spec_digest,
        epsilon_plan=epsilon(costed.plan, delta),
        epsilon_spent=epsilon(costed.spent, delta),
        epsilon_after=after,
        delta=delta,
        state=consent.state,
        decided_by=consent.decided_by,
        decided_at=consent.decided_at,
        why=consent.why,
        round_number=None if waiting is None else waiting.number,
        deadline=None if waiting is None else waiting.deadline,
        asked_at=consent.created_at,
    )


async def offers(plans: Sequence[Costed]) -> list[PlanOffer]:
    """The accountant takes tenths of a second: on a thread, in no transaction."""
    return await asyncio.to_thread(lambda: [_offer(plan) for plan in plans])


async def offer(plan: Costed) -> PlanOffer:
    return (await offers([plan]))[0]
