"""May a run be made of this plan with these clients, and what does it come to? Asked before one is
made, when clients join, and by the planner.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from api import spaces
from api.clients import repository as clients
from api.context import Context
from api.db.base import uuid7
from api.db.models import Client, Space
from api.ledger import service as ledger
from api.problems import Conflict, InvalidRequest
from core.errors import BudgetExceeded, InvalidPlan, SpaceMismatch
from core.federation.plan import EmbeddingSpace, Plan, RunSpec
from core.federation.rule import NoiseMode, spec_for
from core.federation.secure_sum import grid_of
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent
from core.secagg.graph import NoThresholds, Thresholds


def check_distinct(names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InvalidRequest(f"named twice: {', '.join(twice)}", field="clients")


def check_plan(plan: Plan, names: Sequence[str], participants: int) -> None:
    """What this coordinator refuses of any plan, for a run of so many clients."""
    if plan.privacy.caveat:
        raise InvalidPlan(
            f"mode {plan.privacy.mode!r} has {plan.privacy.caveat}: codes and encoders are trained "
            "without noise, and every other record's gradient depends on them",
            field="plan.privacy.mode",
            mend="Use mode 'joint', or simulate on one machine with core.paper.",
        )
    if plan.purpose != "production":
        raise InvalidPlan(
            "a coordinator runs plans of purpose 'production' only",
            field="plan.purpose",
            mend="Simulate on one machine with core.simulation.",
        )
    check_distinct(names)
    if plan.round.quorum > participants:
        raise InvalidPlan(
            f"a quorum of {plan.round.quorum} cannot be reached by {participants} clients",
            field="plan.round.quorum",
        )
    if plan.aggregation == "secure":
        try:
            Thresholds.of(participants, plan.secure.drop, plan.secure.collude)
        except NoThresholds as error:
            raise InvalidPlan(
                str(error),
                field="plan.secure.drop",
                mend="Lower plan.secure.drop or plan.secure.collude, or name more clients.",
            ) from None


async def participants(
    session: AsyncSession,
    plan: Plan,
    names: Sequence[str],
    *,
    unit_field: str = "plan.privacy.unit",
) -> tuple[Space, list[Client]]:
    """The plan's space and the named clients, if all of them can take part in such a run."""
    space = await spaces.by_name(session, plan.space)
    if space is None:
        raise InvalidRequest(f"there is no embedding space {plan.space!r}", field="plan.space")
    found = await clients.by_names(session, names)
    members = []
    for position, name in enumerate(names):
        client = found.get(name)
        if client is None:
            raise InvalidRequest(
                f"there is no client {name!r}",
                field=f"clients.{position}",
                mend="Enrol it with POST /v1/clients first.",
            )
        if client.revoked_at is not None:
            raise Conflict(
                f"{name!r} was revoked: {client.revoked_why}",
                field=f"clients.{position}",
                mend="Leave it out.",
            )
        if client.space_id != space.id:
            raise SpaceMismatch(
                f"{name!r} holds embeddings of {client.space.name!r}, the plan's space is "
                f"{space.name!r}",
                field=f"clients.{position}",
                mend=f"Enrol a client with embeddings of {space.name!r}.",
            )
        if client.account.unit != plan.privacy.unit:
            raise InvalidPlan(
                f"{name!r} protects one {client.account.unit!r}, the plan one "
                f"{plan.privacy.unit!r}",
                field=unit_field.format(position=position),
            )
        members.append(client)
    return space, members


async def check_budgets(
    session: AsyncSession, events: Sequence[PrivacyEvent], members: Sequence[Client]
) -> list[tuple[Client, float]]:
    """Could every client execute these events within its budget, if nothing is lost? The epsilon
    that its account would come to by that, for each.
    """
    after: list[tuple[Client, float]] = []
    sharing = Counter(client.account_id for client in members)
    for position, client in enumerate(members):
        wanted = list(events) * sharing[client.account_id]
        try:
            after.append((client, await ledger.check(session, client, wanted)))
        except BudgetExceeded as error:
            raise BudgetExceeded(
                f"{client.name}: {error.message}",
                field=f"clients.{position}",
                mend=error.mend,
                **error.facts,
            ) from error
    return after


async def specify(
    ctx: Context,
    plan: Plan,
    space: EmbeddingSpace,
    clients: int,
    names: Sequence[str] | None = None,
) -> tuple[RunSpec, float]:
    """The specification and its epsilon; of secure sums it names who is in them. Seconds of work,
    on a thread, in no transaction.
    """
    async with ctx.heavy:
        try:
            spec = await asyncio.to_thread(
                spec_for, str(uuid7()), plan, space, clients, _noise_mode(plan),
                names if plan.aggregation == "secure" else None,
            )  # fmt: skip
        except ValidationError as error:
            # The one rule of a specification that a plan alone cannot break: sizes with this space.
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            field, _, message = reason.partition(": ")
            raise InvalidPlan(message, field=field) from error
        except ValueError as error:  # no noise meets the targets
            raise InvalidPlan(str(error), field="plan.privacy") from error
        await asyncio.to_thread(_check_grids, spec, clients)
        return spec, await asyncio.to_thread(epsilon, spec.events(), plan.privacy.delta)


def _noise_mode(plan: Plan) -> NoiseMode:
    return "aggregated" if plan.aggregation == "secure" else "local"


def _check_grids(spec: RunSpec, clients: int) -> None:
    """In every round of the plan there is a grid for the sum of all clients."""
    for number in range(spec.last_round + 1):
        if not spec.is_secure(number):
            continue
        try:
            grid_of(spec, number, clients)
        except ValueError as error:
            raise InvalidPlan(
                f"no secure sum of round {number} is possible: {error}", field="plan.secure"
            ) from None
