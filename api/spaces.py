"""Embedding spaces: the contracts that make records of several sites comparable."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Response
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit, examples
from api.auth import Admin, Anyone
from api.context import Ctx
from api.db.base import uuid7
from api.db.models import Space
from api.openapi import answers, example
from api.pages import DEFAULT_LIMIT, After, Limit, Page, cut, paged
from api.problems import NotFound, SpaceConflict
from core.federation.plan import EmbeddingSpace, digest_of
from core.federation.values import Line

router = APIRouter(prefix="/v1/spaces", tags=["spaces"])


class NewSpace(EmbeddingSpace):
    """The contract as it may be registered: its texts are for people, too."""

    backbone: Line = Field(min_length=1, max_length=200)
    preprocessing: Line = Field(min_length=1, max_length=500)
    classes: tuple[Annotated[Line, Field(min_length=1, max_length=100)], ...] = Field(
        min_length=2, max_length=1_000
    )


class SpaceView(EmbeddingSpace):
    id: UUID
    digest: str
    created_at: datetime


def view(row: Space) -> SpaceView:
    return SpaceView(id=row.id, digest=row.digest, created_at=row.created_at, **row.body)


async def by_name(session: AsyncSession, name: str) -> Space | None:
    found: Space | None = await session.scalar(select(Space).where(Space.name == name))
    return found


async def register(session: AsyncSession, body: NewSpace) -> tuple[Space, bool]:
    """The space of this name, made if there was none. Another body under the name: refused."""
    digest = digest_of(body)
    made = await session.execute(
        insert(Space)
        .values(id=uuid7(), name=body.name, digest=digest, body=body.model_dump(mode="json"))
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(Space.id)
    )
    new = made.first() is not None
    row = await by_name(session, body.name)
    if row is None or row.digest != digest:
        raise SpaceConflict(
            f"the space {body.name!r} exists with another contract",
            field="name",
            mend="A contract never changes: choose another name.",
        )
    return row, new


@router.post(
    "",
    operation_id="createSpace",
    summary="Register an embedding space",
    description="The same body again answers 200 with the same space.",
    status_code=201,
    response_model=SpaceView,
    responses={
        **answers(201, examples.SPACE_VIEW, "Registered.", "space-name-taken"),
        **answers(200, examples.SPACE_VIEW, "It was there already.", public=True),
    },
)
async def create(
    ctx: Ctx,
    who: Admin,
    response: Response,
    body: Annotated[NewSpace, example(examples.SPACE)],
) -> SpaceView:
    async with ctx.database.write() as session:
        row, made = await register(session, body)
        if made:
            await audit.record(session, "space-created", who, name=row.name, digest=row.digest)
    response.status_code = 201 if made else 200
    return view(row)


@router.get(
    "",
    operation_id="listSpaces",
    summary="List embedding spaces",
    description="Oldest first.",
    responses=answers(200, examples.page(examples.SPACE_VIEW), "One page."),
)
async def listed(
    ctx: Ctx, who: Anyone, limit: Limit = DEFAULT_LIMIT, after: After = None
) -> Page[SpaceView]:
    async with ctx.database.read() as session:
        rows = (await session.scalars(cut(select(Space), Space.id, limit, after))).all()
    shown, more = paged(rows, limit)
    return Page(items=[view(row) for row in shown], next=shown[-1].id if more else None)


@router.get(
    "/{name}",
    operation_id="getSpace",
    summary="One embedding space",
    description="By name.",
    responses=answers(200, examples.SPACE_VIEW, "The space.", "not-found"),
)
async def one(
    ctx: Ctx,
    who: Anyone,
    name: Annotated[str, Path(openapi_examples={"name": {"value": "lite0-digits"}})],
) -> SpaceView:
    async with ctx.database.read() as session:
        row = await by_name(session, name)
    if row is None:
        raise NotFound(f"there is no embedding space {name!r}", field="name")
    return view(row)
