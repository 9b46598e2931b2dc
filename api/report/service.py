"""The report of a published model: gathered in one transaction, made on a thread, kept a while.

It is made again when anything that it says has changed: the model, the ledger, who takes part.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.auth import Principal
from api.context import Context
from api.report import repository
from api.rounds import repository as rounds
from api.runs import repository as runs
from api.runs.repository import Seat
from api.runs.service import seat_view
from api.synthesis.models import Generators, Models, Published
from core.federation.secure_sum import ALL_SITES
from core.recent import Recent
from core.report import page, statistics
from core.report.make import Known, make
from core.report.report import Member
from core.report.spending import Reserved
from core.synthesis.sampler import Generator

Kind = Literal["json", "html"]
MEDIA: dict[Kind, str] = {"json": "application/json", "html": "text/html; charset=utf-8"}
_KEPT = 16


@dataclass(frozen=True)
class Written:
    """Both forms of a report."""

    json: bytes
    html: bytes

    def body(self, kind: Kind) -> bytes:
        return self.json if kind == "json" else self.html

    def etag(self, kind: Kind) -> str:
        return f'"{hashlib.sha256(self.body(kind)).hexdigest()[:32]}"'


class Reports:
    """Written reports by all that they were made of; the least recently used one goes."""

    def __init__(self) -> None:
        self._kept = Recent[Known, Written](_KEPT)

    async def get(
        self,
        ctx: Context,
        who: Principal,
        models: Models,
        generators: Generators,
        run_id: UUID,
        number: int | None,
    ) -> Written:
        """Raises ``NotFound``, or ``NotPrivate`` as synthesis does."""
        found = await models.published(ctx, who, str(run_id), number)
        async with ctx.database.read() as session:
            known = await _known(session, found)
        async with ctx.heavy:
            generator = await generators.get(ctx, found)  # each time: it may not be allowed
            written = self._kept.get(known)
            if written is None:
                weights = found.model.weights.digest
                made = await asyncio.to_thread(_written, ctx, known, generator, weights)
                written = self._kept.keep(known, made)
        return written


def _written(ctx: Context, known: Known, generator: Generator, weights: str) -> Written:
    report = make(known, generator, statistics.read(generator.spec, ctx.store.get(weights)))
    return Written(report.model_dump_json().encode(), page.html(report).encode())


def _sketched(found: Published, seats: Sequence[Seat]) -> Iterable[str]:
    """Whose first sketch is in the model: of secure sums, all clients' together."""
    if found.spec.plan.aggregation == "secure":
        return [ALL_SITES]
    return [seat.client.name for seat in seats if seat.place.founding]


async def _known(session: AsyncSession, found: Published) -> Known:
    run, number = found.run, found.model.round
    seats = await runs.seats(session, run.id)
    here = {client.id for client in await runs.clients_of(session, run.id, number)}
    with_code = await rounds.with_code(session, run.id, number)
    accepted = await repository.accepted(session, run.id, number)
    reserved = await repository.reserved(session, run.id, number)
    members, spent = [], []
    for seat in seats:
        client, view = seat.client, seat_view(seat)
        if client.id not in here:
            continue
        members.append(
            Member(
                client=client.name,
                domain=client.domain,
                state=view.state,
                why=view.why,
                accepted=accepted.get(client.id, 0),
                has_code=client.id in with_code and client.revoked_at is None,
            )
        )
        own: list[Reserved] = reserved.get(client.account_id, [])
        spent.append((client.name, client.account.unit, tuple(own)))
    return Known(
        facts=found.facts,
        members=tuple(members),
        reserved=tuple(spent),
        founding=frozenset(_sketched(found, seats)),
        joins=await repository.joins(session, run.id, found.spec.last_round, number),
        summed=await repository.summed(session, run.id),
    )
