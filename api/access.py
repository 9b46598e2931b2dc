"""Who may do what: the rule of every operation, and the table of them in docs/access.md.

Scopes are read from the routes themselves, so the table cannot differ from what is enforced. Which
objects a scope may touch cannot be read from a route: that is said here, and an operation of which
nothing is said has no place in the table (``NoRule``).
``python -m api.access`` writes the document.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts

from api.app import create_app
from api.auth import Door
from api.config import Settings
from api.db.models import SCOPES

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "access.md"

_OWN_CLIENT = "a client: its own only"
_OWN_RUNS = "a client: runs in which it takes part, and of them itself only"
_OWN_JOBS = "a scientist: jobs of the same token; an administrator: all"
_OWN_STEP = "a client: its own steps, a worker: those of managed clients"
_LEASED = "the holder of the lease"
_PUBLISHED = "published models"
_ALL = "all"

# By operationId. Scopes that a rule does not name are bound to no object.
RULES = {
    "answerSumStep": _OWN_STEP,
    "approveEnrolment": _ALL,
    "cancelRun": _ALL,
    "cancelSynthesisJob": _OWN_JOBS,
    "claimJob": "jobs that are ready",
    "claimSynthesisJob": "jobs that are ready",
    "claimWork": "work of managed clients only",
    "closeSynthesisReceipt": _LEASED,
    "completeJob": _LEASED,
    "completeSynthesisJob": _LEASED,
    "createClient": _ALL,
    "createEnrolment": _ALL,
    "createJoin": "a client: itself only, into runs whose plan lets clients join",
    "createRun": _ALL,
    "createSpace": _ALL,
    "createSynthesisJob": _PUBLISHED,
    "createToken": _ALL,
    "createWebhook": _ALL,
    "decideOnPlan": "a client: for itself; a worker: for managed clients",
    "declineSumStep": _OWN_STEP,
    "deleteWebhook": _ALL,
    "disableWebhook": _ALL,
    "enableWebhook": _ALL,
    "eraseUpdates": _OWN_CLIENT,
    "exportModel": _PUBLISHED,
    "failJob": _LEASED,
    "failSynthesisJob": _LEASED,
    "failWork": f"{_LEASED}; a client: its own work, a worker: that of managed clients",
    "followRun": _OWN_RUNS,
    "getClient": _OWN_CLIENT,
    "getEnrolment": "never the code",
    "getHealth": "says nothing but that the process lives",
    "getLedger": _OWN_CLIENT,
    "getLedgerTable": _OWN_CLIENT,
    "getMetrics": "of this process and of all; also the holder of FHV_METRICS_TOKEN",
    "getModel": "a client: runs in which it takes part, all names in the model, its own cost only",
    "getObject": "frames and weights of published rounds; a client: of runs in which it takes "
    "part; a scientist: not where a client has withdrawn",
    "getOwnClient": _OWN_CLIENT,
    "getOwnToken": "of the calling token",
    "getReadiness": "says nothing but whether the parts answer",
    "getReceipt": _ALL,
    "getReplay": _ALL,
    "getReport": _PUBLISHED,
    "getRound": _OWN_RUNS,
    "getRun": _OWN_RUNS,
    "getSpace": _ALL,
    "getStatement": _OWN_CLIENT,
    "getSumStep": _OWN_STEP,
    "getSynthesisFile": _OWN_JOBS,
    "getSynthesisJob": _OWN_JOBS,
    "getUsage": "of the calling token",
    "getWebhook": "never the secret",
    "leaveRun": _OWN_CLIENT,
    "listClientEvents": _OWN_CLIENT,
    "listClients": _ALL,
    "listDeliveries": _ALL,
    "listEnrolments": "never the codes",
    "listEvents": _ALL,
    "listJoins": _OWN_RUNS,
    "listPeers": "a client: runs in whose secure sums it takes part; a worker: such runs with "
    "managed clients",
    "listPlans": "a worker: of managed clients",
    "listPlansOfClient": _OWN_CLIENT,
    "listReceiptKeys": "public keys",
    "listRejections": _OWN_RUNS,
    "listRounds": _OWN_RUNS,
    "listRuns": _OWN_RUNS,
    "listSpaces": _ALL,
    "listSynthesisJobs": _OWN_JOBS,
    "listTokens": "never the secrets",
    "listUsage": _ALL,
    "listWebhooks": "never the secrets",
    "pauseRun": _ALL,
    "pingWebhook": _ALL,
    "planBudget": "a client: with its own account only; a scientist: with no account",
    "pollWork": _OWN_CLIENT,
    "putUpdate": f"{_LEASED}; a client: its own work, a worker: that of managed clients",
    "redeemEnrolment": "the holder of a one-time code, without a token",
    "redeliverEvent": _ALL,
    "refuseEnrolment": _ALL,
    "regenerateReceipt": _PUBLISHED,
    "releaseClient": _ALL,
    "removeIdentityKey": _ALL,
    "renewJob": _LEASED,
    "renewWork": f"{_LEASED}; a client: its own work, a worker: that of managed clients",
    "replayRound": _ALL,
    "reportSynthesisPart": _LEASED,
    "resumeRun": _ALL,
    "revokeClient": _ALL,
    "revokeToken": _ALL,
    "rotateOwnToken": "of the calling token",
    "rotateWebhook": _ALL,
    "setIdentityKey": "a client: its own only; a worker, admin: of managed clients",
    "startRun": _ALL,
    "synthesize": _PUBLISHED,
    "synthesizeByUrl": _PUBLISHED,
    "synthesizeByUrlUnversioned": _PUBLISHED,
    "synthesizeUnversioned": _PUBLISHED,
    "verifyReceipt": _ALL,
}

_HEAD = """# Who may do what

