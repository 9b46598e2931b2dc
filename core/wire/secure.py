"""Messages of secure sums: what a client is asked in each step, and what it answers.

``keys`` -> ``shares`` -> the masked vector (an ordinary work order, ``WorkOrder.sum``) ->
``confirm`` -> ``open``. A step's answer is the client's for good: the same again is accepted,
another one is refused. What the words mean is in ``core.secagg.messages``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, model_validator

from core.federation.plan import Frozen, Name, RunSpec, Sha256
from core.secagg.messages import Advert, Attestation, Confirmation, Key, Opening, Sealed, Session

CONTENT_TYPE_MASKED = "application/vnd.fedhypevae.masked"
StepName = Literal["keys", "shares", "confirm", "open"]
STEPS: tuple[StepName, ...] = ("keys", "shares", "confirm", "open")


class SumOrder(Frozen):
    """Of the order for a masked vector: the sum that it goes into."""

    session: Session
    inbox: tuple[Sealed, ...] = Field(description="Shares that others have sealed for the client.")
    sharers: tuple[str, ...] = Field(
        description="Everybody who has shared secrets: the client's masks are those with all of "
        "its neighbours among them, and it signs this list with that of the survivors."
    )


class SumStep(Frozen):
    """A step of a secure sum that waits for a client's answer. It touches no records."""

    step_id: str
    run_id: str
    client_id: str
    client: Name
    round_number: int = Field(ge=0)
    step: StepName
    spec: RunSpec
    spec_digest: Sha256
    session: Session
    deadline: datetime
    roster: tuple[Advert, ...] = Field(default=(), description="Of 'shares': who takes part.")
    survivors: tuple[str, ...] = Field(
        default=(), description="Of 'confirm' and 'open': whose vectors are to be summed."
    )
    attestations: tuple[Attestation, ...] = Field(
        default=(), description="Of 'confirm': what each of them has signed of its masks."
    )
    confirmations: tuple[Confirmation, ...] = Field(
        default=(), description="Of 'open': signatures under the list of survivors."
    )


class OfferedStep(Frozen):
    """Answer of the long poll (protocol 3 and later): a step of a secure sum."""

    type: Literal["step"] = "step"
    step: SumStep


class StepAnswer(Frozen):
    """A client's answer to one step: exactly the part that goes with it."""

    advert: Advert | None = Field(default=None, description="Of 'keys'.")
    shares: tuple[Sealed, ...] | None = Field(default=None, description="Of 'shares'.")
    confirmation: Confirmation | None = Field(default=None, description="Of 'confirm'.")
    opening: Opening | None = Field(default=None, description="Of 'open'.")

    @model_validator(mode="after")
    def _one_part(self) -> StepAnswer:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of advert, shares, confirmation and opening")
        return self

    @property
    def step(self) -> StepName:
        if self.advert is not None:
            return "keys"
        if self.shares is not None:
            return "shares"
        return "confirm" if self.confirmation is not None else "open"


class StepDecline(Frozen):
    """A client will not answer a step: nobody needs to wait for it. Details stay at the site."""

    code: Literal["site-not-ready", "plan-refused"]


class StepReceipt(Frozen):
    """Answer to an accepted answer; the same for every repetition."""

    step_id: str
    step: StepName


class IdentityKey(Frozen):
    """The Ed25519 key by which other sites know a client, in hexadecimal."""

    key: Key


class Peer(Frozen):
    """A client of a run and the key that the coordinator has for it. Whether it is the client's,
    its people tell: compare fingerprints by telephone before you trust it.
    """

    client: Name
    key: Key | None
    fingerprint: str | None = Field(description="Of the key, in groups to read aloud.")
