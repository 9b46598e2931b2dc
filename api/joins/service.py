"""A join: one more round of a completed run, whose members are the clients that come.

A join that is asked for while the run is under way is queued, and disturbs nobody: its round
follows when the run is completed (``api.joins.queue``).

It uses the rounds' machinery for everything that can go wrong (leases, attempts, reservations,
lost updates, a killed process). Only its end differs: published, it is the run's newest model;
failed or abandoned, it leaves the run as it was, with the reason on the round.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID

import structlog
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal
from api.clients import repository as clients
from api.consents import service as consents
from api.context import Context
from api.db.engine import TOPIC_SWEEP, ring
from api.db.models import Client
from api.db.oversight_models import JoinRequest
from api.db.run_models import Round, Run
from api.idempotency import remember, replay
from api.joins import repository
from api.problems import Conflict, Forbidden, NotFound
from api.rounds import repository as rounds
from api.rounds import service as round_views
from api.rounds.service import MemberView
from api.runs import admission
from api.runs import repository as runs
from api.runs.specs import spec_of
from api.secure_sums import identities
from core.federation.plan import Name, RunSpec
from core.federation.rounds import TERMINAL, RoundState
from core.wire.messages import ObjectRef

log = structlog.get_logger(__name__)
_OPERATION = "createJoin"
UNDER_WAY = ("draft", "running", "paused")


class NewJoin(BaseModel):
    model_config = ConfigDict(extra="forbid")

    clients: list[Name] = Field(
        min_length=1, max_length=1_000, description="Who joins, all in one round."
    )


class JoinView(BaseModel):
    """``queued``: the run is not completed yet, a round follows it; ``dropped``: none followed."""

    run_id: UUID
    round: int | None
    state: RoundState | Literal["queued", "dropped"]
    why: str
    clients: list[str]
    members: list[MemberView]
    deadline: datetime | None
    created_at: datetime
    published_at: datetime | None
    frame: ObjectRef | None


async def view(
    ctx: Context, session: AsyncSession, who: Principal, run: Run, row: Round
) -> JoinView:
    """A client token sees itself only; the reason of a round may name others."""
    shown = await round_views.view(ctx, session, who, run, row)
    alone = len(shown.clients) == len(await repository.members(session, run.id, row.number))
    return JoinView(
        run_id=run.id,
        round=row.number,
        state=shown.state,
        why=row.why if who.client_id is None or alone else "",
        clients=[member.client for member in shown.clients],
        members=shown.clients,
        deadline=row.deadline,
        created_at=row.created_at,
        published_at=row.published_at,
        frame=shown.frame,
    )


def queued(run: Run, requests: Sequence[tuple[JoinRequest, Client]]) -> JoinView:
    """Requests of a run that is not completed yet (or never was: then dropped, with the reason)."""
    first = requests[0][0]
    return JoinView(
        run_id=run.id,
        round=None,
        state="queued" if first.settled_at is None else "dropped",
        why=first.why or f"the run is {run.state}; a join round follows when it is completed",
        clients=[client.name for _, client in requests],
        members=[],
        deadline=None,
        created_at=first.created_at,
        published_at=None,
        frame=None,
    )


async def _may(session: AsyncSession, who: Principal, run: Run, body: NewJoin) -> None:
    """An administrator invites anybody; where the plan is open, a client may join by itself."""
    if who.client_id is None:
        return
    if spec_of(run).plan.joining == "invited":
        raise Forbidden(
            "this run takes further clients by invitation only",
            field="plan.joining",
            mend=f"Ask an administrator to invite you: POST /v1/runs/{run.id}/joins.",
        )
    me = await clients.one(session, who.client_id)
    if me is None or body.clients != [me.name]:
        raise Forbidden("a client's token joins that client only", field="clients")


async def next_number(session: AsyncSession, run: Run, spec: RunSpec) -> int:
    """The number of a join round that may begin now. The run's row must be locked."""
    if run.state != "completed":
        raise Conflict(
            f"clients join a run that goes on or is completed; this one is {run.state}",
            field="run_id",
            mend="Join another run.",
        )
    newest = await rounds.newest(session, run.id)
    if newest is None:
        raise NotFound("the rounds of this run vanished")
    if newest.state not in TERMINAL:
        raise Conflict(
            f"a join of this run is under way (round {newest.number} is {newest.state})",
            field="run_id",
            mend=f"Wait until it has ended: GET /v1/runs/{run.id}/joins.",
        )
    try:
        spec.kind(newest.number + 1)
    except ValueError as error:
        raise Conflict(str(error), field="run_id", mend="Create a new run.") from error
    return newest.number + 1


