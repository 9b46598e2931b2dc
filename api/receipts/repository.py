"""SQL of receipts."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Context
from api.db.synthesis_models import IssuedReceipt
from core.receipts.content import Content
from core.receipts.receipt import Receipt

_CLOSE = """
    UPDATE receipts SET content = %(content)s::jsonb WHERE id = %(id)s AND content IS NULL
    RETURNING id
"""
_CONTENT = "SELECT content FROM receipts WHERE id = %(id)s"


async def close(ctx: Context, receipt_id: str, content: Content) -> Content | None:
    """Add what the rows hold; what was recorded before, if it is something else."""
    closed = await ctx.database.act(_CLOSE, id=receipt_id, content=content.model_dump_json())
    if closed:
        return None
    found = await ctx.database.glance(_CONTENT, id=receipt_id)
    recorded = Content.model_validate(found[0][0]) if found else None
    return recorded if recorded != content else None


async def one(session: AsyncSession, receipt_id: str) -> Receipt | None:
    row = await session.get(IssuedReceipt, receipt_id)
    if row is None:
        return None
    return Receipt.model_validate({**row.body, "content": row.content})
