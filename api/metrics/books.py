"""What the database says, as gauges: read at a scrape, kept for a few seconds; epsilon, which takes
a look at every ledger entry, for a minute.

All replicas read one database and export the same values; take ``max`` over ``instance``, never
the sum.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

import psycopg
import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from api.context import Context
from api.metrics import repository
from api.metrics.repository import Enrolled, Facts
from core.federation.round_facts import RoundState
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent
from core.privacy.premise import premise

log = structlog.get_logger(__name__)
KEPT_S = 5.0
SPENT_KEPT_S = 60.0
_PREMISE = " With secure sums among it, on their premise: see the client's statement."
_SAME = " The same in every replica: take max, not sum."
_STATES = ("ready", "leased")
_QUEUES = ("work", "aggregate", "replay", "synthesis")
_JOBS = ("aggregate", "replay", "synthesis")
_WAITING = ("keys", "shares", "open", "confirming", "opening", "closing", "aggregating")
_Reserved = dict[UUID, Counter[tuple[str, bool]]]


@dataclass(frozen=True)
class Spent:
    """Of a client's account, at the client's delta: neighbours differ by one unit."""

    client: str
    committed: float
    worst: float
    budget: float
    premise: str


@dataclass(frozen=True)
class Snapshot:
    """``facts`` is None: the database could not be read."""

    facts: Facts | None
    spent: tuple[Spent, ...] = ()

    def collect(self) -> Iterator[Metric]:
        readable = float(self.facts is not None)
        yield _gauge("fhv_database_readable", "1 if the database answered.", [((), readable)])
        if self.facts is None:
            return
        yield from _of_rounds(self.facts)
        yield from _of_queues(self.facts)
        yield from _of_webhooks(self.facts)
        names = ("client",)
        for name, about, values in (
            (
                "committed",
                f"Spent for good: committed and lost.{_PREMISE}",
                [s.committed for s in self.spent],
            ),
            (
                "worst",
                f"Committed, and all open reservations.{_PREMISE}",
                [s.worst for s in self.spent],
            ),
            ("budget", "The most that the client allows.", [s.budget for s in self.spent]),
        ):
            rows = [((s.client,), v) for s, v in zip(self.spent, values, strict=True)]
            text = f"Epsilon of a client's account at the client's delta. {about}"
            yield _gauge(f"fhv_client_epsilon_{name}", text, rows, names)


def _gauge(
    name: str,
    about: str,
    rows: Iterable[tuple[tuple[str, ...], float]],
    labels: tuple[str, ...] = (),
) -> Metric:
    shared = "" if name == "fhv_database_readable" else _SAME
    family = GaugeMetricFamily(name, about + shared, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _of_rounds(facts: Facts) -> Iterator[Metric]:
    counts, waits = facts.of("rounds"), facts.of("wait")
    states = [state.value for state in RoundState]
    yield _gauge(
        "fhv_rounds",
        "Rounds of all runs.",
        [((state,), counts.get(("", state), 0.0)) for state in states],
        ("state",),
    )
    yield _gauge(
        "fhv_round_wait_seconds",
        "How long the round waits that has been in this state longest; since it was opened or, "
        "later, closed. 0: there is none.",
        [((state,), waits.get(("", state), 0.0)) for state in _WAITING],
        ("state",),
    )
    yield _gauge(
        "fhv_round_overdue_seconds",
        "How long the deadline of an open round has passed; 0: of none.",
        [((), max(0.0, facts.one("overdue")))],
    )


def _of_queues(facts: Facts) -> Iterator[Metric]:
    queues, failed = facts.of("queue"), facts.of("failed")
    yield _gauge(
        "fhv_queue",
        "Orders of sites (work) and jobs of workers that wait for somebody (ready) or are under "
        "lease.",
        [((q, state), queues.get((q, state), 0.0)) for q in _QUEUES for state in _STATES],
        ("queue", "state"),
    )
    yield _gauge(
        "fhv_jobs_failed",
        "Jobs of workers that failed for good.",
        [((kind,), failed.get((kind, ""), 0.0)) for kind in _JOBS],
        ("queue",),
    )
    yield _gauge(
        "fhv_outbox_unsent",
        "Celery messages that were not sent yet.",
        [((), facts.one("outbox"))],
    )
    yield _gauge(
        "fhv_outbox_oldest_seconds",
        "Age of the oldest of them; 0: there is none.",
        [((), facts.one("outbox-age"))],
    )
    yield _gauge(
        "fhv_erasures_pending",
        "Bytes of updates that are to be deleted and still exist.",
        [((), facts.one("erasures"))],
    )


def _of_webhooks(facts: Facts) -> Iterator[Metric]:
    deliveries = facts.of("deliveries")
    yield _gauge(
        "fhv_webhook_deliveries",
        "Events that are to be delivered (pending), or were given up and are not forgotten (dead).",
        [((state,), deliveries.get(("", state), 0.0)) for state in ("pending", "dead")],
        ("state",),
    )
    yield _gauge(
        "fhv_webhooks_disabled",
        "Webhooks to which nothing is sent.",
        [((), facts.one("webhooks-disabled"))],
    )


def spent(clients: Iterable[Enrolled], reserved: _Reserved) -> tuple[Spent, ...]:
    """Epsilon of thousands of equal multisets is computed once: ``epsilon`` keeps what it knows."""

    def of(client: Enrolled, *standings: bool) -> float:
        events = []
        for (event, settled), count in reserved.get(client.account_id, Counter()).items():
            if settled in standings:
                events += [PrivacyEvent.model_validate_json(event)] * count
        return epsilon(events, client.delta)

    def rests_on(client: Enrolled) -> str:
        kinds = {event for event, _ in reserved.get(client.account_id, Counter())}
        return premise(PrivacyEvent.model_validate_json(kind).collude for kind in kinds)

    return tuple(
        Spent(one.name, of(one, True), of(one, True, False), one.epsilon, rests_on(one))
        for one in clients
    )


class Books:
    """The last snapshot; scrapes that come meanwhile wait for one reading."""

    def __init__(self, kept_s: float = KEPT_S, spent_kept_s: float = SPENT_KEPT_S) -> None:
        self._kept_s, self._spent_kept_s = kept_s, spent_kept_s
        self._reading = asyncio.Lock()
        self._until = self._spent_until = 0.0
        self._last = Snapshot(None)
        self._spent: tuple[Spent, ...] = ()

    async def snapshot(self, ctx: Context) -> Snapshot:
        async with self._reading:
            if time.monotonic() >= self._until:
                self._last = await self._read(ctx)
                self._until = time.monotonic() + self._kept_s
            return self._last

    async def _read(self, ctx: Context) -> Snapshot:
        try:
            facts = await repository.facts(ctx.database)
            if time.monotonic() >= self._spent_until:
                clients = await repository.clients(ctx.database)
                reserved = await repository.reserved(ctx.database)
                self._spent = await asyncio.to_thread(spent, clients, reserved)
                self._spent_until = time.monotonic() + self._spent_kept_s
        except (psycopg.Error, OSError) as error:
            log.warning("metrics_without_database", error=type(error).__name__)
            return Snapshot(None)
        return Snapshot(facts, self._spent)
