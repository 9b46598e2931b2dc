"""HTTP of consents: what awaits a site's word, and the word."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api import examples
from api.auth import ClientOrWorker, OverseerOrClient, OverseerOrWorker, Principal
from api.clients import service as clients
from api.consents import repository, service, views
from api.consents.service import State
from api.context import Context, Ctx
from api.openapi import answers, example
from api.pages import DEFAULT_LIMIT, After, Limit, Page, paged
from core.federation.plan import Name
from core.wire.messages import ConsentDecision, PlanOffer

router = APIRouter(prefix="/v1", tags=["consents"])
StateFilter = Annotated[
    State | None, Query(description="'asked': what the site still has to answer.")
]


@router.get(
    "/clients/{client_id}/plans",
    operation_id="listPlansOfClient",
    summary="Plans that were put before a client's site",
    description="Each with the run's whole specification and what it costs the client's account: "
    "the plan alone, what was spent before, and what it comes to. Oldest first.",
    responses=answers(200, examples.page(examples.PLAN_OFFER), "One page.", "not-found"),
)
async def of_client(
    ctx: Ctx,
    who: OverseerOrClient,
    client_id: UUID,
    state: StateFilter = None,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
) -> Page[PlanOffer]:
    async with ctx.database.read() as session:
        await clients.one(session, who, client_id)
    return await _page(ctx, who, limit, after, client_id=client_id, state=state)


@router.get(
    "/plans",
    operation_id="listPlans",
    summary="Plans that were put before sites",
    description="Of all clients. A worker's token sees those of managed clients, for which it "
    "answers. Oldest first.",
    responses=answers(200, examples.page(examples.PLAN_OFFER), "One page."),
)
async def listed(
    ctx: Ctx,
    who: OverseerOrWorker,
    client: Annotated[Name | None, Query(description="Only of the client of this name.")] = None,
    state: StateFilter = None,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
) -> Page[PlanOffer]:
    return await _page(ctx, who, limit, after, client=client, state=state)


async def _page(
    ctx: Context,
    who: Principal,
    limit: int,
    after: UUID | None,
    *,
    client_id: UUID | None = None,
    client: str | None = None,
    state: State | None = None,
) -> Page[PlanOffer]:
    managed = True if who.scope == "worker" else None
    async with ctx.database.read() as session:
        rows = await repository.page(
            session, limit, after, client_id=client_id, client=client, managed=managed, state=state
        )
        shown, more = paged(rows, limit)
        plans = [await views.costed(session, asked) for asked in shown]
    items = await views.offers(plans)
    return Page(items=items, next=shown[-1].consent.id if more else None)


@router.post(
    "/runs/{run_id}/consents",
    operation_id="decideOnPlan",
    summary="Approve or refuse a run's plan",
    description="For a client by its own token, for a managed one by a worker's. Until it is "
    "approved the client gets no work of the run and nothing is reserved; a refusal puts it out. "
    "Decided once: the same again changes nothing. `why` is shown to overseers and to this client.",
    responses=answers(200, examples.PLAN_APPROVED, "The plan as decided.", "not-found", "conflict"),
)
async def decide(
    ctx: Ctx,
    who: ClientOrWorker,
    run_id: UUID,
    body: Annotated[ConsentDecision, example(examples.CONSENT)],
) -> PlanOffer:
    async with ctx.database.write() as session:
        plan = await service.decide(ctx, session, who, run_id, body)
    return await views.offer(plan)
