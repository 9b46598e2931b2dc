"""Events as they are shown. A client sees what is about itself, and its runs as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from api.auth import Principal
from api.context import Context
from api.db.oversight_models import AuditEvent
from api.db.run_models import Run
from api.events import repository
from api.events.repository import Filter
from api.problems import InvalidRequest
from api.rounds import repository as rounds
from api.rounds import service as round_views
from api.rounds.service import RoundView
from api.runs import repository as runs
from api.runs.specs import spec_of

Order = Literal["asc", "desc"]
# What a client may read of an event of the run as a whole: reasons may name other clients.
_FOR_ALL = frozenset({"state", "round", "until", "kind"})
_OVERSEERS = ("admin", "auditor")


class EventView(BaseModel):
    id: UUID
    at: datetime
    kind: str = Field(description="One of a closed list: see docs/api.md.")
    actor: str = Field(description="Scope of the token, or 'coordinator', or 'console'.")
    token_id: UUID | None = Field(description="For administrators and auditors only.")
    run_id: UUID | None
    round: int | None
    client_id: UUID | None
    request_id: str = Field(description="X-Request-ID of the request that did it.")
    detail: dict[str, Any]


class ProgressView(BaseModel):
    """Where a run stands: how a feed begins."""

    run_id: UUID
    name: str
    state: str
    why: str
    rounds_published: int
    rounds_planned: int
    round: RoundView | None


class EndView(BaseModel):
    """How a feed ends: the run has ended and everything was sent."""

    state: str
    why: str


def visible(who: Principal, event: AuditEvent) -> bool:
    """Is this event of a run for the caller, who may see the run?"""
    return who.client_id is None or event.client_id in (None, who.client_id)


def view(who: Principal, event: AuditEvent) -> EventView:
    """The event as the caller may see it."""
    mine = event.client_id is not None and event.client_id == who.client_id
    trusted = who.scope in _OVERSEERS
    detail = event.detail
    if who.client_id is not None and not mine:
        detail = {key: value for key, value in detail.items() if key in _FOR_ALL}
    return EventView(
        id=event.id,
        at=event.at,
        kind=event.kind,
        actor=event.actor_scope,
        token_id=event.actor_token if trusted else None,
        run_id=event.run_id,
        round=event.round_number,
        client_id=event.client_id,
        request_id=event.request_id if trusted or mine else "",
        detail=detail,
    )


async def page(
    session: AsyncSession,
    who: Principal,
    which: Filter,
    *,
    limit: int,
    after: UUID | None,
    order: Order,
) -> tuple[list[EventView], bool]:
    """One page and whether more follow. The cursor is an event of the page before."""
    position: int | None = None
    if after is not None:
        position = await repository.position_of(session, after)
        if position is None:
            raise InvalidRequest(
                "no event has this id", field="after", mend="Pass `next` of the page before."
            )
    rows: Sequence[AuditEvent] = await repository.page(
        session, which, limit, position, newest_first=order == "desc"
    )
    return [view(who, row) for row in rows[:limit]], len(rows) > limit


async def progress(ctx: Context, session: AsyncSession, who: Principal, run: Run) -> ProgressView:
    """Where the run and its newest round stand."""
    spec = spec_of(run)
    newest = await rounds.newest(session, run.id)
    _, published, _ = await runs.progress(session, run.id, spec.last_round)
    shown = None
    if newest is not None:
        shown = await round_views.view(ctx, session, who, run, newest)
    return ProgressView(
        run_id=run.id,
        name=run.name,
        state=run.state,
        why=run.why if who.client_id is None else "",
        rounds_published=published,
        rounds_planned=spec.last_round + 1,
        round=shown,
    )


def end(who: Principal, run: Run) -> EndView:
    return EndView(state=run.state, why=run.why if who.client_id is None else "")
