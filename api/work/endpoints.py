"""HTTP of work: the long poll of agents, claims of workers, renewals, failures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response

from api import examples
from api.auth import ClientOnly, ClientOrWorker, Principal, WorkerOnly
from api.consents import service as consents
from api.consents import views
from api.context import Context, Ctx
from api.db.engine import topic_of_client
from api.db.hub import wait as pause
from api.openapi import answers, example
from api.protocol import ProtocolUsed
from api.secure_sums import service as secure_sums
from api.work import service
from core.wire.messages import (
    LEASE_HEADER,
    LeaseRenewal,
    OfferedOrder,
    OfferedPlan,
    WorkFailure,
    WorkOrder,
)
from core.wire.protocol import CONSENT, SECURE_SUMS
from core.wire.secure import OfferedStep

router = APIRouter(prefix="/v1", tags=["work"])
_MOST_SEEN = 100
Lease = Annotated[
    str | None, Header(alias=LEASE_HEADER, description="The order's lease token.", max_length=200)
]


@router.get(
    "/clients/{client_id}/work",
    operation_id="pollWork",
    summary="Wait for work",
    description="Long poll of a site's agent. An order comes with a lease; a client that holds "
    "one already gets the same order again. 204: nothing to do within the wait, poll again. "
    "Callers of protocol 2 (`X-FHV-Protocol-Range: 1-2`) get `type` and either `order` or, where "
    "nothing is to be done, a `plan` that awaits the site's word; name it in `seen` to wait for "
    "others. Callers of protocol 3 also get a `step` of a secure sum that awaits the client's "
    "answer, again at each poll until it is answered. Callers of protocol 1 get the order alone "
    "and approve by asking.",
    response_model=OfferedOrder | OfferedPlan | OfferedStep | WorkOrder,
    responses={
        **answers(200, examples.OFFERED_ORDER, "An order, leased from now.", "not-found"),
        204: {"description": "Nothing to do yet."},
    },
)
async def poll(
    ctx: Ctx,
    who: ClientOnly,
    protocol: ProtocolUsed,
    request: Request,
    client_id: UUID,
    wait: Annotated[
        float, Query(ge=0, le=3_600, description="Seconds; the server may cut it.")
    ] = 0,
    run: Annotated[UUID | None, Query(description="Only orders and plans of this run.")] = None,
    seen: Annotated[
        list[UUID] | None,
        Query(max_length=_MOST_SEEN, description="Plans that the caller knows: not sent again."),
    ] = None,
) -> OfferedOrder | OfferedPlan | OfferedStep | WorkOrder | Response:
    who.must_be_client(client_id)
    until = time.monotonic() + min(wait, ctx.settings.max_wait_s)
    await request.app.state.sightings.note(ctx, client_id, request.headers.get("User-Agent"))
    rung = False
    with ctx.hub.subscribe(topic_of_client(client_id)) as bell:
        while True:
            # A round that opens wakes all its sites at once: they look a few at a time, so that
            # whoever comes by meanwhile need not wait for all of them.
            async with ctx.woken if rung else nullcontext():
                found = await _look(ctx, who, protocol, client_id, run, seen or ())
            if found is not None:
                return found
            left = until - time.monotonic()
            if left <= 0 or ctx.hub.closing or await request.is_disconnected():
                return Response(status_code=204)
            rung = await pause(bell, min(left, ctx.hub.pace(ctx.settings.poll_s)))


async def _look(
    ctx: Context,
    who: Principal,
    protocol: int,
    client_id: UUID,
    run: UUID | None,
    seen: Sequence[UUID],
) -> OfferedOrder | OfferedPlan | OfferedStep | WorkOrder | None:
    """What there is for the client now."""
    if not await service.may_have_work(ctx, client_id):
        return None
    if protocol < CONSENT:
        async with ctx.database.write() as session:
            await consents.speak_for_old_agent(ctx, session, who, client_id, run)
    order = await service.poll(ctx, who, client_id, run)
    if order is not None:
        return OfferedOrder(order=order) if protocol >= CONSENT else order
    if protocol < CONSENT:
        return None
    if protocol >= SECURE_SUMS:
        step = await secure_sums.next_step(ctx, who, client_id, run)
        if step is not None:
            return OfferedStep(step=step)
    async with ctx.database.read() as session:
        plan = await consents.next_plan(session, client_id, run, seen)
    return None if plan is None else OfferedPlan(plan=await views.offer(plan))


@router.post(
    "/work/{work_id}/claim",
    operation_id="claimWork",
    summary="Claim a managed client's work",
    description="For Celery workers. A message may come twice: the second claim is refused.",
    responses=answers(
        200, examples.ORDER, "The order, leased.", "not-found", "work-leased", "work-gone"
    ),
)
async def claim(ctx: Ctx, who: WorkerOnly, protocol: ProtocolUsed, work_id: UUID) -> WorkOrder:
    if protocol < CONSENT:  # it may be a plan, which is not known by that name over there
        async with ctx.database.write() as session:
            await consents.speak_for_old_worker(ctx, session, who, work_id)
    async with ctx.database.write() as session:
        return await service.claim(ctx, session, who, work_id)


@router.post(
    "/work/{work_id}/renew",
    operation_id="renewWork",
    summary="Renew a lease",
    description="The lease starts again from now. A lease that was declared lost stays lost.",
    responses=answers(200, examples.RENEWAL, "Renewed.", "not-found", "lease-lost"),
)
async def renew(ctx: Ctx, who: ClientOrWorker, work_id: UUID, lease: Lease = None) -> LeaseRenewal:
    async with ctx.database.write() as session:
        return await service.renew(ctx, session, who, work_id, lease)


@router.post(
    "/work/{work_id}/fail",
    operation_id="failWork",
    summary="Give work back",
    description="The reservation is lost (and stays spent). 'site-not-ready' is asked again after "
    "a pause while attempts and budget last; 'plan-refused' is final for the round.",
    status_code=204,
    responses=answers(204, None, "Taken back.", "not-found", "lease-lost"),
)
async def fail(
    ctx: Ctx,
    who: ClientOrWorker,
    work_id: UUID,
    body: Annotated[WorkFailure, example(examples.FAILURE)],
    lease: Lease = None,
) -> None:
    async with ctx.database.write() as session:
        await service.give_back(ctx, session, who, work_id, lease, body)
