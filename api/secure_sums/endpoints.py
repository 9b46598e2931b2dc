"""HTTP of secure sums: one step, its answer, or a word that none will come."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Response

from api.auth import ClientOrWorker
from api.context import Ctx
from api.openapi import answers, example
from api.secure_sums import examples, service
from core.wire.secure import StepAnswer, StepDecline, StepReceipt, SumStep

router = APIRouter(prefix="/v1/secure-steps", tags=["secure sums"])


@router.get(
    "/{step_id}",
    operation_id="getSumStep",
    summary="A step of a secure sum",
    description="What the client is asked, while an answer would count. For Celery workers, which "
    "are told the step's id; an agent gets the same by its long poll.",
    responses=answers(200, examples.STEP, "The step.", "not-found", "work-gone"),
)
async def one(ctx: Ctx, who: ClientOrWorker, step_id: UUID) -> SumStep:
    return await service.step(ctx, who, step_id)


@router.put(
    "/{step_id}",
    operation_id="answerSumStep",
    summary="Answer a step of a secure sum",
    description="Once: the same answer again gets the same receipt (200), also when the step is "
    "over; another one is refused. Signatures are checked with the client's identity key.",
    status_code=201,
    responses={
        **answers(
            201,
            examples.RECEIPT,
            "Accepted.",
            "not-found",
            "step-answered",
            "step-closed",
            "step-rejected",
        ),
        **answers(200, examples.RECEIPT, "Accepted before.", public=True),
    },
)
async def answer(
    ctx: Ctx,
    who: ClientOrWorker,
    response: Response,
    step_id: UUID,
    body: Annotated[StepAnswer, example(examples.ANSWER)],
) -> StepReceipt:
    receipt, new = await service.answer(ctx, who, step_id, body)
    response.status_code = 201 if new else 200
    return receipt


@router.post(
    "/{step_id}/decline",
    operation_id="declineSumStep",
    summary="Decline a step of a secure sum",
    description="Nobody waits for the client in this step, and it takes no further part in the "
    "round's sum. Details stay at the site. Repeating it changes nothing.",
    status_code=204,
    responses=answers(204, None, "Noted.", "not-found", "step-answered", "step-closed"),
)
async def decline(
    ctx: Ctx,
    who: ClientOrWorker,
    step_id: UUID,
    body: Annotated[StepDecline, example(examples.DECLINE)],
) -> None:
    await service.decline(ctx, who, step_id, body)
