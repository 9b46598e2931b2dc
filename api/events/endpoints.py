"""HTTP of the audit trail and of a run's live feed."""

from __future__ import annotations

import re
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import AwareDatetime, BeforeValidator, Field
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit, examples
from api.auth import Anyone, Overseer, OverseerOrClient, Principal
from api.clients import service as clients
from api.context import Context, Ctx
from api.events import repository, service
from api.events.order import place_new
from api.events.repository import Filter
from api.events.service import EventView, Order
from api.events.stream import MEDIA, EventStream
from api.openapi import answers
from api.pages import DEFAULT_LIMIT, After, Limit, Page
from api.problems import InvalidRequest
from api.runs import service as runs
from core.federation.values import MAX_ROUND_NUMBER

router = APIRouter(prefix="/v1", tags=["events"])
START = UUID(int=0)
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}")


def _written_out(value: object) -> object:
    """A time as the document says (RFC 3339); a bare number would be taken for seconds of 1970."""
    if isinstance(value, str) and _MOMENT.match(value) is None:
        raise ValueError("must be a time such as 2026-01-31T12:00:00Z")
    return value


Kind = Annotated[str, Field(json_schema_extra={"enum": list(audit.KINDS)})]
Actor = Annotated[str, Field(json_schema_extra={"enum": list(audit.ACTORS)})]
Moment = Annotated[AwareDatetime, BeforeValidator(_written_out)]


def _filter(
    run: Annotated[UUID | None, Query(description="Only of this run.")] = None,
    number: Annotated[
        int | None,
        Query(
            alias="round",
            ge=0,
            le=MAX_ROUND_NUMBER,
            description="Only of rounds with this number.",
        ),
    ] = None,
    kind: Annotated[
        list[Kind] | None, Query(description="Only of these kinds; repeatable.")
    ] = None,
    actor: Annotated[
        Actor | None, Query(description="Only by this scope, by 'coordinator' or by 'console'.")
    ] = None,
    since: Annotated[Moment | None, Query(description="From this time on.")] = None,
    until: Annotated[Moment | None, Query(description="Before this time.")] = None,
) -> Filter:
    unknown = sorted(set(kind or ()) - set(audit.KINDS))
    if unknown:
        raise InvalidRequest(
            f"no event has the kind {unknown[0]!r}",
            field="kind",
            mend=f"One of: {', '.join(audit.KINDS)}.",
        )
    if actor is not None and actor not in audit.ACTORS:
        raise InvalidRequest(
            f"nobody acts as {actor!r}", field="actor", mend=f"One of: {', '.join(audit.ACTORS)}."
        )
    return Filter(
        run_id=run,
        round_number=number,
        kinds=tuple(kind or ()),
        actor=actor,
        since=since,
        until=until,
    )


Which = Annotated[Filter, Depends(_filter)]
Direction = Annotated[Order, Query(description="'asc': oldest first; 'desc': newest first.")]


async def _page(
    ctx: Context, who: Principal, which: Filter, limit: int, after: UUID | None, order: Order
) -> Page[EventView]:
    await place_new(ctx)
    async with ctx.database.read() as session:
        items, more = await service.page(session, who, which, limit=limit, after=after, order=order)
    return Page(items=items, next=items[-1].id if more else None)


@router.get(
    "/events",
    operation_id="listEvents",
    summary="The audit trail",
    description="Who did what, when, in which request. In the order in which it took effect; "
    "nothing is ever changed or removed, and nothing appears later before what was shown.",
    responses=answers(200, examples.page(examples.EVENT_VIEW), "One page."),
)
async def listed(
    ctx: Ctx,
    who: Overseer,
    which: Which,
    client: Annotated[UUID | None, Query(description="Only about this client.")] = None,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    order: Direction = "asc",
) -> Page[EventView]:
    about = Filter(**{**vars(which), "client_id": client})
    return await _page(ctx, who, about, limit, after, order)


@router.get(
    "/clients/{client_id}/events",
    operation_id="listClientEvents",
    summary="The audit trail about one client",
    description="As `GET /v1/events`. A client token reads what is about its own client.",
    responses=answers(200, examples.page(examples.EVENT_VIEW), "One page.", "not-found"),
)
async def about_client(
    ctx: Ctx,
    who: OverseerOrClient,
    client_id: UUID,
    which: Which,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    order: Direction = "asc",
) -> Page[EventView]:
    async with ctx.database.read() as session:
        await clients.one(session, who, client_id)
    about = Filter(**{**vars(which), "client_id": client_id})
    return await _page(ctx, who, about, limit, after, order)


def _documented() -> dict[int | str, dict[str, Any]]:
    return answers(
        200,
        examples.FEED,
        "The feed, until the run has ended.",
        "not-found",
        "too-many-streams",
        media=MEDIA,
    )


@router.get(
    "/runs/{run_id}/events",
    operation_id="followRun",
    summary="Follow a run",
    description="Server-sent events: first `state` (where the run and its round stand), then every "
    "event of the trail of this run as it happens (`id` is the event's id, `event` its kind), a "
    "comment now and then while nothing happens, and `end` once the run has ended and everything "
    "was sent. With Last-Event-ID it goes on behind that event, without gap or repetition. A "
    "client token is not shown what concerns other clients.",
    response_class=Response,
    responses=_documented(),
)
async def follow(
    ctx: Ctx,
    who: Anyone,
    request: Request,
    run_id: UUID,
    from_start: Annotated[
        bool, Query(description="Send everything that has happened so far, too.")
    ] = False,
    last: Annotated[
        str, Header(alias="Last-Event-ID", max_length=64, description="Go on behind this event.")
    ] = "",
) -> EventStream:
    await place_new(ctx)
    async with ctx.database.read() as session:
        run = await runs.visible(session, who, run_id)
        position, hello_id = await _position(session, run_id, last, from_start)
        # Read after the position: the state may know events that follow, but misses none before.
        hello = await service.progress(ctx, session, who, run)
    return EventStream(
        ctx, request.app.state.feeds, who, hello, position=position, hello_id=hello_id
    )


async def _position(
    session: AsyncSession, run_id: UUID, last: str, from_start: bool
) -> tuple[int, UUID | None]:
    """Where the feed begins, and the id of its ``state``: a follower that hears nothing else
    before it is cut off goes on from there.
    """
    if last and last != str(START):
        try:
            position = await repository.position_of(session, UUID(last), run_id)
        except ValueError:
            position = None
        if position is None:
            raise InvalidRequest(
                "no event of this run has this id",
                field="Last-Event-ID",
                mend="Leave the header out to begin with where the run stands now.",
            )
        return position, None
    newest = None if last or from_start else await repository.newest_of_run(session, run_id)
    return (0, START) if newest is None else newest