async def checked(
    session: AsyncSession, run: Run, spec: RunSpec, names: Sequence[str]
) -> list[tuple[Client, float]]:
    """The same checks as of a run's founding clients, for one sketch; and nobody joins twice, or
    against the word of its site. With the epsilon that each account would come to.
    """
    admission.check_distinct(names)
    if spec.plan.aggregation == "secure":
        identities.check_names(names)
    _, members = await admission.participants(
        session, spec.plan, names, unit_field="clients.{position}"
    )
    known = await rounds.with_code(session, run.id)
    trains = await repository.founding(session, run.id) if run.state in UNDER_WAY else set()
    refused = await consents.refused_by(session, run.id)
    for position, client in enumerate(members):
        if client.id in trains:
            raise Conflict(
                f"{client.name!r} takes part in this run already",
                field=f"clients.{position}",
                mend="Leave it out.",
            )
        if client.id in known:
            raise Conflict(
                f"{client.name!r} has a code in this run already",
                field=f"clients.{position}",
                mend="Leave it out; name it in a mixture of /synthesize.",
            )
        if client.id in refused:
            raise Conflict(
                f"the site of {client.name!r} has refused this run, and that is final",
                field=f"clients.{position}",
                mend="Leave it out; it may take part in another run.",
            )
    sketch = spec.event(spec.last_round + 1)  # the same in every join round
    return await admission.check_budgets(session, [sketch], members)


async def open_round(
    ctx: Context,
    session: AsyncSession,
    who: Principal | None,
    run: Run,
    number: int,
    after: Sequence[tuple[Client, float]],
) -> Round:
    """The round in state ``draft``; its members are asked for their consent."""
    members = [client for client, _ in after]
    row = await repository.add(session, run, number, members)
    await consents.ask(session, run, after, await ctx.database.now(session))
    for member in members:
        await audit.record(
            session, "join-asked", who, run_id=run.id, round_number=number, client_id=member.id
        )
    await ring(session, TOPIC_SWEEP)
    log.info("join_asked", run_id=str(run.id), round=number, clients=len(members))
    return row


async def create(
    ctx: Context, who: Principal, run_id: UUID, body: NewJoin, key: str | None
) -> tuple[JoinView, bool]:
    """A join in state ``draft`` (or ``queued`` behind the run), and whether this is a replay."""
    async with ctx.database.write() as session:
        if before := await replay(session, who, key, f"{_OPERATION} {run_id}", body):
            return JoinView.model_validate(before), True
        run = await runs.one(session, run_id)
        if run is None:
            raise NotFound(f"there is no run {run_id}")
        await _may(session, who, run, body)
        run = await runs.locked(session, run_id)
        if run is None:
            raise NotFound(f"there is no run {run_id}")
        spec = spec_of(run)
        after = await checked(session, run, spec, body.clients)
        if run.state in UNDER_WAY:
            members = [client for client, _ in after]
            answer = queued(run, await repository.enqueue(session, run.id, members))
            for member in members:
                await audit.record(session, "join-queued", who, run_id=run.id, client_id=member.id)
        else:
            number = await next_number(session, run, spec)
            row = await open_round(ctx, session, who, run, number, after)
            answer = await view(ctx, session, who, run, row)
        await remember(session, who, key, answer.model_dump(mode="json"))
    return answer, False
