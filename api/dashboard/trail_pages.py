"""Pages of models, of what was synthesised, and of the audit trail."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from api.audit import ACTORS, KINDS
from api.context import Ctx
from api.dashboard import repository
from api.dashboard.doors import Overseeing, Reading
from api.dashboard.render import HOME, PageRoute, page
from api.events import service as events
from api.events.order import place_new
from api.events.repository import Filter
from api.pages import paged
from api.problems import InvalidRequest, NotFound
from api.rounds import service as rounds
from api.synthesis_jobs import service as jobs
from api.usage import repository as usage_rows
from api.usage import service as usage

router = APIRouter(prefix=HOME, include_in_schema=False, route_class=PageRoute)
_PAGE, _JOBS, _DAYS, _TOKENS = 50, 20, 30, 200
_MODELS = 12


@router.get("/models")
async def models(
    ctx: Ctx, request: Request, visitor: Reading, before: UUID | None = None
) -> Response:
    async with ctx.database.read() as session:
        now = await ctx.database.now(session)
        found, more = paged(await repository.latest_models(session, _MODELS, before), _MODELS)
        shown = [
            (one, await rounds.model(session, visitor.who, one.run, one.round)) for one in found
        ]
    return page(
        request,
        "models.html",
        live="models_live.html",
        now=now,
        models=shown,
        following=found[-1].run.id if more else None,
        first=before is None,
    )


@router.get("/synthesis")
async def synthesis(ctx: Ctx, request: Request, visitor: Reading) -> Response:
    """A scientist sees what the own token has used, overseers what all have."""
    own = visitor.who.token_id
    whose = None if visitor.oversees else own
    limits = await usage.usage(ctx, visitor.who)
    tokens = await usage_rows.page(ctx.database, None, _TOKENS) if visitor.oversees else []
    async with ctx.database.read() as session:
        now = await ctx.database.now(session)
        days = await repository.rows_by_day(session, whose, now, _DAYS)
        found = [
            jobs.view(job, run) for job, run in await repository.newest_jobs(session, whose, _JOBS)
        ]
    plot = {
        "kind": "day",
        "unit": "rows",
        "zero": True,
        "x": [f"{day.day:%Y-%m-%d}" for day in days],
        "series": [
            {"label": "rows", "values": [day.rows for day in days], "bars": True, "colour": 0}
        ],
    }
    return page(
        request,
        "synthesis.html",
        live="synthesis_live.html",
        now=now,
        usage=limits,
        tokens=sorted(tokens, key=lambda token: -token.rows),
        days=days,
        total=sum(day.rows for day in days),
        plot=plot,
        jobs=found,
    )


@router.get("/audit")
async def audit(
    ctx: Ctx,
    request: Request,
    visitor: Overseeing,
    kind: Annotated[str, Query(max_length=48)] = "",
    actor: Annotated[str, Query(max_length=16)] = "",
    run: Annotated[str, Query(max_length=63)] = "",
    client: Annotated[str, Query(max_length=63)] = "",
    after: UUID | None = None,
) -> Response:
    if (kind and kind not in KINDS) or (actor and actor not in ACTORS):
        raise InvalidRequest("There are no events of this kind.", mend="Choose one of the list.")
    await place_new(ctx)
    async with ctx.database.read() as session:
        now = await ctx.database.now(session)
        run_id = await repository.run_called(session, run) if run else None
        client_id = await repository.client_called(session, client) if client else None
        if (run and run_id is None) or (client and client_id is None):
            name, what = (run, "run") if run and run_id is None else (client, "client")
            raise NotFound(f"There is no {what} called {name!r}.")
        which = Filter(
            run_id=run_id, client_id=client_id, kinds=(kind,) if kind else (), actor=actor or None
        )
        found, more = await events.page(
            session, visitor.who, which, limit=_PAGE, after=after, order="desc"
        )
        runs = await repository.run_names(session, (e.run_id for e in found if e.run_id))
        names = await repository.client_names(session, (e.client_id for e in found if e.client_id))
        labels = await repository.token_labels(session, (e.token_id for e in found if e.token_id))
    return page(
        request,
        "audit.html",
        now=now,
        events=found,
        runs=runs,
        names=names,
        labels=labels,
        chosen={"kind": kind, "actor": actor, "run": run, "client": client},
        actors=ACTORS,
        following=found[-1].id if more and found else None,
        first=after is None,
    )


@router.get("/{rest:path}")
async def nothing(request: Request, visitor: Reading, rest: str) -> Response:
    raise NotFound("Nothing is found under this address.")
