"""Joins that were asked for while their run was under way: a round follows when it is completed.

Whoever waits has no place in the run before that, so nobody in it is disturbed. All who wait share
one join round. Who cannot join any more (revoked, out of budget, refused by its site) is dropped
with the reason; if the run ends without a model, everybody is.
"""

from __future__ import annotations

from uuid import UUID

from api import audit
from api.context import Context
from api.db.models import Client
from api.joins import repository, service
from api.runs import repository as runs
from api.runs.specs import spec_of
from core.errors import DomainError


async def place(ctx: Context) -> None:
    """Open the join rounds that are due. Killed at any line, the next sweep does the same."""
    async with ctx.database.read() as session:
        due = await repository.due(session)
    for run_id in due:
        await _place(ctx, run_id)


async def _place(ctx: Context, run_id: UUID) -> None:
    async with ctx.database.write() as session:
        run = await runs.locked(session, run_id, skip=True)
        if run is None or run_id not in await repository.due(session):
            return
        now = await ctx.database.now(session)
        after: list[tuple[Client, float]] = []
        for request, client in await repository.requests(session, run_id):
            if request.settled_at is not None:
                continue
            request.settled_at, request.why = now, ""
            try:
                if run.state != "completed":
                    raise _RunIsOver(f"the run is {run.state}: {run.why}")
                after += await service.checked(session, run, spec_of(run), [client.name])
            except DomainError as error:
                request.why = error.message
                await audit.record(
                    session, "join-dropped", None, run_id=run_id, client_id=client.id,
                    why=error.message,
                )  # fmt: skip
        await session.flush()
        if after:
            number = await service.next_number(session, run, spec_of(run))
            await service.open_round(ctx, session, None, run, number, after)


class _RunIsOver(DomainError):
    code = "conflict"
