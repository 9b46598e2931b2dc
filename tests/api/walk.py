"""A random walk of one join through the protocol (``test_protocol_machine`` has the whole of it).

Sites poll, send, resend, fail, fall silent; workers sum or crash; time jumps; steps of the driver
die in the middle. The invariants are checked in the database itself.
"""

from __future__ import annotations

import random
from typing import Any

import httpx
import pytest

from api.rounds import driver
from api.sweeper import Sweeper
from core.privacy import ledger
from core.privacy.events import PrivacyEvent
from core.wire.messages import LEASE_HEADER, AggregateJob
from tests.api.support import Coordinator

SITES = ("site-a", "site-b", "site-c")
BUDGET = 6.0  # a plan of epsilon 4 and some lost attempts, not any number of them


class Dies(BaseException):
    """The process is gone: no handler of the program may catch it."""


class Walk:
    def __init__(
        self, coordinator: Coordinator, chance: random.Random, patch: pytest.MonkeyPatch
    ) -> None:
        self.coordinator = coordinator
        self.chance = chance
        self.patch = patch
        self.orders: list[dict[str, Any]] = []
        self.accepted: dict[tuple[str, int], str] = {}

    async def poll(self) -> None:
        order = await self.coordinator.poll(self.chance.choice(SITES))
        if order is not None:
            self.orders.append(order)

    async def send(self) -> None:
        """A new update or an old one again, under whatever lease."""
        if not self.orders:
            return
        order = self.chance.choice(self.orders[-6:])
        response = await self.coordinator.send(order)
        assert response.status_code in (200, 201, 409), response.text
        if response.is_success:
            self._remember(order, response)

    def _remember(self, order: dict[str, Any], response: httpx.Response) -> None:
        """What was accepted once is what every later answer says."""
        key = (order["client"], order["round_number"])
        first = self.accepted.setdefault(key, response.json()["digest"])
        assert response.json()["digest"] == first

    async def act_on_lease(self, action: str) -> None:
        if not self.orders:
            return
        order = self.chance.choice(self.orders[-4:])
        response = await self.coordinator.call(
            "POST",
            f"/v1/work/{order['work_id']}/{action}",
            order["client"],
            json={"code": "site-not-ready"},
            headers={LEASE_HEADER: order["lease_token"]},
        )
        assert response.status_code in (200, 204, 409), response.text

    async def work_for_the_coordinator(self, *, silent: float = 0.3) -> None:
        """Claim and complete a job, or (with chance ``silent``) claim it and fall silent."""
        found = await self.coordinator.sql("SELECT id FROM jobs WHERE state = 'ready'")
        if not found:
            return
        path = f"/v1/jobs/{found[0][0]}"
        claimed = await self.coordinator.ok("POST", f"{path}/claim", "worker")
        if self.chance.random() < silent:
            return
        result = self.coordinator.sum(AggregateJob.model_validate(claimed))
        lease = {LEASE_HEADER: claimed["lease_token"]}
        for _ in range(2):
            await self.coordinator.ok(
                "POST", f"{path}/complete", "worker", json=result, headers=lease
            )

    async def die_in_a_step(self) -> None:
        """kill -9 of the driver after a random effect; then a new process."""
        real, left = driver._carry_out, self.chance.randrange(4)

        async def dying(here: driver.Step, effect: Any) -> None:
            nonlocal left
            await real(here, effect)
            left -= 1
            if left < 0:
                raise Dies

        with self.patch.context() as patch:
            patch.setattr(driver, "_carry_out", dying)
            try:
                await self.coordinator.sweep()
            except Dies:
                self.coordinator.sweeper = Sweeper(self.coordinator.ctx)

    async def one(self) -> None:
        move = self.chance.choices(
            ("poll", "send", "renew", "fail", "sweep", "time", "job", "die"),
            (8, 6, 1, 1, 6, 2, 4, 2),
        )[0]
        if move == "poll":
            await self.poll()
        elif move == "send":
            await self.send()
        elif move in ("renew", "fail"):
            await self.act_on_lease(move)
        elif move == "sweep":
            await self.coordinator.sweep()
        elif move == "time":
            self.coordinator.pass_time(self.chance.choice((1.0, 6.0, 11.0)))
        elif move == "job":
            await self.work_for_the_coordinator()
        else:
            await self.die_in_a_step()

    async def check(self) -> None:
        sql = self.coordinator.sql
        # One update a client and round, and exactly one commit for each.
        assert (
            await sql(
                "SELECT u.run_id FROM updates u FULL JOIN "
                "(SELECT * FROM ledger_entries WHERE kind = 'commit') l ON "
                "(l.run_id, l.round_number, l.client_id) = "
                "(u.run_id, u.round_number, u.client_id) WHERE u.id IS NULL OR l.id IS NULL"
            )
            == []
        )
        # An attempt is open if and only if its reservation is.
        assert (
            await sql(
                "SELECT w.id FROM work_items w JOIN ledger_entries r ON r.id = w.reservation_id "
                "LEFT JOIN ledger_entries o ON o.reserve_id = r.id "
                "WHERE (w.state IN ('ready', 'leased')) <> (o.id IS NULL) "
                "OR (w.state = 'done') <> (coalesce(o.kind, '') = 'commit')"
            )
            == []
        )
        # Every reservation belongs to an attempt; open attempts only in open rounds of live runs.
        assert (
            await sql(
                "SELECT r.id FROM ledger_entries r LEFT JOIN work_items w "
                "ON w.reservation_id = r.id WHERE r.kind = 'reserve' AND w.id IS NULL"
            )
            == []
        )
        assert (
            await sql(
                "SELECT w.id FROM work_items w JOIN rounds r ON r.run_id = w.run_id "
                "AND r.number = w.round_number WHERE w.state IN ('ready', 'leased') "
                "AND r.state <> 'open'"
            )
            == []
        )
        for name in SITES:
            statement = await self.coordinator.ledger(name)
            assert statement["epsilon_total"] <= BUDGET
            entries = [
                ledger.Entry(
                    entry["id"],
                    entry["kind"],
                    PrivacyEvent.model_validate(entry["event"]) if entry["event"] else None,
                    entry["reserve_id"],
                )
                for entry in statement["entries"]
            ]
            assert statement["epsilon_total"] == ledger.epsilon_total(entries, 1e-5)

    async def everybody_behaves(self, run: dict[str, Any]) -> dict[str, Any]:
        for _ in range(40):
            shown = await self.coordinator.ok("GET", f"/v1/runs/{run['id']}")
            if shown["state"] != "running":
                return dict(shown)
            for name in SITES:
                order = await self.coordinator.poll(name)
                if order is not None:
                    await self.coordinator.send(order)
            await self.coordinator.sweep()
            await self.work_for_the_coordinator(silent=0.0)
            await self.coordinator.sweep()
            self.coordinator.pass_time(13)
        raise AssertionError(f"the run hangs: {await self.coordinator.round(run, 0)}")
