"""Receipts: opened when rows are asked for, closed when they were made, read, verified, proved."""

from __future__ import annotations

import asyncio
from typing import Literal
from uuid import UUID

import structlog
from pydantic import BaseModel, Field

from api import audit
from api.context import Context
from api.problems import NotFound
from api.receipts import keys, repository
from api.rounds.service import ModelView
from core.errors import ReceiptInvalid
from core.privacy.premise import View
from core.receipts.content import Content, content_of
from core.receipts.opening import ModelFacts, made_with
from core.receipts.receipt import MadeWith, Model, ModelReceipt, Receipt, Spent
from core.receipts.signing import Signed, verified
from core.synthesis.sampler import Generator

log = structlog.get_logger(__name__)


class Verdict(BaseModel):
    """Of the receipt of rows, or of a model that was taken away."""

    valid: bool = Field(description="Signed by this coordinator, as it is.")
    why: str = Field(description="What is wrong with it; empty if it is valid.")
    key_id: str
    recorded: bool = Field(description="This coordinator has handed out rows under this id.")
    rows: Literal["as recorded", "differ", "not recorded"] = Field(
        description="Whether its content hash is the one that was recorded when rows were made."
    )


class Proof(BaseModel):
    receipt_id: str
    same: bool | None = Field(
        description="Whether the rows, made again, are those of the receipt. null: this machine "
        "cannot tell, see why."
    )
    why: str
    recorded: Content | None
    found: Content
    made_with: MadeWith = Field(description="Of this machine.")


def facts_of(run_name: str, model: ModelView, views: tuple[View, ...] = ()) -> ModelFacts:
    """What receipts of a published model say whatever is asked of it, before anybody withdraws.
    ``views``: of a run with secure sums (``core.privacy.views.views_of_secure``).
    """
    return ModelFacts(
        model=Model(
            run_id=str(model.run_id),
            run=run_name,
            round=model.round,
            plan_digest=model.spec_digest,
            frame_digest=model.frame.digest,
            weights_digest=model.weights.digest,
        ),
        per_client=tuple(
            Spent(client=one.client, epsilon=one.epsilon, delta=one.delta, unit=one.unit)
            for one in model.per_client
        ),
        relation=model.relation,
        noise_mode=model.noise_mode,
        views=views,
    )


async def close(ctx: Context, receipt: Receipt, content: Content) -> None:
    """Record what the rows hold. Other rows than before under the same receipt are an alarm: the
    software, or the machine, is not what it says.
    """
    before = await repository.close(ctx, receipt.id, content)
    if before is None:
        return
    log.error("rows_differ", receipt=receipt.id, recorded=before.digest, found=content.digest)
    async with ctx.database.write() as session:
        await audit.record(
            session,
            "rows-differ",
            None,
            run_id=UUID(receipt.model.run_id),
            round_number=receipt.model.round,
            receipt=receipt.id,
            recorded=before.digest,
            found=content.digest,
        )


async def one(ctx: Context, receipt_id: str) -> Receipt:
    async with ctx.database.read() as session:
        receipt = await repository.one(session, receipt_id)
    if receipt is None:
        raise NotFound(f"there is no receipt {receipt_id!r}", field="receipt_id")
    return receipt


async def verify(ctx: Context, signed: Signed) -> Verdict:
    async with ctx.database.read() as session:
        known = {key.id: key for key in await keys.views(session)}
        recorded = await repository.one(session, signed.id)
    public = {name: bytes.fromhex(key.public) for name, key in known.items()}
    why, receipt = "", None
    try:
        if signed.id.startswith(ModelReceipt.prefix):
            verified(signed, public, ModelReceipt)
        else:
            receipt = verified(signed, public)
        if known[signed.key_id].revoked_at is not None:
            why = f"the key {signed.key_id} was revoked: others may have had it"
    except ReceiptInvalid as error:
        why = error.message
    return Verdict(
        valid=not why,
        why=why,
        key_id=signed.key_id,
        recorded=recorded is not None,
        rows=_rows(receipt, recorded),
    )


def _rows(
    receipt: Receipt | None, recorded: Receipt | None
) -> Literal["as recorded", "differ", "not recorded"]:
    if receipt is None or recorded is None or recorded.content is None or receipt.content is None:
        return "not recorded"
    return "as recorded" if receipt.content == recorded.content else "differ"


async def prove(ctx: Context, generator: Generator, receipt: Receipt) -> Proof:
    """Make the rows again and compare their content with what was recorded."""
    rows = generator.rows(receipt.request, receipt.asked.seed)
    found = await asyncio.to_thread(content_of, rows)
    here = made_with()
    same: bool | None = receipt.content == found
    why = ""
    if receipt.content is None:
        same, why = None, "the rows were not all made: their answer was broken off"
    elif not same and here != receipt.made_with:
        same = None
        why = (
            "made with other versions or another instruction set, where the last bits of numbers "
            "differ; compare a file with 'fedhypevae verify FILE --model EXPORT'"
        )
    elif not same:
        why = "these are OTHER rows"
    return Proof(
        receipt_id=receipt.id,
        same=same,
        why=why,
        recorded=receipt.content,
        found=found,
        made_with=here,
    )
