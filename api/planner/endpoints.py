"""HTTP of the budget planner."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from api import examples
from api.auth import Allow, Principal
from api.context import Ctx
from api.openapi import answers, example
from api.planner import service
from api.planner.service import PlannerRequest, PlannerView

router = APIRouter(prefix="/v1/planner", tags=["ledger"])
Asker = Annotated[Principal, Depends(Allow("admin", "auditor", "scientist", "client"))]


@router.post(
    "",
    operation_id="planBudget",
    summary="What a plan would cost, and how many rounds are left",
    description="For a plan and the named clients: epsilon spent and after, training rounds left "
    "with the plan's noise, the noise with which T rounds would fit, and how many attempts may be "
    "lost. Nothing is created or reserved. Some seconds of work for each account. Administrators "
    "and auditors ask about any clients, a client's token about itself; without clients anybody "
    "with one of these scopes gets the plan's own price.",
    responses=answers(
        200,
        examples.PLANNED,
        "The forecast.",
        "invalid-plan",
        "space-mismatch",
        "conflict",
    ),
)
async def plan(
    ctx: Ctx, who: Asker, body: Annotated[PlannerRequest, example(examples.PLANNER)]
) -> PlannerView:
    return await service.plan(ctx, who, body)
