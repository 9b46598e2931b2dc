"""Enrolment: a client names its space, its population and its budget, once."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit, spaces, tokens
from api.auth import Principal
from api.clients import repository
from api.db.base import uuid7
from api.db.models import Client
from api.idempotency import remember, replay
from api.problems import ClientNameTaken, InvalidRequest, NotFound
from core.federation.plan import Name
from core.federation.values import Line

SHOWN_ONCE = "The token is shown once. Keep it on the site's machine."
NOT_REPEATED = "This request was answered before; its token was shown then and is not kept."
NO_TOKEN = "A managed client has no token: the worker acts for it with its own."  # noqa: S105
Text = Annotated[Line, Field(min_length=1, max_length=200)]


class Budget(BaseModel):
    """What the coordinator may ask of this client's population, ever."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(gt=0, lt=1)


class NewClient(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name
    space: str = Field(min_length=1, max_length=63, description="Name of the embedding space.")
    site: Text
    population: Text = Field(description="Clients over one population share one privacy account.")
    unit: Literal["record", "patient"]
    domain: Name | None = Field(
        default=None,
        description="A label that mixtures may name: all clients of a run that carry it, in equal "
        "parts. Public, like the client's name.",
    )
    managed: bool = Field(description="True: a Celery worker trains for it; false: an agent.")
    budget: Budget


class ClientView(BaseModel):
    id: UUID
    name: str
    space: str
    site: str
    population: str
    unit: str
    domain: str | None = None
    managed: bool
    budget: Budget
    account_id: UUID
    created_at: datetime
    revoked_at: datetime | None = None


class Enrolled(BaseModel):
    client: ClientView
    token: str | None
    note: str


def view(row: Client) -> ClientView:
    return ClientView(
        id=row.id,
        name=row.name,
        space=row.space.name,
        site=row.account.site,
        population=row.account.population,
        unit=row.account.unit,
        domain=row.domain,
        managed=row.managed,
        budget=Budget(epsilon=row.budget_epsilon, delta=row.budget_delta),
        account_id=row.account_id,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )


async def one(session: AsyncSession, who: Principal, client_id: UUID) -> Client:
    """The client, if there is one and the caller may see it; else ``NotFound`` either way."""
    who.must_be_client(client_id)
    row = await repository.one(session, client_id)
    if row is None:
        raise NotFound("there is no such client, or it is not yours")
    return row


async def _tell_apart(session: AsyncSession, body: NewClient) -> None:
    """A mixture names clients and domains alike, so no label may be a client's name. Raises
    ``ClientNameTaken``.
    """
    if body.domain == body.name or await repository.is_a_domain(session, body.name):
        raise ClientNameTaken(f"{body.name!r} is the label of a domain", field="name")
    if body.domain is not None and await repository.is_a_name(session, body.domain):
        raise ClientNameTaken(f"{body.domain!r} is the name of a client", field="domain")


async def create(session: AsyncSession, body: NewClient) -> Client:
    """The client, without a token. Raises ``InvalidRequest``, ``ClientNameTaken``."""
    space = await spaces.by_name(session, body.space)
    if space is None:
        raise InvalidRequest(
            f"there is no embedding space {body.space!r}",
            field="space",
            mend="Register it with POST /v1/spaces first.",
        )
    account = await repository.account(
        session, site=body.site, population=body.population, unit=body.unit
    )
    if account.unit != body.unit:
        raise InvalidRequest(
            f"population {body.population!r} of {body.site!r} is enrolled per {account.unit!r}: "
            "another unit would open a second budget for the same people",
            field="unit",
            mend="Use the unit with which this population began.",
        )
    new = Client(
        id=uuid7(),
        name=body.name,
        space_id=space.id,
        account_id=account.id,
        domain=body.domain,
        managed=body.managed,
        budget_epsilon=body.budget.epsilon,
        budget_delta=body.budget.delta,
    )
    await _tell_apart(session, body)
    if not await repository.add(session, new):
        raise ClientNameTaken(f"a client {body.name!r} exists already", field="name")
    row = await repository.one(session, new.id)
    if row is None:
        raise NotFound("the client vanished")
    return row


async def enrol(
    session: AsyncSession, who: Principal, pepper: bytes, body: NewClient, key: str | None
) -> tuple[Enrolled, bool]:
    """The new client with its token, and whether this is a replay (then without the token)."""
    before: dict[str, Any] | None = await replay(session, who, key, "createClient", body)
    if before is not None:
        return Enrolled.model_validate(before), True
    row = await create(session, body)
    secret: str | None = None
    about: dict[str, Any] = {"name": row.name, "managed": row.managed}
    if not body.managed:
        token, secret = await tokens.issue(
            session, pepper, scope="client", label=body.name, client_id=row.id
        )
        about["token"] = str(token.id)
    await audit.record(session, "client-created", who, client_id=row.id, **about)
    note = NO_TOKEN if body.managed else SHOWN_ONCE
    answer = Enrolled(client=view(row), token=secret, note=note)
    kept = answer.model_copy(
        update={"token": None, "note": NO_TOKEN if body.managed else NOT_REPEATED}
    )
    await remember(session, who, key, kept.model_dump(mode="json"))
    return answer, False
