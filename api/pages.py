"""Keyset pagination: ``?limit=&after=``, ordered by UUIDv7, hence by age."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Generic, TypeVar, TypeVarTuple
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Limit = Annotated[int, Query(ge=1, le=200, description="At most so many items.")]
After = Annotated[UUID | None, Query(description="`next` of the page before.")]
DEFAULT_LIMIT = 50


class Page(BaseModel, Generic[T]):
    items: list[T]
    next: UUID | None = None


def cut(
    query: Select[*Ts], key: InstrumentedAttribute[UUID], limit: int, after: UUID | None
) -> Select[*Ts]:
    """The page's rows and one more, which says whether there is another page."""
    if after is not None:
        query = query.where(key > after)
    return query.order_by(key).limit(limit + 1)


def paged(rows: Sequence[T], limit: int) -> tuple[Sequence[T], bool]:
    """Rows of this page, and whether more follow."""
    return rows[:limit], len(rows) > limit
