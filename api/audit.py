"""The audit trail: one row for each thing that somebody (or the coordinator itself) did.

Rows are written in the transaction of what they tell, so the trail says neither more nor less than
what happened. Details are public values and short: no tokens, no bodies, no records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from api.auth import Principal
from api.db.base import uuid7
from api.db.models import SCOPES
from api.db.oversight_models import AuditEvent

# Who acts when nobody asked: the sweeper and what follows from it.
COORDINATOR = "coordinator"
# Who acts by the command line of the coordinator's machine, without a token.
CONSOLE: Literal["console"] = "console"
Actor = Principal | Literal["console"] | None
ACTORS = (*SCOPES, COORDINATOR, CONSOLE)

# Every kind of event, and what happened. Kinds are added, never renamed: readers filter by them.
KINDS: Mapping[str, str] = {
    "space-created": "an embedding space was registered",
    "client-created": "a client was enrolled",
    "enrolment-created": "a one-time code was issued",
    "enrolment-redeemed": "a site has used its code and waits for approval",
    "enrolment-approved": "the token that a site has made is accepted from now on",
    "enrolment-refused": "what was redeemed by a code is let in nowhere",
    "enrolment-withdrawn": "a code that nobody had used is of no use any more",
    "enrolment-expired": "nobody has used a code in time",
    "client-revoked": "a client gets no more work, in no run",
    "token-created": "a bearer token was made",
    "token-replaced": "the holder of a token has made its successor",
    "token-revoked": "a bearer token is refused from now on",
    "dashboard-entered": "somebody signed in to the dashboard with a token",
    "dashboard-left": "and signed out",
    "run-created": "a plan became a run",
    "run-started": "a run began",
    "run-paused": "a run waits",
    "run-resumed": "a paused run goes on",
    "run-completed": "the last round of the plan was published",
    "run-failed": "a run ended without its model",
    "run-cancelled": "a run was stopped for good",
    "join-asked": "a client asked, or was asked, to join a run",
    "join-queued": "the same while the run is under way: a round follows it",
    "join-dropped": "a queued join got no round, with the reason",
    "consent-approved": "a site approved a run",
    "consent-refused": "a site refused a run",
    "client-left-run": "a client takes no further part in a run",
    "client-quarantined": "a client gets no more work of a run until it is released",
    "quarantine-ended": "a client was released from quarantine",
    "client-left-out": "a client got no order in a round",
    "round-moved": "a round has another state",
    "sum-step-answered": "a client has answered a step of a secure sum",
    "sum-step-declined": "a client does not answer a step of a secure sum",
    "identity-key-set": "a site has registered the key that it signs with in secure sums",
    "identity-key-removed": "that key is known no more",
    "model-published": "a round's model can be downloaded",
    "work-leased": "a client took an order (again, if it held it already)",
    "work-returned": "a client gave its order back",
    "work-lost": "an order ended without an update; its reservation stays spent",
    "update-accepted": "an update counts",
    "update-refused": "an update does not count",
    "job-claimed": "a worker of the coordinator took a job",
    "job-completed": "a job has its result",
    "job-failed": "an attempt of a job, or the job, failed",
    "replay-asked": "somebody asked to recompute a published round",
    "replay-differs": "a recomputed round is NOT what was published",
    "updates-erased": "stored bytes of updates were erased",
    "synthesis-served": "synthetic rows were handed out",
    "model-exported": "a published generator was taken away as a file",
    "synthesis-job-created": "somebody asked for a file of rows",
    "synthesis-job-claimed": "a worker began to make it",
    "synthesis-job-done": "the file can be downloaded",
    "synthesis-job-failed": "an attempt to make it, or the job, failed",
    "synthesis-job-cancelled": "nobody wants it any more",
    "synthesis-job-expired": "its bytes were deleted",
    "rows-differ": "the same receipt was made of OTHER rows",
    "signing-key-created": "a key signs receipts from now on",
    "signing-key-retired": "a key signs no more, and goes on verifying",
    "signing-key-revoked": "nothing that a key has signed is valid any more",
    "webhook-created": "events are sent to a receiver from now on",
    "webhook-disabled": "nothing is sent to it, with the reason",
    "webhook-enabled": "events are sent to it again",
    "webhook-key-rotated": "it has a new secret; the former one signs for a while, too",
    "webhook-deleted": "it is gone, with its secret",
    "backup-made": "the database was copied",
    "database-restored": "the database is one of an earlier moment: what followed is unknown",
}


def row(
    kind: str,
    who: Actor,
    *,
    run_id: UUID | None = None,
    round_number: int | None = None,
    client_id: UUID | None = None,
    **detail: Any,
) -> dict[str, Any]:
    """The columns of an event. Raises ``ValueError`` for a kind that is not in the list."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of event {kind!r}: add it to api.audit.KINDS")
    caller = who if isinstance(who, Principal) else None
    return {
        "id": uuid7(),
        "kind": kind,
        "actor_scope": COORDINATOR if who is None else caller.scope if caller else CONSOLE,
        "actor_token": caller.token_id if caller else None,
        "run_id": run_id,
        "round_number": round_number,
        "client_id": client_id or (caller.client_id if caller else None),
        "request_id": str(structlog.contextvars.get_contextvars().get("request_id", "")),
        "detail": detail,
    }


async def record(session: AsyncSession, kind: str, who: Actor, **about: Any) -> None:
    """Add an event (see ``row``) with the next flush, at the latest with the commit. ``who`` is
    None for the coordinator itself. Whoever follows the run is woken at the commit, but for what
    sites do all the time, which followers look for.
    """
    session.add(AuditEvent(**row(kind, who, **about)))