Written by `make access-table` from the routes and from `api/access.py`; do not edit. Tests ask
every operation with a token of every scope, without a token, and with a revoked and an expired
one, and compare the answers with this table; a client's token is tried on what is another's.

Without a valid token the answer is 401, with one of another scope 403. What a caller may not see is
404, as if it did not exist. ●: let in. "all": no scope that is let in is bound to certain objects.
A client's token acts for one client. Health, `/docs`, `/redoc` and `/openapi.json` need no token.
Pages under `/dashboard` are for people who sign in: [dashboard.md](dashboard.md).
"""


class NoRule(LookupError):
    """An operation of which ``RULES`` says nothing."""


@dataclass(frozen=True)
class Operation:
    """``scopes``: those that are let in; None: anybody, without a token."""

    id: str
    method: str
    path: str
    scopes: frozenset[str] | None
    rule: str


def _scopes(dependant: Dependant) -> Iterator[frozenset[str]]:
    for each in dependant.dependencies:
        call: object = each.call
        if isinstance(call, Door):
            yield frozenset(call.scopes)
        yield from _scopes(each)


def operations(app: FastAPI) -> list[Operation]:
    """All operations that the application serves, in the order of its routes. Raises ``NoRule``."""
    found = []
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if not isinstance(route, APIRoute) or not route.include_in_schema:
            continue
        name = route.operation_id or route.name
        if name not in RULES:
            raise NoRule(f"{name}: say in api/access.py on which objects it may be used")
        doors = list(_scopes(route.dependant))
        scopes = frozenset.intersection(*doors) if doors else None
        path = context.path or route.path
        found += [
            Operation(name, method, path, scopes, RULES[name])
            for method in sorted(route.methods or ())
        ]
    return found


def render(found: list[Operation]) -> str:
    """The document."""
    lines = [_row(["operation", "", *SCOPES, "which objects"]), "|---" * (3 + len(SCOPES)) + "|"]
    for each in sorted(found, key=lambda one: (one.path.removeprefix("/v1"), one.method)):
        let_in = ["●" if each.scopes is None or scope in each.scopes else "" for scope in SCOPES]
        lines.append(_row([f"`{each.method} {each.path}`", each.id, *let_in, each.rule]))
    return _HEAD + "\n" + "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def described() -> str:
    """The document of the application as it is. Connects to nothing."""
    settings = Settings(
        env="dev", database_url="postgresql://nowhere/x", object_store_url="file:///nowhere"
    )
    return render(operations(create_app(settings, background=False)))


def main() -> int:
    DOCUMENT.write_text(described())
    sys.stdout.write(f"{DOCUMENT.name}: {len(RULES)} operations\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
