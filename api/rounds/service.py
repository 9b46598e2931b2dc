"""Rounds as they are shown: what is open, who is missing, why it waits."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from api.auth import Principal
from api.context import Context
from api.db.models import Client
from api.db.run_models import Round, Run
from api.ledger import service as ledger
from api.ledger.service import ClientSpent
from api.problems import NotFound
from api.rounds import members, repository
from api.rounds.facts import gather
from api.runs import repository as runs
from api.runs.specs import spec_of
from api.secure_sums import progress
from core.federation.plan import RoundKind
from core.federation.rounds import RoundState, Standing
from core.privacy.premise import premise
from core.wire.messages import AggregateResult, ObjectRef

# Whom nobody waits for at this moment.
_HERE = (Standing.ACCEPTED, Standing.ANSWERED)


class MemberView(BaseModel):
    client: str
    standing: Standing
    attempt: int
    until: datetime | None
    why: str


class RoundView(BaseModel):
    run_id: UUID
    number: int
    kind: RoundKind
    state: RoundState
    why: str
    quorum: int
    deadline: datetime | None
    extended: bool
    updates_accepted: int
    missing_clients: list[str]
    outliers: list[str]
    clients: list[MemberView]
    created_at: datetime
    opened_at: datetime | None
    closed_at: datetime | None
    published_at: datetime | None
    frame: ObjectRef | None
    weights: ObjectRef | None


class ModelView(BaseModel):
    run_id: UUID
    round: int
    spec_digest: str
    frame: ObjectRef
    weights: ObjectRef
    clients: list[str]
    domains: dict[str, list[str]] = Field(
        default={}, description="Labels that mixtures may name, with their clients."
    )
    per_client: list[ClientSpent]
    premise: str = Field(
        description="Who must keep to the protocol for founding clients' epsilon to hold, if sums "
        "were secure; 'none': each number of per_client holds by itself. The report and receipts "
        "say how much it is without the premise. A client that joined later released its own "
        "sketch, which needs none."
    )
    relation: str
    noise_mode: Literal["csprng"]


async def view(
    ctx: Context, session: AsyncSession, who: Principal, run: Run, row: Round
) -> RoundView:
    """A client token sees its own standing only: how others fare is not its business. That some
    update is an outlier is for those who look after the run.
    """
    spec = spec_of(run)
    places = await members.places(session, run.id, spec, row.number)
    sums = await progress.read(session, spec, row)
    facts = gather(spec, run, row, places, await ctx.database.now(session), sums=sums)
    model = await repository.model(session, run.id, row.number)
    missing = [m.client for m in facts.members if m.standing not in _HERE]
    accepted = sum(place.work is not None and place.work.state == "done" for place in places)
    shown = {p.client.name for p in places if who.client_id in (None, p.client.id)}
    return RoundView(
        run_id=run.id,
        number=row.number,
        kind=spec.kind(row.number),
        state=RoundState(row.state),
        why=row.why if who.client_id is None else "",
        quorum=facts.quorum,
        deadline=row.deadline,
        extended=row.extended,
        updates_accepted=accepted,
        missing_clients=[name for name in missing if name in shown],
        outliers=await _outliers(session, row) if who.client_id is None else [],
        clients=[
            MemberView(
                client=m.client, standing=m.standing, attempt=m.attempt, until=m.until, why=m.why
            )
            for m in facts.members
            if m.client in shown
        ],
        created_at=row.created_at,
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        published_at=row.published_at,
        frame=None if model is None else frame_ref(model),
        weights=None if model is None else weights_ref(model),
    )


async def _outliers(session: AsyncSession, row: Round) -> list[str]:
    """Whose released update is implausibly long, as the worker that summed the round found it."""
    result = await repository.result(session, row.run_id, row.number)
    if result is None:
        return []
    found = AggregateResult.model_validate(result).diagnostics
    return [] if found is None else list(found.outliers)


def frame_ref(model: repository.Model) -> ObjectRef:
    return ObjectRef(role="frame", digest=model.frame.digest, size=model.frame.size)


def weights_ref(model: repository.Model) -> ObjectRef:
    return ObjectRef(role="weights", digest=model.weights.digest, size=model.weights.size)


async def one(session: AsyncSession, run: Run, number: int) -> Round:
    row = await repository.one(session, run.id, number)
    if row is None:
        raise NotFound(f"the run has no round {number} yet")
    return row


def _domains(clients: Iterable[Client]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for client in clients:
        if client.domain is not None:
            found.setdefault(client.domain, []).append(client.name)
    return found


async def model(session: AsyncSession, who: Principal, run: Run, number: int | None) -> ModelView:
    """The published model of a round (None: the newest), with what it cost each client (a client
    token sees its own cost only).
    """
    found = await repository.model(session, run.id, number)
    if found is None:
        which = "no round" if number is None else f"round {number} is not"
        raise NotFound(f"{which} published yet", field="round")
    spec = spec_of(run)
    members = await runs.clients_of(session, run.id, up_to_round=found.round_number)
    with_code = await repository.with_code(session, run.id, found.round_number)
    spent = await ledger.spent_on_model(
        session,
        run.id,
        [c for c in members if who.client_id in (None, c.id)],
        found.round_number,
        spec.plan.privacy.delta,
    )
    return ModelView(
        run_id=run.id,
        round=found.round_number,
        spec_digest=run.spec_digest,
        frame=frame_ref(found),
        weights=weights_ref(found),
        clients=[client.name for client in members if client.id in with_code],
        domains=_domains(client for client in members if client.id in with_code),
        per_client=spent,
        premise=premise(event.collude for event in spec.events()),
        relation=spec.event(0).relation,
        # A coordinator refuses plans of purpose 'simulation', the only ones with seeded noise.
        noise_mode="csprng",
    )
