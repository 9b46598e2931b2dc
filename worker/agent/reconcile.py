"""Asking the coordinator what it has booked: to verify the site's ledger, and to complete a
restored one.

Both read the coordinator's side first. A site commits before it sends, so what the coordinator
has committed by then is committed here by the time that this side is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from worker import logs
from worker.agent.records import AttemptKey, OurAttempt
from worker.agent.restoration import Charge
from worker.agent.site import Site
from worker.agent.theirs import TheirLedger, read_ledger
from worker.agent.verify import Comparison, Finding, compare, lasting
from worker.answers import JsonObject
from worker.client import CoordinatorClient
from worker.config import ClientConfig, SiteConfig
from worker.errors import NotReconciled, UnexpectedAnswer

_log = logs.get("worker.reconcile")

# What completing the ledger mends, what does not matter to it, and what follows from the others.
_NO_OBSTACLE = frozenset({"elsewhere", "their-epsilon", "too-little-there"})


class _RunDigest(BaseModel):
    model_config = ConfigDict(extra="ignore")

    run_id: str
    spec_digest: str


class _Statement(BaseModel):
    """What is needed of ``GET /v1/clients/{id}/statement``."""

    model_config = ConfigDict(extra="ignore")

    clients: tuple[str, ...]
    runs: tuple[_RunDigest, ...]


def verify(
    site: Site,
    coordinator: CoordinatorClient,
    client_id: str,
    config: ClientConfig,
    site_config: SiteConfig,
) -> Comparison:
    """This site's ledger of the client's population against the coordinator's."""
    first = _compared(site, coordinator, client_id, config, site_config)
    if not first.discrepancies:
        return first
    return lasting(first, _compared(site, coordinator, client_id, config, site_config))


def reconcile(
    site: Site,
    coordinator: CoordinatorClient,
    client_id: str,
    config: ClientConfig,
    site_config: SiteConfig,
) -> int | None:
    """Complete a restored ledger for the client's population; how many attempts were charged.

    None if there is nothing to complete. Raises ``NotReconciled`` if the coordinator's ledger
    cannot be what came after the backup, and a ``ClientError`` if it cannot be had.
    """
    if not site.ledger.unreconciled(config.population):
        return None
    theirs = read_ledger(coordinator.client_ledger(client_id))
    statement = _statement(coordinator.client_statement(client_id))
    siblings = _siblings(config, site_config)
    _require_one_account(config, siblings, statement)
    ours = site.ledger.standings(config.population)
    found = compare(ours, theirs, unit=config.unit, delta=config.delta, clients=siblings)
    missing = _missing(ours, theirs, {run.run_id: run.spec_digest for run in statement.runs})
    _require_believable(found, {charge.key for charge in missing})
    booked = site.ledger.complete(config.population, config.unit, missing)
    _log.warning("restored_ledger_completed", population=config.population, attempts=booked)
    return booked


# --- inside ---


def _compared(
    site: Site,
    coordinator: CoordinatorClient,
    client_id: str,
    config: ClientConfig,
    site_config: SiteConfig,
) -> Comparison:
    theirs = read_ledger(coordinator.client_ledger(client_id))
    return compare(
        site.ledger.standings(config.population),
        theirs,
        unit=config.unit,
        delta=config.delta,
        clients=_siblings(config, site_config),
    )


def _siblings(config: ClientConfig, site_config: SiteConfig) -> set[str]:
    return {each.name for each in site_config.client if each.population == config.population}


def _statement(raw: JsonObject) -> _Statement:
    try:
        return _Statement.model_validate(raw)
    except ValidationError:
        raise UnexpectedAnswer(
            "the coordinator's statement of this account cannot be read.",
            mend="Compare the versions of site and coordinator.",
        ) from None


def _require_one_account(config: ClientConfig, siblings: set[str], statement: _Statement) -> None:
    """One ledger must speak for all clients of the population, or part of it stays unknown."""
    apart = sorted(siblings - set(statement.clients))
    if apart:
        raise NotReconciled(
            f"{', '.join(apart)} of population {config.population!r} is not enrolled over the "
            f"account of {config.name!r}: its ledger does not say what that client has spent.",
            field="client.population",
            mend="Enrol all clients of a population with one site name, or leave the client out of "
            "this configuration until it is enrolled.",
        )


def _missing(
    ours: Sequence[OurAttempt], theirs: TheirLedger, digests: Mapping[str, str]
) -> list[Charge]:
    """What to charge: attempts that only the coordinator knows, and those that a process left
    open which died with the machine that the backup was made on.
    """
    here = {attempt.key: attempt for attempt in ours}
    known = {attempt.key.run_id: attempt.spec_digest for attempt in ours}
    missing = [
        Charge(attempt.key, attempt.event, attempt.spec_digest)
        for attempt in ours
        if attempt.standing == "open" and attempt.key in theirs.attempts
    ]
    for key, attempt in theirs.attempts.items():
        if key in here:
            continue
        digest = known.get(key.run_id) or digests.get(key.run_id)
        if digest is None:
            raise UnexpectedAnswer(
                f"the coordinator's statement does not name run {key.run_id} of its ledger.",
                mend="Try again.",
            )
        missing.append(Charge(key, attempt.event, digest))
    return missing


def _require_believable(found: Comparison, mended: set[AttemptKey]) -> None:
    """A ledger that contradicts the backup cannot say what came after it."""
    against: list[Finding] = [
        finding
        for finding in found.discrepancies
        if finding.kind not in _NO_OBSTACLE
        and not (finding.kind == "never-executed" and finding.key in mended)
    ]
    if not against:
        return
    first = against[0]
    where = "" if first.key is None else f" ({first.key.run_id}, round {first.key.round_number})"
    raise NotReconciled(
        f"the coordinator's ledger contradicts the restored one in {len(against)} places, the "
        f"first: {first.kind}{where}: {first.says}.",
        mend=first.mend,
    )
