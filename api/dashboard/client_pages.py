"""Pages of clients: who is there, what each has spent, and revoking one."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from fastapi import APIRouter, Request, Response

from api.clients import repository as client_rows
from api.clients import revocation, service, sightings
from api.context import Ctx
from api.dashboard import burndown, repository, words
from api.dashboard.doors import Acting, Operating, Overseeing
from api.dashboard.render import HOME, PageRoute, page, to
from api.enrolments import service as enrolments
from api.events import service as events
from api.events.order import place_new
from api.events.repository import Filter
from api.ledger import service as ledger
from api.pages import paged
from api.problems import InvalidRequest

router = APIRouter(prefix=f"{HOME}/clients", include_in_schema=False, route_class=PageRoute)
_PAGE, _SEATS, _EVENTS, _ENTRIES, _WAITING = 50, 100, 10, 200, 50
# A poll lasts a minute at most, and one is written down a minute.
HERE = timedelta(minutes=3)


@router.get("")
async def some(
    ctx: Ctx,
    request: Request,
    visitor: Overseeing,
    after: UUID | None = None,
    done: str | None = None,
) -> Response:
    snapshot = await request.app.state.books.snapshot(ctx)
    async with ctx.database.read() as session:
        now = await ctx.database.now(session)
        found, more = paged(await client_rows.page(session, _PAGE, after), _PAGE)
        seen = await sightings.of(session, [row.id for row in found])
        waiting, _ = await enrolments.some(ctx, session, _WAITING, None, "waiting")
        out, _ = await enrolments.some(ctx, session, _WAITING, None, "open")
        shown = [service.view(row) for row in found]
    return page(
        request,
        "clients.html",
        live="clients_live.html",
        now=now,
        clients=shown,
        waiting=waiting,
        out=out,
        done=words.done(done),
        seen=seen,
        here=HERE,
        spent={one.client: one for one in snapshot.spent},
        following=shown[-1].id if more else None,
        first=after is None,
    )


@router.get("/{client_id}")
async def one(
    ctx: Ctx, request: Request, visitor: Overseeing, client_id: UUID, done: str | None = None
) -> Response:
    await place_new(ctx)
    async with ctx.database.read() as session:
        now = await ctx.database.now(session)
        row = await service.one(session, visitor.who, client_id)
        seen = await sightings.of(session, [client_id])
        seats = await repository.newest_seats(session, client_id, _SEATS)
        entries = await ledger.entries(session, row)
        happened, _ = await events.page(
            session,
            visitor.who,
            Filter(client_id=client_id),
            limit=_EVENTS,
            after=None,
            order="desc",
        )
        run_ids = {entry.run_id for entry in entries} | {
            event.run_id for event in happened if event.run_id
        }
        runs = await repository.run_names(session, run_ids)
    return page(
        request,
        "client.html",
        live="client_live.html",
        now=now,
        client=service.view(row),
        why=row.revoked_why,
        seen=seen.get(client_id),
        here=HERE,
        seats=seats,
        entries=list(reversed(entries))[:_ENTRIES],
        entries_total=len(entries),
        events=happened,
        runs=runs,
        names={client_id: row.name},
        done=words.done(done),
    )


@router.get("/{client_id}/budget")
async def budget(ctx: Ctx, request: Request, visitor: Overseeing, client_id: UUID) -> Response:
    """The part of the page that takes the accountant a moment."""
    async with ctx.database.read() as session:
        row = await service.one(session, visitor.who, client_id)
        read = await burndown.read(ctx, session, row)
    found = await burndown.computed(ctx, read)  # with no connection held
    return page(
        request,
        "budget.html",
        live="budget_part.html",
        now=found.now,
        budget=found,
        client=service.view(row),
    )


@router.get("/{client_id}/revoke")
async def confirm(ctx: Ctx, request: Request, visitor: Operating, client_id: UUID) -> Response:
    async with ctx.database.read() as session:
        row = await service.one(session, visitor.who, client_id)
    return page(
        request,
        "confirm.html",
        live="confirm_form.html",
        words=words.ACTIONS["revoke"],
        subject=row.name,
        target=f"{HOME}/clients/{client_id}/revoke",
        back=f"{HOME}/clients/{client_id}",
        ask="name-why",
        grave=True,
    )


@router.post("/{client_id}/revoke")
async def revoke(ctx: Ctx, sent: Acting, client_id: UUID) -> Response:
    who, why = sent.visitor.who, sent.text("why")
    async with ctx.database.write() as session:
        row = await service.one(session, who, client_id)
        if sent.text("name") != row.name:
            raise InvalidRequest(
                "That is not the name of the client, so nothing was done.",
                field="name",
                mend="Go back and type the name as it is shown.",
            )
        await revocation.revoke(ctx, session, who, client_id, why)
    return to(f"{HOME}/clients/{client_id}?done=revoke")
