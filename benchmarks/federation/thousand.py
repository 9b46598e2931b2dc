"""One training round of many simulated clients: memory, and how long polls take meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.federation import plans, usage
from benchmarks.federation.crowd import Crowd, Member, begin, bodies
from benchmarks.federation.http import Http, expect
from benchmarks.federation.numbers import percentile
from benchmarks.federation.polling import Polled, epoch
from benchmarks.federation.room import WORKER, Room
from core.processes import wait_for
from core.wire.jobs import QUEUE_COORDINATOR

RATE = 200.0
_SENDERS, _IDLE_S = 4, 15.0
_STARTED = "worker_started"


@dataclass(frozen=True)
class Round:
    """Of one training round. p99 in milliseconds; ``worker_mib`` is the peak of a worker process
    that has done nothing but this round's sum; ``api_mib`` the coordinator's since its start.
    """

    clients: int
    update_bytes: int
    updates_per_s: float
    handing_s: float  # from publishing the sketch until everybody had an order
    summing_s: float  # from closing to publishing
    outside_ms: float
    inside_ms: float
    polls: int
    polls_inside: int
    poll_cpu_ms: float  # of the coordinator, for a poll that finds nothing
    worker_mib: float
    api_mib: float


def measure(here: Room, members: tuple[Member, ...], step: Callable[[], None]) -> Round:
    """A run of a sketch and one training round; polls go on at ``RATE`` except while updates are
    sent, whose rate is a figure of its own.
    """
    count = len(members)
    plan = plans.plan(f"crowd-{count}", "33k", rounds=1, quorum=count)
    admin = here.stack.token("admin")

    async def all_of_it() -> Round:
        async with Http(here.stack.port) as http:
            crowd, run_id = await begin(http, here.operator, plan, members)
            return await _Play(here, crowd, run_id, admin, step).run()

    return asyncio.run(all_of_it())


@dataclass
class _Play:
    here: Room
    crowd: Crowd
    run_id: str
    admin: str
    step: Callable[[], None]

    async def run(self) -> Round:
        crowd, count = self.crowd, len(self.crowd.members)
        sketches = await crowd.orders()
        await crowd.send(sketches, bodies(sketches[0], count), _SENDERS)
        self.step()
        polled = Polled()

        async def handed_out() -> bool:
            return len(polled.orders) == count

        await polled.go_on(crowd, RATE, handed_out)
        handed = max(poll.done for poll in polled.polls)
        self.step()
        orders = [polled.orders[member.name] for member in crowd.members]
        made = bodies(orders[0], count)
        began = time.perf_counter()
        rest = Crowd(crowd.http, crowd.members[:-1])
        await rest.send(orders[:-1], made[:-1], _SENDERS)
        seconds = time.perf_counter() - began
        self.step()
        idle_until = time.perf_counter() + _IDLE_S

        async def rested() -> bool:
            return time.perf_counter() >= idle_until

        used, sent = usage.cpu_seconds(self.here.api), len(polled.polls)
        await polled.go_on(crowd, RATE, rested)
        used = usage.cpu_seconds(self.here.api) - used
        sent = len(polled.polls) - sent
        self.step()
        worker = await asyncio.to_thread(self._fresh_worker)

        async def published() -> bool:
            return (await self._round(1))["state"] == "published"

        await crowd.put(crowd.members[-1], orders[-1], made[-1])
        await polled.go_on(crowd, RATE, published)
        self.step()
        first, second = await self._round(0), await self._round(1)
        busy = [(epoch(r["closed_at"]), epoch(r["published_at"])) for r in (first, second)]
        outside, inside = polled.split(busy)
        return Round(
            clients=count,
            update_bytes=len(made[0]),
            updates_per_s=len(orders[:-1]) / seconds,
            handing_s=handed - busy[0][1],
            summing_s=busy[1][1] - busy[1][0],
            outside_ms=percentile(outside, 0.99),
            inside_ms=percentile(inside, 0.99),
            polls=len(outside),
            polls_inside=len(inside),
            poll_cpu_ms=1e3 * used / sent,
            worker_mib=usage.peak_mib(worker),
            api_mib=usage.peak_mib(self.here.api),
        )

    def _fresh_worker(self) -> int:
        """A worker whose memory holds nothing of an earlier sum."""
        stack, log = self.here.stack, self.here.folder / "logs" / f"{WORKER}.log"
        token, before = stack.token("worker"), log.read_text().count(_STARTED)
        stack.processes.kill(WORKER)
        stack.start_worker(QUEUE_COORDINATOR, token)
        wait_for(
            "a fresh worker", lambda: log.read_text().count(_STARTED) > before or None,
            seconds=60.0, check=stack.processes.check,
        )  # fmt: skip
        return self.here.worker

    async def _round(self, number: int) -> dict[str, str]:
        path = f"/v1/runs/{self.run_id}/rounds/{number}"
        answer = expect(await self.crowd.http.request("GET", path, self.admin), 200)
        return dict(json.loads(answer.body))
