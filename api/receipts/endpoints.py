"""HTTP of receipts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request

from api import examples
from api.auth import Anyone, Reader, Scientist
from api.context import Ctx
from api.openapi import answers, example
from api.receipts import keys, service
from core.errors import InvalidSynthesisRequest
from core.receipts.signing import Signed

router = APIRouter(prefix="/v1", tags=["receipts"])
# Rows that are made again within one request, about ten seconds of work; more are proved offline.
MOST_ROWS = 100_000

ReceiptId = Annotated[
    str,
    Path(
        pattern=r"^rcp_[0-9a-f]{32}$",
        openapi_examples={"receipt": {"value": examples.RECEIPT_ID}},
    ),
]


@router.get(
    "/receipts/{receipt_id}",
    operation_id="getReceipt",
    summary="A signed receipt",
    description="What rows are of, at which privacy, and the hash of what they hold. `content` is "
    "null while rows are being made, and for an answer that was broken off.",
    responses=answers(200, examples.SIGNED_RECEIPT, "The receipt.", "not-found"),
)
async def read(ctx: Ctx, who: Reader, request: Request, receipt_id: ReceiptId) -> Signed:
    receipt = await service.one(ctx, receipt_id)
    key = await request.app.state.keyring.active()
    signed: Signed = key.sign(receipt)
    return signed


@router.post(
    "/receipts/verify",
    operation_id="verifyReceipt",
    summary="Is a receipt genuine?",
    description="Checks the signature, by the present key or an older one, and compares with what "
    "was recorded. Offline: `fedhypevae verify FILE --keys KEYS.json`.",
    responses=answers(200, examples.VERDICT, "The verdict, whatever it is."),
)
async def verify(
    ctx: Ctx, who: Reader, body: Annotated[Signed, example(examples.SIGNED_RECEIPT)]
) -> service.Verdict:
    return await service.verify(ctx, body)


@router.get(
    "/receipts/{receipt_id}/regenerate",
    operation_id="regenerateReceipt",
    summary="Prove the rows of a receipt",
    description=f"Makes the rows again and compares their hash; up to {MOST_ROWS:,} rows.",
    responses=answers(
        200,
        examples.PROOF,
        "Whether they are the same.",
        "not-found",
        "not-private",
        "client-withdrawn",
        "invalid-synthesis-request",
    ),
)
async def regenerate(
    ctx: Ctx, who: Scientist, request: Request, receipt_id: ReceiptId
) -> service.Proof:
    receipt = await service.one(ctx, receipt_id)
    if receipt.n > MOST_ROWS:
        raise InvalidSynthesisRequest(
            f"{receipt.n:,} rows are too many to be made again within one request",
            field="receipt_id",
            mend="Prove a file of them with 'fedhypevae verify FILE --model EXPORT'.",
        )
    model, state = receipt.model, request.app.state
    found = await state.models.published(ctx, who, model.run_id, model.round)
    found.must_allow(receipt.asked.mixture)
    async with ctx.heavy:
        generator = await state.generators.get(ctx, found)
        return await service.prove(ctx, generator, receipt)


@router.get(
    "/receipt-keys",
    operation_id="listReceiptKeys",
    summary="Public keys that verify receipts",
    description="Keep the answer as a file to verify offline. A retired key goes on verifying; "
    "what a revoked one has signed is not valid.",
    responses=answers(200, examples.RECEIPT_KEYS, "The keys, oldest first."),
)
async def list_keys(ctx: Ctx, who: Anyone, request: Request) -> keys.KeysView:
    await request.app.state.keyring.active()  # so that there is one
    async with ctx.database.read() as session:
        return keys.KeysView(items=await keys.views(session))
