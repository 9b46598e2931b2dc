"""HTTP of enrolments."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request

from api.auth import Admin, Overseer
from api.context import Ctx
from api.enrolments import examples, issuing, redemption, service
from api.enrolments.messages import (
    Approval,
    EnrolmentMade,
    EnrolmentView,
    NewEnrolment,
    Redeemed,
    Redemption,
    Refusal,
)
from api.enrolments.repository import State
from api.examples import page
from api.guard import address_of
from api.openapi import answers, example
from api.pages import DEFAULT_LIMIT, After, Limit, Page

router = APIRouter(prefix="/v1/enrolments", tags=["enrolments"])


@router.post(
    "",
    operation_id="createEnrolment",
    summary="Issue a one-time code",
    description="For a new client, or (`existing`) for one whose site needs a new token. The code "
    "is in this answer only. What would keep the client from being made is refused here.",
    status_code=201,
    responses=answers(201, examples.MADE, "The code.", "client-name-taken"),
)
async def create(
    ctx: Ctx, who: Admin, body: Annotated[NewEnrolment, example(examples.NEW)]
) -> EnrolmentMade:
    async with ctx.database.write() as session:
        return await issuing.create(ctx, session, who, body)


@router.post(
    "/redeem",
    operation_id="redeemEnrolment",
    summary="Use a one-time code",
    description="Needs no token: the code is the credential. The site makes its token, keeps it, "
    "and sends it here; the token opens nothing until an administrator has approved. Repeat the "
    "request to learn what has become of it; with another token it is refused.",
    responses=answers(
        200,
        examples.REDEEMED,
        "What has become of it.",
        "enrolment-code-unknown",
        "enrolment-code-used",
        "client-name-taken",
        "enrolment-closed",
        "invalid-request",
        "too-many-failures",
        public=True,
    ),
)
async def redeem(
    ctx: Ctx, request: Request, body: Annotated[Redemption, example(examples.REDEMPTION)]
) -> Redeemed:
    async with ctx.database.write() as session:
        return await redemption.redeem(ctx, session, body, address_of(request))


@router.get(
    "",
    operation_id="listEnrolments",
    summary="List enrolments",
    description="Oldest first; `state=waiting` are those that await an administrator.",
    responses=answers(200, page(examples.WAITING), "One page."),
)
async def some(
    ctx: Ctx,
    who: Overseer,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    state: Annotated[State | None, Query(description="Only these.")] = None,
) -> Page[EnrolmentView]:
    async with ctx.database.read() as session:
        items, more = await service.some(ctx, session, limit, after, state)
    return Page(items=items, next=items[-1].id if more else None)


@router.get(
    "/{enrolment_id}",
    operation_id="getEnrolment",
    summary="One enrolment",
    description="Without its code, which nobody has.",
    responses=answers(200, examples.WAITING, "The enrolment.", "not-found"),
)
async def one(ctx: Ctx, who: Overseer, enrolment_id: UUID) -> EnrolmentView:
    async with ctx.database.read() as session:
        return await service.one(ctx, session, enrolment_id)


@router.post(
    "/{enrolment_id}/approve",
    operation_id="approveEnrolment",
    summary="Let a site in",
    description="Compare the fingerprint with the site's people first; sent here, it is compared "
    "again. From now on the site's token is accepted. Repeating it changes nothing.",
    responses=answers(
        200, examples.APPROVED, "Approved.", "not-found", "conflict", "client-name-taken"
    ),
)
async def approve(
    ctx: Ctx,
    who: Admin,
    enrolment_id: UUID,
    body: Annotated[Approval, example(examples.APPROVAL)],
) -> EnrolmentView:
    async with ctx.database.write() as session:
        return await service.approve(ctx, session, who, enrolment_id, body)


@router.post(
    "/{enrolment_id}/refuse",
    operation_id="refuseEnrolment",
    summary="Refuse a site, or withdraw a code",
    description="Nobody comes in by this code any more. Repeating it changes nothing.",
    responses=answers(200, examples.REFUSED, "Refused or withdrawn.", "not-found", "conflict"),
)
async def refuse(
    ctx: Ctx,
    who: Admin,
    enrolment_id: UUID,
    body: Annotated[Refusal, example(examples.REFUSAL)],
) -> EnrolmentView:
    async with ctx.database.write() as session:
        return await service.refuse(ctx, session, who, enrolment_id, body.why)
