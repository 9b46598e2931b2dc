"""Letting sites in that have redeemed their one-time code, refusing them, withdrawing codes."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response

from api.context import Ctx
from api.dashboard import words
from api.dashboard.doors import Acting, Operating
from api.dashboard.render import HOME, PageRoute, page, to
from api.enrolments import service
from api.enrolments.messages import Approval

router = APIRouter(prefix=f"{HOME}/enrolments", include_in_schema=False, route_class=PageRoute)
_FINGERPRINT = 32  # characters, as the API takes it


@router.get("/{enrolment_id}/{action}")
async def confirm(
    ctx: Ctx,
    request: Request,
    visitor: Operating,
    enrolment_id: UUID,
    action: Literal["approve", "refuse"],
) -> Response:
    async with ctx.database.read() as session:
        found = await service.one(ctx, session, enrolment_id)
    unused = action == "refuse" and found.state == "open"
    return page(
        request,
        "confirm.html",
        live="confirm_form.html",
        words=words.ACTIONS["withdraw" if unused else action],
        subject=found.name,
        target=f"{HOME}/enrolments/{enrolment_id}/{action}",
        back=f"{HOME}/clients",
        ask="fingerprint" if action == "approve" else "why",
        grave=action == "refuse",
    )


@router.post("/{enrolment_id}/{action}")
async def act(
    ctx: Ctx, sent: Acting, enrolment_id: UUID, action: Literal["approve", "refuse"]
) -> Response:
    """The fingerprint must be typed here: pages do not show it, so nobody can copy it from them."""
    who, done = sent.visitor.who, str(action)
    async with ctx.database.write() as session:
        if action == "approve":
            body = Approval(fingerprint=sent.text("fingerprint", _FINGERPRINT))
            await service.approve(ctx, session, who, enrolment_id, body)
        else:
            closed = await service.refuse(ctx, session, who, enrolment_id, sent.text("why"))
            done = "withdraw" if closed.state == "withdrawn" else done
    return to(f"{HOME}/clients?done={done}")
