"""HTTP of webhooks. A URL may hold a secret of its receiver, so all of it is an administrator's."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request

from api import examples as common
from api.auth import Admin
from api.context import Ctx
from api.openapi import answers, example
from api.pages import DEFAULT_LIMIT, After, Limit, Page, paged
from api.webhooks import examples, repository, service
from api.webhooks.delivery import Courier
from api.webhooks.service import DeliveryView, NewWebhook, State, WebhookMade, WebhookView

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


@router.post(
    "",
    operation_id="createWebhook",
    summary="Create a webhook",
    description="Events of the named kinds are sent to the URL from now on, signed with the secret "
    "that is in this answer only. docs/webhooks.md says what is sent, and how to check it.",
    status_code=201,
    responses=answers(201, examples.MADE, "Created."),
)
async def create(
    ctx: Ctx, who: Admin, body: Annotated[NewWebhook, example(examples.NEW)]
) -> WebhookMade:
    async with ctx.database.write() as session:
        return await service.create(ctx, session, who, body)


@router.get(
    "",
    operation_id="listWebhooks",
    summary="List webhooks",
    description="Without their secrets; disabled ones too. Oldest first.",
    responses=answers(200, common.page(examples.WEBHOOK), "One page."),
)
async def listed(
    ctx: Ctx, who: Admin, limit: Limit = DEFAULT_LIMIT, after: After = None
) -> Page[WebhookView]:
    async with ctx.database.read() as session:
        rows = await repository.page(session, limit, after)
    shown, more = paged(rows, limit)
    items = [service.view(row) for row in shown]
    return Page(items=items, next=items[-1].id if more else None)


@router.get(
    "/{webhook_id}",
    operation_id="getWebhook",
    summary="One webhook",
    description="And, if it is disabled, why.",
    responses=answers(200, examples.WEBHOOK, "The webhook.", "not-found"),
)
async def one(ctx: Ctx, who: Admin, webhook_id: UUID) -> WebhookView:
    async with ctx.database.read() as session:
        return service.view(await service.one(session, webhook_id))


@router.post(
    "/{webhook_id}/ping",
    operation_id="pingWebhook",
    summary="Send a test event",
    description="An event of type `ping`, sent once and now, also by a disabled webhook. The "
    "answer says whether it arrived.",
    responses=answers(200, examples.PONG, "What became of it.", "not-found"),
)
async def ping(ctx: Ctx, who: Admin, request: Request, webhook_id: UUID) -> DeliveryView:
    courier: Courier = request.app.state.courier
    async with ctx.database.write() as session:
        row = await service.one(session, webhook_id, lock=True)
        delivery_id = await service.begin_ping(ctx, session, row)
    async with ctx.database.read() as session:
        claimed = await repository.one_claimed(session, delivery_id)
    await courier.attempt(claimed)
    async with ctx.database.read() as session:
        found = await repository.one_claimed(session, delivery_id)
    return service.delivery_view(found.delivery, found.event)


@router.post(
    "/{webhook_id}/disable",
    operation_id="disableWebhook",
    summary="Disable a webhook",
    description="Nothing more is sent; what is pending waits, and what happens meanwhile is not "
    "told to it. Repeating it changes nothing.",
    responses=answers(200, examples.DISABLED, "Disabled.", "not-found"),
)
async def disable(ctx: Ctx, who: Admin, webhook_id: UUID) -> WebhookView:
    async with ctx.database.write() as session:
        row = await service.one(session, webhook_id, lock=True)
        return service.view(await service.disable(ctx, session, who, row, service.BY_OPERATOR))


@router.post(
    "/{webhook_id}/enable",
    operation_id="enableWebhook",
    summary="Enable a webhook",
    description="Also one that was disabled because nothing arrived. What is pending is sent.",
    responses=answers(200, examples.WEBHOOK, "Enabled.", "not-found"),
)
async def enable(ctx: Ctx, who: Admin, webhook_id: UUID) -> WebhookView:
    async with ctx.database.write() as session:
        row = await service.one(session, webhook_id, lock=True)
        return service.view(await service.enable(session, who, row))


@router.post(
    "/{webhook_id}/rotate",
    operation_id="rotateWebhook",
    summary="Change the secret of a webhook",
    description="The new one is in this answer only. Both sign for FHV_WEBHOOKS_OVERLAP_S.",
    responses=answers(200, examples.ROTATED, "Changed.", "not-found"),
)
async def rotate(ctx: Ctx, who: Admin, webhook_id: UUID) -> WebhookMade:
    async with ctx.database.write() as session:
        row = await service.one(session, webhook_id, lock=True)
        return await service.rotate(ctx, session, who, row)


@router.delete(
    "/{webhook_id}",
    operation_id="deleteWebhook",
    summary="Delete a webhook",
    description="With its secret and its deliveries; the audit trail keeps that it was there.",
    status_code=204,
    responses=answers(204, None, "Deleted.", "not-found"),
)
async def delete(ctx: Ctx, who: Admin, webhook_id: UUID) -> None:
    async with ctx.database.write() as session:
        await service.remove(session, who, await service.one(session, webhook_id, lock=True))


@router.get(
    "/{webhook_id}/deliveries",
    operation_id="listDeliveries",
    summary="What became of events",
    description="Deliveries of a webhook, oldest first: pending, delivered, or dead (given up) "
    "with the reason of the last attempt. Kept for FHV_WEBHOOKS_RETENTION_DAYS after their end.",
    responses=answers(200, common.page(examples.DELIVERY), "One page.", "not-found"),
)
async def deliveries(
    ctx: Ctx,
    who: Admin,
    webhook_id: UUID,
    state: Annotated[State | None, Query(description="Only these.")] = None,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
) -> Page[DeliveryView]:
    async with ctx.database.read() as session:
        await service.one(session, webhook_id)
        rows = await service.page(session, webhook_id, limit, after, state)
    shown, more = paged(rows, limit)
    return Page(items=list(shown), next=shown[-1].id if more else None)


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver",
    operation_id="redeliverEvent",
    summary="Deliver an event again",
    description="Under the same `webhook-id`, with all attempts before it, whatever has become of "
    "it. It is sent in the background.",
    status_code=202,
    responses=answers(202, examples.PENDING, "Due now.", "not-found", "conflict"),
)
async def redeliver(ctx: Ctx, who: Admin, webhook_id: UUID, delivery_id: UUID) -> DeliveryView:
    async with ctx.database.write() as session:
        return await service.again(ctx, session, webhook_id, delivery_id)
