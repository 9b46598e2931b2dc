"""A small world for the protocol's state machine: two coordinator replicas on one real database,
one controllable clock, sites that remember what they executed, and faults at every handler.

``World`` is synchronous: hypothesis drives it, and it runs the event loop until each call is done.
A fault is put around the next transactions of a replica: the process dies before a commit, or
right after one (the answer is never seen). A replica that died is replaced by a fresh one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, LiteralString

import httpx
from sqlalchemy.ext.asyncio import AsyncSession

from api.app import create_app
from api.config import Settings
from core.federation.plan import RunSpec
from core.privacy import ledger
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent
from core.wire.messages import LEASE_HEADER, AggregateJob
from tests.api.support import Coordinator

Fault = Literal["none", "before-commit", "after-commit"]
DELTA = 1e-5


class Died(BaseException):
    """kill -9: no handler of the program may catch it."""


@dataclass
class Replica:
    """One coordinator process: the application, and the fault that waits for it."""

    coordinator: Coordinator
    lifespan: AbstractAsyncContextManager[Any]
    http: httpx.AsyncClient
    fault: Fault = "none"
    commits_until_fault: int = 0

    def arm(self, fault: Fault, commits: int = 0) -> None:
        self.fault, self.commits_until_fault = fault, commits

    def _is_due(self) -> bool:
        self.commits_until_fault -= 1
        return self.fault != "none" and self.commits_until_fault < 0

    def install(self) -> None:
        """Put the fault's hook around every write transaction of this process, those that are one
        statement among them.
        """
        database = self.coordinator.ctx.database
        write, act = database.write, database.act

        @asynccontextmanager
        async def faulty() -> AsyncIterator[AsyncSession]:
            due: Fault = self.fault if self._is_due() else "none"
            async with write() as session:
                yield session
                if due == "before-commit":
                    raise Died
            if due == "after-commit":
                raise Died

        async def faulty_act(statement: LiteralString, **values: Any) -> list[Any]:
            due: Fault = self.fault if self._is_due() else "none"
            if due == "before-commit":
                raise Died
            rows = await act(statement, **values)
            if due == "after-commit":
                raise Died
            return rows

        object.__setattr__(database, "write", faulty)
        object.__setattr__(database, "act", faulty_act)


class World:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.runner = asyncio.Runner()
        self.tokens: dict[str, str] = {}
        self.clients: dict[str, str] = {}
        self.replicas = [self._born(), self._born()]
        self.turn = itertools.cycle(range(2))
        # (client, run, round, attempt) for which noise was drawn, with the event.
        self.executed: dict[tuple[str, str, int, int], PrivacyEvent] = {}
        self.accepted: dict[tuple[str, str, int], str] = {}

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def _born(self) -> Replica:
        async def born() -> Replica:
            app = create_app(self.settings, background=False)
            lifespan = app.router.lifespan_context(app)
            await lifespan.__aenter__()
            http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api.test")
            replica = Replica(Coordinator(app, http), lifespan, http)
            replica.coordinator.tokens, replica.coordinator.clients = self.tokens, self.clients
            replica.install()
            return replica

        made: Replica = self.run(born())
        return made

    def close(self) -> None:
        for replica in self.replicas:
            self._dies(replica)
        self.runner.close()

    def _dies(self, replica: Replica) -> None:
        async def dies() -> None:
            await replica.http.aclose()
            await replica.lifespan.__aexit__(None, None, None)

        self.run(dies())

    def at_some_replica(
        self, work: Any, fault: Fault = "none", commits: int = 0
    ) -> tuple[bool, Any]:
        """Run ``work(coordinator)`` at the next replica; (did it live to answer, the answer)."""
        index = next(self.turn)
        replica = self.replicas[index]
        replica.arm(fault, commits)
        try:
            return True, self.run(work(replica.coordinator))
        except Died:
            offset = replica.coordinator.ctx.database.clock_offset
            self._dies(replica)
            self.replicas[index] = self._born()
            self.replicas[index].coordinator.ctx.database.clock_offset = offset
            return False, None
        finally:
            self.replicas[index].arm("none")

    def call(self, method: str, path: str, who: str = "admin", **options: Any) -> httpx.Response:
        """One request without a fault."""
        _, response = self.at_some_replica(lambda c: c.call(method, path, who, **options))
        assert response.status_code < 500, response.text
        return response  # type: ignore[no-any-return]

    def sql(self, statement: str) -> list[Any]:
        found: list[Any] = self.run(self.replicas[0].coordinator.sql(statement))
        return found

    def pass_time(self, seconds: float) -> None:
        for replica in self.replicas:
            replica.coordinator.pass_time(seconds)

    def sweep(self, fault: Fault = "none", commits: int = 0) -> None:
        self.at_some_replica(lambda c: c.sweep(), fault, commits)

    # --- the coordinator's worker ---

    def ready_job(self) -> str | None:
        found = self.sql(
            "SELECT j.id FROM jobs j JOIN rounds r ON (r.run_id, r.number) = "
            "(j.run_id, j.round_number) WHERE j.state = 'ready' AND r.state = 'aggregating' LIMIT 1"
        )
        return str(found[0][0]) if found else None

    def claim_job(self, job_id: str) -> AggregateJob | None:
        response = self.call("POST", f"/v1/jobs/{job_id}/claim", "worker")
        assert response.status_code in (200, 409), response.text
        return AggregateJob.model_validate(response.json()) if response.is_success else None

    def complete_job(self, job: AggregateJob, fault: Fault = "none") -> None:
        result = self.replicas[0].coordinator.sum(job)
        lease = {LEASE_HEADER: job.lease_token}
        path = f"/v1/jobs/{job.job_id}/complete"
        lived, response = self.at_some_replica(
            lambda c: c.call("POST", path, "worker", json=result, headers=lease), fault
        )
        if not lived:  # the worker did not see the answer and reports again
            response = self.call("POST", path, "worker", json=result, headers=lease)
        assert response.is_success or response.status_code == 409, response.text

    # --- what must hold whenever nothing is in flight ---

    def check_books(self, sites: tuple[str, ...], budget: float) -> None:
        """Invariants of rows, across replicas, whatever was interrupted before."""
        self._one_commit_for_each_update()
        self._attempts_and_reservations_agree()
        self._every_wait_has_an_end()
        for (client, run_id, number), digest in self.accepted.items():
            found = self.sql(
                f"SELECT digest FROM updates u JOIN clients c ON c.id = u.client_id "
                f"WHERE c.name = '{client}' AND run_id = '{run_id}' AND round_number = {number}"
            )
            assert [row[0] for row in found] == [digest], "an accepted update is lost or replaced"
        for name in sites:
            self._nothing_executed_is_missing(name, budget)

    def _one_commit_for_each_update(self) -> None:
        assert not self.sql(
            "SELECT u.run_id FROM updates u FULL JOIN "
            "(SELECT * FROM ledger_entries WHERE kind = 'commit') l ON "
            "(l.run_id, l.round_number, l.client_id) = "
            "(u.run_id, u.round_number, u.client_id) WHERE u.id IS NULL OR l.id IS NULL"
        )
        # What a round was summed from is what was accepted of it, for ever.
        assert not self.sql(
            "SELECT u.id FROM updates u JOIN rounds r ON (r.run_id, r.number) = "
            "(u.run_id, u.round_number) WHERE r.closed_at IS NOT NULL AND u.created_at > "
            "(SELECT min(j.created_at) FROM jobs j WHERE (j.run_id, j.round_number) = "
            "(r.run_id, r.number))"
        )

    def _attempts_and_reservations_agree(self) -> None:
        assert not self.sql(
            "SELECT w.id FROM work_items w JOIN ledger_entries r ON r.id = w.reservation_id "
            "LEFT JOIN ledger_entries o ON o.reserve_id = r.id "
            "WHERE (w.state IN ('ready', 'leased')) <> (o.id IS NULL) "
            "OR (w.state = 'done') <> (coalesce(o.kind, '') = 'commit')"
        )
        assert not self.sql(
            "SELECT r.id FROM ledger_entries r LEFT JOIN work_items w "
            "ON w.reservation_id = r.id WHERE r.kind = 'reserve' AND w.id IS NULL"
        )
        assert not self.sql(
            "SELECT w.id FROM work_items w JOIN rounds r ON r.run_id = w.run_id "
            "AND r.number = w.round_number WHERE w.state IN ('ready', 'leased') "
            "AND r.state <> 'open'"
        )
        # Who left, was revoked or is in quarantine holds no order.
        assert not self.sql(
            "SELECT w.id FROM work_items w JOIN clients c ON c.id = w.client_id "
            "JOIN run_clients s ON (s.run_id, s.client_id) = (w.run_id, w.client_id) "
            "WHERE w.state IN ('ready', 'leased') AND (c.revoked_at IS NOT NULL "
            "OR s.left_at IS NOT NULL OR s.quarantined_at IS NOT NULL)"
        )

    def _every_wait_has_an_end(self) -> None:
        assert not self.sql(
            "SELECT 1 FROM rounds WHERE state IN ('open', 'closing', 'aggregating', 'keys', "
            "'shares', 'confirming', 'opening') AND deadline IS NULL"
        )
        assert not self.sql(
            "SELECT 1 FROM work_items WHERE state = 'leased' AND lease_expires IS NULL"
        )
        assert not self.sql("SELECT 1 FROM jobs WHERE state = 'leased' AND lease_expires IS NULL")
        assert not self.sql("SELECT 1 FROM runs WHERE state = 'paused' AND pause_ends IS NULL")
        # A run is under way if and only if one of its rounds is.
        assert not self.sql(
            "SELECT r.id FROM runs r WHERE (r.state IN ('running', 'paused')) <> EXISTS (SELECT "
            "FROM rounds o WHERE o.run_id = r.id AND o.state IN "
            "('draft', 'open', 'closing', 'aggregating', 'keys', 'shares', 'confirming', "
            "'opening'))"
        )

    def _nothing_executed_is_missing(self, name: str, budget: float) -> None:
        path = f"/v1/clients/{self.clients[name]}/ledger"
        statement = self.call("GET", path, "auditor").json()
        entries = statement["entries"]
        reserved = {
            (name, e["run_id"], e["round"], e["attempt"]): PrivacyEvent.model_validate(e["event"])
            for e in entries
            if e["kind"] == "reserve"
        }
        mine = {key: event for key, event in self.executed.items() if key[0] == name}
        assert mine.items() <= reserved.items(), "noise was drawn for what the ledger does not hold"
        assert epsilon(mine.values(), DELTA) <= statement["epsilon_total"] <= budget
        pure = [
            ledger.Entry(
                e["id"],
                e["kind"],
                PrivacyEvent.model_validate(e["event"]) if e["event"] else None,
                e["reserve_id"],
            )
            for e in entries
        ]
        assert statement["epsilon_total"] == ledger.epsilon_total(pure, DELTA)

    def executes(self, order: dict[str, Any]) -> None:
        """The site has drawn noise for this order."""
        spec = RunSpec.model_validate(order["spec"])
        key = (order["client"], order["run_id"], order["round_number"], order["attempt"])
        self.executed[key] = spec.event(order["round_number"])
