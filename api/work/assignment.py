"""What all orders of one round have in common, read once; and the order of one client.

While a round is open its run's specification and the model before it do not change any more, so
what is kept here cannot be out of date. A thousand clients that ask for a round cost one look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.auth import lease_token
from api.db.engine import Database
from api.problems import NotFound
from api.rounds import repository as rounds
from api.runs import repository as runs
from api.runs.specs import expected_of, spec_of
from api.secure_sums import known
from api.secure_sums import repository as secure_sums
from api.secure_sums.known import sent_size
from core.federation.plan import RoundKind, RunSpec
from core.federation.updates import UpdateExpectation
from core.privacy.events import PrivacyEvent
from core.recent import Recent
from core.secagg.messages import Sealed
from core.wire.messages import ObjectRef, WorkOrder
from core.wire.secure import SumOrder

_MOST = 256
_kept: Recent[tuple[UUID, int], Common] = Recent(_MOST)


@dataclass(frozen=True)
class Common:
    spec: RunSpec
    spec_digest: str
    kind: RoundKind
    event: PrivacyEvent
    expected: UpdateExpectation
    inputs: tuple[ObjectRef, ...]


class Attempt(Protocol):
    """A client's attempt at a round."""

    @property
    def id(self) -> UUID: ...
    @property
    def run_id(self) -> UUID: ...
    @property
    def round_number(self) -> int: ...
    @property
    def client_id(self) -> UUID: ...
    @property
    def attempt(self) -> int: ...


async def common(database: Database, work: Attempt) -> Common:
    """Of the round of this work, which must be open, or have been so when the work was leased."""
    key = (work.run_id, work.round_number)
    if (known := _kept.get(key)) is None:
        async with database.read() as session:
            known = _kept.keep(key, await _read(session, *key))
    return known


async def inputs_of(
    session: AsyncSession, run_id: UUID, spec: RunSpec, number: int
) -> tuple[ObjectRef, ...]:
    """What the orders of a round read besides records: the model before it."""
    if spec.kind(number) not in ("spread", "train", "validate", "report"):
        return ()
    model = await rounds.model(session, run_id, None, before=number)
    if model is None:
        raise NotFound("the model of the round before vanished")
    return (
        ObjectRef(role="frame", digest=model.frame.digest, size=model.frame.size),
        ObjectRef(role="weights", digest=model.weights.digest, size=model.weights.size),
    )


async def _read(session: AsyncSession, run_id: UUID, number: int) -> Common:
    run = await runs.one(session, run_id)
    if run is None:
        raise NotFound("the run vanished")
    spec = spec_of(run)
    kind = spec.kind(number)
    inputs = await inputs_of(session, run_id, spec, number)
    return Common(
        spec=spec,
        spec_digest=run.spec_digest,
        kind=kind,
        event=spec.event(number),
        expected=expected_of(run.spec_digest, spec, number),
        inputs=inputs,
    )


async def sum_order(database: Database, work: Attempt, client: str) -> SumOrder | None:
    """The sum that the attempt's vector goes into, where that is a secure one."""
    of = await common(database, work)
    if not of.spec.is_secure(work.round_number):
        return None
    async with database.read() as session:
        fixed = await known.at(session, work.run_id, work.round_number, "order")
        senders = fixed.collector.neighbours(client)
        bodies = await secure_sums.answers(
            session, work.run_id, work.round_number, "shares", senders
        )
    boxes = (box for body in bodies.values() for box in body["shares"] if box["receiver"] == client)
    inbox = tuple(Sealed.model_validate(box) for box in boxes)
    return SumOrder(session=fixed.session, inbox=inbox, sharers=fixed.sharers)


def order(
    of: Common,
    work: Attempt,
    client: str,
    position: int,
    pepper: bytes,
    sums: SumOrder | None = None,
) -> WorkOrder:
    """The order of one attempt. ``client``, ``position``: the client's name and place in the run;
    ``sums``: of a round whose sum is secure.

    The place is told where the plan selects clients, so that the site can check its turn.
    """
    selects = of.spec.founding_clients is not None and of.kind != "join"
    return WorkOrder(
        work_id=str(work.id),
        run_id=str(work.run_id),
        client_id=str(work.client_id),
        client=client,
        round_number=work.round_number,
        kind=of.kind,
        attempt=work.attempt,
        position=position if selects else None,
        lease_token=lease_token(work.id, work.attempt, pepper),
        lease_s=of.spec.plan.round.lease_s,
        spec=of.spec,
        spec_digest=of.spec_digest,
        event=of.event,
        update_layout=of.expected.layout,
        max_update_bytes=of.expected.max_bytes if sums is None else sent_size(sums.session),
        inputs=of.inputs,
        sum=sums,
    )
