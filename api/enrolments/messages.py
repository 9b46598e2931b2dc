"""What is said about enrolments over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from api.clients.service import ClientView, NewClient
from api.db.enrolment_models import Enrolment
from api.enrolments.repository import State
from core.federation.plan import Name
from core.federation.values import Line
from core.wire.credentials import LONGEST_CODE

DAY_S = 86_400.0


class NewEnrolment(BaseModel):
    """Who may come: a new client, or one that is enrolled already and needs a new token."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    client: NewClient | None = Field(default=None, description="A client that is to be made.")
    existing: Name | None = Field(
        default=None, description="A client's name: its tokens end when the new one is approved."
    )
    approval: Literal["administrator", "automatic"] = Field(
        default="administrator",
        description="'automatic' (if the coordinator's policy FHV_AUTOMATIC_ENROLMENT allows it): "
        "whoever has the code is in.",
    )
    expires_in_s: float = Field(
        default=7 * DAY_S, gt=0, le=90 * DAY_S, description="The code must be used in time."
    )
    token_days: float = Field(
        default=180.0,
        gt=0,
        le=3_660,
        description="Life of the site's token. Its agent renews it in time.",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.client is None) == (self.existing is None):
            raise ValueError("client: give either 'client' or 'existing'")
        if self.client is not None and self.client.managed:
            raise ValueError("client.managed: a managed client has no token, hence needs no code")
        return self


class EnrolmentView(BaseModel):
    id: UUID
    state: State
    name: str
    client: NewClient | None = Field(description="As it will be made; null: it is enrolled.")
    client_id: UUID | None
    approval: Literal["administrator", "automatic"]
    token_days: float
    created_at: datetime
    expires_at: datetime
    redeemed_at: datetime | None
    fingerprint: str | None = Field(description="Compare it with what the agent shows.")
    agent: str = Field(description="What the agent says of itself.")
    address: str = Field(description="From where the code was redeemed.")
    decided_at: datetime | None
    why: str


class EnrolmentMade(EnrolmentView):
    code: str = Field(description="Shown once; only an HMAC of it is stored.")


Ascii = Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e]*$", max_length=200)]


class Redemption(BaseModel):
    model_config = ConfigDict(extra="forbid")

    code: str = Field(min_length=1, max_length=LONGEST_CODE)
    token: str | None = Field(
        default=None,
        max_length=200,
        description="The site's token, made and kept by the site: fhv_client_ and 43 characters "
        "of base64url. Without it the coordinator makes one and shows it in this answer only.",
    )
    agent: Ascii = Field(default="", description="Software and machine, for the administrator.")


class Redeemed(BaseModel):
    id: UUID
    state: State = Field(description="waiting, approved or refused: ask again while it is waiting.")
    why: str
    fingerprint: str = Field(description="Tell it to the coordinator's administrator.")
    client: ClientView | None = Field(description="Once approved.")
    token: str | None = Field(description="Only where the coordinator has made it; shown once.")
    token_expires_at: datetime | None


class Approval(BaseModel):
    model_config = ConfigDict(extra="forbid")

    fingerprint: str | None = Field(
        default=None,
        max_length=32,
        description="What the site's people read out; refused if it is another one.",
    )


class Refusal(BaseModel):
    model_config = ConfigDict(extra="forbid")

    why: Line = Field(min_length=1, max_length=200, description="Shown to the site.")


def state_of(row: Enrolment, now: datetime) -> State:
    if row.decision is not None:
        return row.decision  # type: ignore[return-value]  # the schema's CHECK has the same names
    if row.redeemed_at is not None:
        return "waiting"
    return "open" if now < row.expires_at else "expired"


def view(row: Enrolment, now: datetime) -> EnrolmentView:
    return EnrolmentView(
        id=row.id,
        state=state_of(row, now),
        name=row.name,
        client=None if row.wanted is None else NewClient.model_validate(row.wanted),
        client_id=row.client_id,
        approval="automatic" if row.automatic else "administrator",
        token_days=row.token_s / DAY_S,
        created_at=row.created_at,
        expires_at=row.expires_at,
        redeemed_at=row.redeemed_at,
        fingerprint=row.fingerprint,
        agent=row.agent,
        address=row.address,
        decided_at=row.decided_at,
        why=row.why,
    )
