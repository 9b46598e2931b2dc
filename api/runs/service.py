"""From a plan to an immutable run: checks, calibration, the budget, and the start."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal
from api.consents import service as consents
from api.context import Context
from api.db.engine import TOPIC_SWEEP, Database, ring
from api.db.run_models import Round, Run
from api.idempotency import peek, remember, replay
from api.problems import Conflict, NotFound, RunNameTaken
from api.runs import admission, repository
from api.runs.specs import spec_of, views_of
from api.secure_sums import identities
from core.federation.plan import EmbeddingSpace, Name, Plan, RunSpec
from core.privacy.premise import View

_OPERATION = "createRun"


class NewRun(BaseModel):
    model_config = ConfigDict(extra="forbid")

    plan: Plan
    clients: list[Name] = Field(min_length=1, max_length=10_000)


class SeatView(BaseModel):
    """A client's place in the run, apart from single rounds."""

    client: str
    client_id: UUID
    state: Literal["taking-part", "left", "quarantined", "revoked"]
    consent: Literal["asked", "approved", "refused"]
    why: str


class RunView(BaseModel):
    id: UUID
    name: str
    state: Literal["draft", "running", "paused", "completed", "failed", "cancelled"]
    why: str
    paused_until: datetime | None = None
    spec: RunSpec
    spec_digest: str
    clients: list[str] = Field(description="For a client's token: its own name only.")
    clients_total: int
    seats: list[SeatView]
    epsilon_planned: float
    views: list[View] = Field(
        default_factory=list,
        description="Of a plan with secure sums: what it costs one founding client, against whom, "
        "and on which premise. The booked view is epsilon_planned.",
    )
    current_round: int | None
    rounds_published: int
    rounds_planned: int
    joins_published: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, value: Any) -> Any:
        """Answers that were remembered under an Idempotency-Key before there was a total."""
        if isinstance(value, dict) and "clients" in value:
            return {"clients_total": len(value["clients"]), **value}
        return value


def seat_view(seat: repository.Seat) -> SeatView:
    state: Literal["taking-part", "left", "quarantined", "revoked"] = "taking-part"
    why = seat.consent_why if seat.consent == "refused" else ""
    if seat.client.revoked_at is not None:
        state, why = "revoked", seat.client.revoked_why
    elif seat.place.left_at is not None:
        state, why = "left", seat.place.left_why
    elif seat.place.quarantined_at is not None:
        state, why = "quarantined", seat.place.quarantine_why
    return SeatView(
        client=seat.client.name,
        client_id=seat.client.id,
        state=state,
        consent=seat.consent,
        why=why,
    )


async def view(session: AsyncSession, who: Principal, run: Run) -> RunView:
    """A client token sees its own name and seat, and how many take part: who the others are is
    not its business. The reason of a run may name them.
    """
    spec = spec_of(run)
    seats = await repository.seats(session, run.id)
    shown = [seat for seat in seats if who.client_id in (None, seat.client.id)]
    newest, published, joins = await repository.progress(session, run.id, spec.last_round)
    return RunView(
        id=run.id,
        name=run.name,
        state=run.state,
        why=run.why if who.client_id is None else "",
        paused_until=run.pause_ends,
        spec=spec,
        spec_digest=run.spec_digest,
        clients=[seat.client.name for seat in shown],
        clients_total=len(seats),
        seats=[seat_view(seat) for seat in shown],
        epsilon_planned=run.epsilon_planned,
        views=await views_of(spec, sum(seat.place.founding for seat in seats)),
        current_round=newest,
        rounds_published=published,
        rounds_planned=spec.last_round + 1,
        joins_published=joins,
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
    )


async def visible(session: AsyncSession, who: Principal, run_id: UUID) -> Run:
    """The run, if the caller may see it: a client only sees runs in which it takes part."""
    run = await repository.one(session, run_id)
    if run is not None and (
        who.client_id is None or await repository.takes_part(session, run_id, who.client_id)
    ):
        return run
    raise NotFound("there is no such run, or you take no part in it")


async def create(
    ctx: Context, who: Principal, body: NewRun, key: str | None
) -> tuple[RunView, bool]:
    """A run in state ``draft``, and whether this is a replay of an earlier request.

    The budget is checked again, reservation by reservation, when work is made.
    """
    admission.check_plan(body.plan, body.clients, len(body.clients))
    async with ctx.database.read() as session:
        if before := await peek(session, who, key, _OPERATION, body):
            return RunView.model_validate(before), True
        space, members = await admission.participants(session, body.plan, body.clients)
        identities.check(body.plan, members)
        if await repository.by_name(session, body.plan.name) is not None:
            raise RunNameTaken(f"a run {body.plan.name!r} exists already", field="plan.name")
    contract = EmbeddingSpace.model_validate(space.body)
    spec, planned = await admission.specify(
        ctx, body.plan, contract, len(body.clients), body.clients
    )
    async with ctx.database.write() as session:
        if before := await replay(session, who, key, _OPERATION, body):
            return RunView.model_validate(before), True
        _, members = await admission.participants(session, body.plan, body.clients)
        identities.check(body.plan, members)
        after = await admission.check_budgets(session, spec.events(), members)
        run = Run(
            id=UUID(spec.run_id),
            name=body.plan.name,
            spec=spec.model_dump(mode="json"),
            spec_digest=spec.digest,
            epsilon_planned=planned,
        )
        if not await repository.add(session, run, members):
            raise RunNameTaken(f"a run {run.name!r} exists already", field="plan.name")
        await consents.ask(session, run, after, await ctx.database.now(session))
        await audit.record(
            session, "run-created", who, run_id=run.id, name=run.name, spec=run.spec_digest
        )
        answer = await view(session, who, (await repository.locked(session, run.id)) or run)
        await remember(session, who, key, answer.model_dump(mode="json"))
    return answer, False


async def start(session: AsyncSession, database: Database, who: Principal, run_id: UUID) -> Run:
    """Idempotent: a run that was started stays as it is. One that has ended without a model, or
    was cancelled, cannot be started.
    """
    run = await repository.locked(session, run_id)
    if run is None:
        raise NotFound(f"there is no run {run_id}")
    if run.state in ("failed", "cancelled"):
        was = "has failed" if run.state == "failed" else "was cancelled"
        raise Conflict(f"the run {was}: {run.why}", mend="Create a new run.")
    if run.state == "draft":
        run.state = "running"
        run.started_at = await database.now(session)
        session.add(Round(run_id=run.id, number=0, state="draft"))
        await session.flush()
        await audit.record(session, "run-started", who, run_id=run.id)
        await ring(session, TOPIC_SWEEP)
    return run
