"""One run's newest round under its locks, and everything that is known about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Context
from api.db.run_models import Job, Round, Run
from api.rounds import members, repository
from api.rounds.repository import Place
from api.runs.specs import spec_of
from api.secure_sums import progress
from api.secure_sums.progress import Progress
from core.federation.plan import RunSpec
from core.privacy import budget
from core.privacy.events import PrivacyEvent


@dataclass
class Moment:
    """What a step of the driver works on. Valid until its transaction ends."""

    ctx: Context
    session: AsyncSession
    run: Run
    row: Round
    spec: RunSpec
    now: datetime
    places: list[Place]
    job: Job | None
    sums: Progress | None
    _with_code: set[UUID] | None = field(default=None, repr=False)

    @cached_property
    def planned(self) -> list[PrivacyEvent]:
        """A member's part of the run if nothing is lost; of who joins, the one sketch."""
        if self.spec.kind(self.row.number) == "join":
            return [self.spec.event(self.row.number)]
        return budget.events_of(budget.steps_of(self.spec.events()))

    @cached_property
    def _by_name(self) -> dict[str, Place]:
        return {place.client.name: place for place in self.places}

    def place(self, name: str) -> Place:
        return self._by_name[name]

    async def with_code(self) -> set[UUID]:
        """Clients that have a code in the run's models; asked of the database once."""
        if self._with_code is None:
            self._with_code = await repository.with_code(self.session, self.run.id)
        return self._with_code


async def newest(ctx: Context, session: AsyncSession, run: Run) -> Moment | None:
    """The run's newest round, locked; None if it has none yet. The run's row must be locked."""
    row = await repository.newest(session, run.id, lock=True)
    if row is None:
        return None
    spec = spec_of(run)
    return Moment(
        ctx=ctx,
        session=session,
        run=run,
        row=row,
        spec=spec,
        now=await ctx.database.now(session),
        places=await members.places(session, run.id, spec, row.number),
        job=await repository.job_of(session, run.id, row.number),
        sums=await progress.read(session, spec, row, opens=True),
    )
