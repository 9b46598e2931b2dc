"""Pages of runs: how they stand, round by round, and what an administrator may do about it."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from api.context import Ctx
from api.dashboard import diagnostics, overview, repository, words
from api.dashboard.doors import Acting, Operating, Overseeing, Reading
from api.dashboard.render import HOME, PageRoute, page, to
from api.events import service as events
from api.events.order import place_new
from api.events.repository import Filter
from api.pages import paged
from api.problems import InvalidRequest
from api.report.endpoints import HEADERS as REPORT_HEADERS
from api.report.service import MEDIA
from api.rounds import repository as round_rows
from api.rounds import service as rounds
from api.runs import control, service
from api.runs.control_endpoints import Pause
from api.updates import rejections
from core.privacy.premise import ONLOOKERS

router = APIRouter(prefix=HOME, include_in_schema=False, route_class=PageRoute)
_RECENT, _PAGE, _REJECTIONS, _EVENTS = 8, 25, 100, 10
Action = Literal["start", "pause", "resume", "cancel"]
State = Literal["draft", "running", "paused", "completed", "failed", "cancelled"]
# Which actions make sense in a state.
ACTIONS: dict[str, tuple[Action, ...]] = {
    "draft": ("start", "cancel"),
    "running": ("pause", "cancel"),
    "paused": ("resume", "cancel"),
}


@router.get("")
async def home(ctx: Ctx, request: Request, visitor: Reading) -> Response:
    if not visitor.oversees:
        return to(f"{HOME}/models")
    snapshot = await request.app.state.books.snapshot(ctx)
    async with ctx.database.read() as session:
        now = await ctx.database.now(session)
        live = await repository.newest_runs(session, _PAGE, states=repository.UNDER_WAY)
        ended = await repository.newest_runs(
            session, _RECENT, states=("completed", "failed", "cancelled")
        )
        under_way = await overview.rows(ctx, session, visitor, live[:_PAGE])
        recent = await overview.rows(ctx, session, visitor, ended[:_RECENT])
        enrolled = await repository.count_clients(session)
        notices = await overview.notices(ctx, session, under_way, snapshot, now)
    return page(
        request,
        "overview.html",
        live="overview_live.html",
        now=now,
        under_way=under_way,
        recent=recent,
        notices=notices,
        enrolled=enrolled,
        spent=snapshot.spent,
        queues=None if snapshot.facts is None else snapshot.facts.of("queue"),
    )


@router.get("/runs")
async def some(
    ctx: Ctx,
    request: Request,
    visitor: Overseeing,
    state: State | None = None,
    before: UUID | None = None,
) -> Response:
    async with ctx.database.read() as session:
        now = await ctx.database.now(session)
        found, more = paged(
            await repository.newest_runs(session, _PAGE, before, (state,) if state else ()), _PAGE
        )
        shown = await overview.rows(ctx, session, visitor, found)
    return page(
        request,
        "runs.html",
        live="runs_live.html",
        now=now,
        runs=shown,
        state=state,
        states=State.__args__,  # type: ignore[attr-defined]
        following=shown[-1].id if more else None,
        first=before is None,
    )


@router.get("/runs/{run_id}")
async def one(
    ctx: Ctx,
    request: Request,
    visitor: Overseeing,
    run_id: UUID,
    number: Annotated[int | None, Query(alias="round", ge=0, le=100_000)] = None,
    done: str | None = None,
) -> Response:
    await place_new(ctx)
    async with ctx.database.read() as session:
        now = await ctx.database.now(session)
        run = await service.visible(session, visitor.who, run_id)
        shown = await service.view(session, visitor.who, run)
        row = (
            await round_rows.newest(session, run.id)
            if number is None
            else await rounds.one(session, run, number)
        )
        current = None
        if row is not None:
            current = await rounds.view(ctx, session, visitor.who, run, row)
        past = await repository.past_rounds(session, run.id)
        sums = await repository.results(session, run.id)
        refused = await rejections.page(session, run.id, _REJECTIONS, None, None)
        happened, _ = await events.page(
            session, visitor.who, Filter(run_id=run.id), limit=_EVENTS, after=None, order="desc"
        )
    names = {str(seat.client_id): seat.client for seat in shown.seats}
    return page(
        request,
        "run.html",
        live="run_live.html",
        now=now,
        run=shown,
        onlookers=ONLOOKERS,
        round=current,
        newest=shown.current_round,
        standings=diagnostics.standings(current),
        past=past,
        lengths=diagnostics.lengths(sums, names),
        sizes=diagnostics.sizes(past),
        rejections=list(reversed(refused[:_REJECTIONS])),
        events=happened,
        names={seat.client_id: seat.client for seat in shown.seats},
        actions=ACTIONS.get(shown.state, ()) if visitor.may_act else (),
        done=words.done(done),
    )


@router.get("/runs/{run_id}/report")
async def report(
    ctx: Ctx,
    request: Request,
    visitor: Reading,
    run_id: UUID,
    number: Annotated[int | None, Query(alias="round", ge=0, le=100_000)] = None,
) -> Response:
    """The same page as ``GET /v1/runs/{run_id}/report``."""
    state = request.app.state
    written = await state.reports.get(
        ctx, visitor.who, state.models, state.generators, run_id, number
    )
    headers = {**REPORT_HEADERS, "Vary": "Cookie", "Cache-Control": "no-store"}
    return Response(written.body("html"), headers=headers, media_type=MEDIA["html"])


@router.get("/runs/{run_id}/{action}")
async def confirm(
    ctx: Ctx, request: Request, visitor: Operating, run_id: UUID, action: Action
) -> Response:
    async with ctx.database.read() as session:
        run = await service.visible(session, visitor.who, run_id)
    return page(
        request,
        "confirm.html",
        live="confirm_form.html",
        words=words.ACTIONS[action],
        subject=run.name,
        target=f"{HOME}/runs/{run.id}/{action}",
        back=f"{HOME}/runs/{run.id}",
        ask={"pause": "pause", "cancel": "name"}.get(action, ""),
        grave=action == "cancel",
    )


@router.post("/runs/{run_id}/{action}")
async def act(ctx: Ctx, sent: Acting, run_id: UUID, action: Action) -> Response:
    who = sent.visitor.who
    async with ctx.database.write() as session:
        if action == "start":
            await service.start(session, ctx.database, who, run_id)
        elif action == "pause":
            await control.pause(ctx, session, who, run_id, _seconds(sent.text("hours")))
        elif action == "resume":
            await control.resume(ctx, session, who, run_id)
        else:
            run = await service.visible(session, who, run_id)
            if sent.text("name") != run.name:
                raise InvalidRequest(
                    "That is not the name of the run, so nothing was done.",
                    field="name",
                    mend="Go back and type the name as it is shown.",
                )
            await control.cancel(ctx, session, who, run_id)
    return to(f"{HOME}/runs/{run_id}?done={action}")


def _seconds(hours: str) -> float:
    """The bounds are those of the API. Raises ``InvalidRequest``."""
    try:
        return Pause(seconds=float(hours) * 3600).seconds
    except (ValueError, ValidationError):
        raise InvalidRequest("So long a run cannot be paused.", field="hours") from None


@router.get("/runs/{run_id}/clients/{client_id}/release")
async def confirm_release(
    ctx: Ctx, request: Request, visitor: Operating, run_id: UUID, client_id: UUID
) -> Response:
    async with ctx.database.read() as session:
        run = await service.visible(session, visitor.who, run_id)
        names = await repository.client_names(session, [client_id])
    return page(
        request,
        "confirm.html",
        live="confirm_form.html",
        words=words.ACTIONS["release"],
        subject=f"{names.get(client_id, 'A client')} in {run.name}",
        target=f"{HOME}/runs/{run.id}/clients/{client_id}/release",
        back=f"{HOME}/runs/{run.id}",
        ask="",
        grave=False,
    )


@router.post("/runs/{run_id}/clients/{client_id}/release")
async def release(ctx: Ctx, sent: Acting, run_id: UUID, client_id: UUID) -> Response:
    async with ctx.database.write() as session:
        await control.release(ctx, session, sent.visitor.who, run_id, client_id)
    return to(f"{HOME}/runs/{run_id}?done=release")
