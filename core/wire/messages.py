"""Messages between the coordinator and those who work for it. Public values only.

Nothing here may be computed from private records, except an update's body, which is noised.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from core.federation.plan import Frozen, Name, RoundKind, RunSpec, Sha256
from core.federation.values import MAX_BYTES, Line, omitted_if
from core.privacy.events import PrivacyEvent
from core.wire.protocol import PROTOCOL_HEADER as PROTOCOL_HEADER
from core.wire.secure import OfferedStep, SumOrder

LEASE_HEADER = "X-FHV-Lease"
CONTENT_TYPE_TENSORS = "application/vnd.fedhypevae.tensors+safetensors"


class ObjectRef(Frozen):
    """A stored object: download it from ``/v1/objects/{digest}``."""

    role: Literal["frame", "weights"]
    digest: Sha256
    size: int = Field(ge=0, le=MAX_BYTES, description="Bytes.")


class WorkOrder(Frozen):
    """One client's part of one round, handed out under a lease.

    ``spec`` is repeated in full so that the site can judge it (noise, q, epsilon) by itself;
    ``event`` is what the coordinator has reserved in its ledger for this attempt.
    """

    work_id: str
    run_id: str
    client_id: str
    client: str = Field(description="The client's name.")
    round_number: int = Field(ge=0)
    kind: RoundKind
    attempt: int = Field(ge=1)
    lease_token: str
    lease_s: float = Field(gt=0, description="Seconds until the lease ends unless renewed.")
    spec: RunSpec
    spec_digest: Sha256
    event: PrivacyEvent
    update_layout: Sha256
    max_update_bytes: int = Field(gt=0)
    inputs: tuple[ObjectRef, ...] = ()
    position: int | None = Field(
        default=None,
        ge=0,
        exclude_if=omitted_if(None),
        description="The client's place among the run's founding clients, by which the site checks "
        "that a training round is its turn; given where the plan selects clients.",
    )
    sum: SumOrder | None = Field(
        default=None,
        exclude_if=omitted_if(None),
        description="Of a round whose sum is secure: what is sent is a masked vector of the "
        "session, not an update.",
    )


class PlanOffer(Frozen):
    """A run's plan as it is put before the site of one client, and what became of it.

    ``spec`` stands in full, so that the site can judge it and compute what it costs by itself; the
    epsilons are the coordinator's, at the client's ``delta``, for whoever has no ledger at hand.
    Of secure sums they hold while no more than ``spec.plan.secure.collude`` of a round's other
    clients work with the coordinator.
    """

    plan_id: str
    run_id: str
    run: Name = Field(description="The run's name.")
    client_id: str
    client: Name
    joins: bool = Field(description="True: one sketch of a completed run. False: all its rounds.")
    rounds: int = Field(ge=1, description="In how many rounds the client takes part.")
    spec: RunSpec
    spec_digest: Sha256
    epsilon_plan: float = Field(ge=0, description="Of these rounds alone.")
    epsilon_spent: float = Field(ge=0, description="Of everything reserved of the account by now.")
    epsilon_after: float = Field(
        ge=0,
        description="Of the account after these rounds, and after what other clients over the same "
        "population still do in this run. Once decided: as it was when the plan was put.",
    )
    delta: float = Field(gt=0, lt=1)
    state: Literal["asked", "approved", "refused"]
    decided_by: Literal["person", "policy"] | None = None
    decided_at: datetime | None = None
    why: str = ""
    round_number: int | None = Field(default=None, description="The round that waits, if any.")
    deadline: datetime | None = Field(
        default=None, description="When that round closes without an answer."
    )
    asked_at: datetime


class ConsentDecision(Frozen):
    """A site's word on a run's plan, given once. Who changes its mind leaves the run."""

    client: Name
    spec_digest: Sha256
    decision: Literal["approve", "refuse"]
    by: Literal["person", "policy"]
    why: Line = Field(default="", max_length=200, description="Never shown to other clients.")


class OfferedOrder(Frozen):
    """Answer of the long poll: an order."""

    type: Literal["order"] = "order"
    order: WorkOrder


class OfferedPlan(Frozen):
    """Answer of the long poll (protocol 2 and later): a plan that awaits the site's consent."""

    type: Literal["plan"] = "plan"
    plan: PlanOffer


Offer = Annotated[OfferedOrder | OfferedPlan | OfferedStep, Field(discriminator="type")]


class LeaseRenewal(Frozen):
    """Answer to a renewal."""

    lease_s: float = Field(gt=0)


class WorkFailure(Frozen):
    """Why a site gives work back. Two codes only: details stay in the site's log.

    ``site-not-ready``: try again later (a new attempt, a new reservation). ``plan-refused``: the
    site's public policy forbids this order; it will not be asked again in this round.
    """

    code: Literal["site-not-ready", "plan-refused"]


class UpdateReceipt(Frozen):
    """Answer to an accepted update; the same for every resend of the same bytes."""

    update_id: str
    run_id: str
    round_number: int
    client_id: str
    digest: Sha256
    size: int


class AggregateInput(Frozen):
    """One accepted update, in the fixed order in which sums are taken."""

    client_id: str
    client: str
    digest: Sha256


class AggregateJob(Frozen):
    """Everything that turns a round's updates into the next model. Digests name stored objects."""

    job_id: str
    lease_token: str
    lease_s: float = Field(gt=0)
    run_id: str
    round_number: int = Field(ge=0)
    kind: RoundKind
    spec: RunSpec
    updates: tuple[AggregateInput, ...]
    frame: Sha256 | None = None
    weights: Sha256 | None = None
    optimiser: Sha256 | None = None
    withdrawn: tuple[str, ...] = Field(
        default=(),
        description="Ids of clients that were revoked before the round closed: the model that is "
        "made has no code of theirs.",
    )
    transcript: Sha256 | None = Field(
        default=None,
        exclude_if=omitted_if(None),
        description="Of a round whose sum is secure: the object that opens it "
        "(core.secagg.messages.Transcript). The updates are masked vectors then.",
    )


class ClientNorm(Frozen):
    """L2 norm of one client's released update, and its robust z-score among the round's."""

    client_id: str
    norm: float = Field(ge=0)
    z: float


class Diagnostics(Frozen):
    """Released updates side by side (``core.federation.outliers``). Post-processing: public."""

    clients: tuple[ClientNorm, ...] = ()
    outliers: tuple[str, ...] = Field(
        default=(), description="Names of the clients whose norm is implausible among the others'."
    )


class AggregateResult(Frozen):
    """What the aggregating worker stored, and what it noticed."""

    frame: ObjectRef
    weights: ObjectRef
    optimiser_digest: Sha256
    optimiser_size: int = Field(ge=0, le=MAX_BYTES)
    diagnostics: Diagnostics | None = Field(
        default=None,
        exclude_if=omitted_if(None),
        description="Workers of before give none.",
    )


class JobFailure(Frozen):
    """An aggregation that cannot succeed (or not now)."""

    code: str = Field(min_length=1, max_length=64)
    detail: str = Field(default="", max_length=2_000)
