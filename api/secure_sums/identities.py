"""The keys by which sites know one another in secure sums.

A key is set once: by its own site, and of a managed client by a worker or an administrator. Another
one would let whoever holds the site's token speak in its name. An administrator may remove it,
while nobody relies on it. Whether a key is really the site's, the sites' people tell one another:
the coordinator only passes keys on.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal
from api.clients import repository as clients
from api.db.models import Client
from api.db.run_models import Run, RunClient
from api.problems import Conflict, IdentityKeySet, NotFound
from api.runs import repository as runs
from api.runs.specs import spec_of
from core.errors import InvalidPlan
from core.federation.plan import Plan
from core.federation.secure_sum import ALL_SITES
from core.secagg.identity import fingerprint
from core.wire.secure import Peer

log = structlog.get_logger(__name__)
REGISTER = "On the site's machine: fedhypevae agent identity register."
REGISTER_MANAGED = (
    "fedhypevae admin clients identity-key NAME KEY, with what 'fedhypevae agent identity show' "
    "prints on the machine of its worker."
)
_UNDER_WAY = ("running", "paused")


def peer(client: Client) -> Peer:
    key = client.identity_key
    return Peer(client=client.name, key=key, fingerprint=None if key is None else fingerprint(key))


async def register(session: AsyncSession, who: Principal, client_id: UUID, key: str) -> Peer:
    """For a client by its own token, for a managed one by a worker's or an administrator's. The
    same again changes nothing. Raises ``IdentityKeySet``.
    """
    client = await clients.locked(session, client_id)
    mine = client is not None and (
        client.id == who.client_id if who.scope == "client" else client.managed
    )
    if client is None or not mine:
        raise NotFound("there is no such client, or it is not yours to speak for")
    if client.identity_key is None:
        client.identity_key = key
        await session.flush()
        await audit.record(
            session, "identity-key-set", who, client_id=client.id, fingerprint=fingerprint(key)
        )
        log.info("identity_key_set", client=client.name)
    elif client.identity_key != key:
        raise IdentityKeySet(
            f"{client.name!r} has another identity key here",
            field="key",
            mend="If the site has a new key, an administrator removes the old one: "
            f"fedhypevae admin clients identity-key {client.name} --remove. Other sites then ask "
            "for its fingerprint again.",
        )
    return peer(client)


async def remove(session: AsyncSession, who: Principal, client_id: UUID) -> None:
    """Repeating it changes nothing. Raises ``Conflict`` while a run relies on the key."""
    client = await clients.locked(session, client_id)
    if client is None:
        raise NotFound(f"there is no client {client_id}")
    if client.identity_key is None:
        return
    query = (
        select(Run.name)
        .join(RunClient, RunClient.run_id == Run.id)
        .where(
            RunClient.client_id == client_id,
            RunClient.founding,
            Run.state.in_(_UNDER_WAY),
            Run.spec["plan"]["aggregation"].astext == "secure",
        )
        .order_by(Run.id)
        .limit(1)
    )
    if (name := await session.scalar(query)) is not None:
        raise Conflict(
            f"the run {name!r} with secure sums is under way, and {client.name!r} signs in it",
            field="client_id",
            mend="Wait until it has ended, or cancel it.",
        )
    was, client.identity_key = client.identity_key, None
    await audit.record(
        session, "identity-key-removed", who, client_id=client.id, fingerprint=fingerprint(was)
    )
    log.warning("identity_key_removed", client=client.name)


async def peers(session: AsyncSession, who: Principal, run_id: UUID) -> list[Peer]:
    """Founding clients of a run with secure sums, in order. Who takes no part in these sums may
    not ask: who the others are is not its business.
    """
    run = await runs.one(session, run_id)
    seats = [] if run is None else [each for each in await runs.seats(session, run_id)
                                    if each.place.founding]  # fmt: skip
    if who.scope == "client":
        sees = any(seat.client.id == who.client_id for seat in seats)
    elif who.scope == "worker":
        sees = any(seat.client.managed for seat in seats)
    else:
        sees = True
    if run is None or not sees or spec_of(run).plan.aggregation != "secure":
        raise NotFound("there is no such run with secure sums, or you take no part in them")
    return [peer(seat.client) for seat in seats]


def check(plan: Plan, members: Sequence[Client]) -> None:
    """Can all of these take part in the plan's sums? Raises ``Conflict``, ``InvalidPlan``."""
    if plan.aggregation != "secure":
        return
    check_names([client.name for client in members])
    for position, client in enumerate(members):
        if client.identity_key is None:
            raise Conflict(
                f"{client.name!r} has registered no identity key, and the plan's sums are secure",
                field=f"clients.{position}",
                mend=REGISTER_MANAGED if client.managed else REGISTER,
            )


def check_names(names: Sequence[str]) -> None:
    """One name is taken in models of secure sums."""
    if ALL_SITES in names:
        raise InvalidPlan(
            f"{ALL_SITES!r} is what models of secure sums call all clients together",
            field=f"clients.{names.index(ALL_SITES)}",
            mend="Enrol the client under another name.",
        )
