"""Update ingest against the bare route, in turns, with the same senders and bodies of one size."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from api import embedded
from benchmarks.demo.stack import bare_environment
from benchmarks.federation import plans, usage
from benchmarks.federation.crowd import Crowd, Member, begin, bodies, each
from benchmarks.federation.http import Http, expect
from benchmarks.federation.room import Room
from core.processes import wait_for

SENDERS = 4
BARE = "bare-route"


@dataclass(frozen=True)
class Ingest:
    """Updates a second of each turn, ours and of the bare route; ``size`` in bytes; seconds of CPU
    that the two server processes took for one update.
    """

    size: int
    ours: tuple[float, ...]
    bare: tuple[float, ...]
    ours_cpu: float
    bare_cpu: float

    @property
    def ratio(self) -> float:
        return median(self.ours) / median(self.bare)


def start_bare(here: Room) -> int:
    """The bare route's process; its port."""
    port = embedded.free_port()
    environment = {
        **bare_environment(),
        "BENCH_DATABASE_URL": here.stack.database_url,
        "BENCH_FOLDER": str(here.folder / "bare"),
    }
    command = [sys.executable, "-m", "benchmarks.federation.bare", str(port)]
    child = here.stack.processes.start(BARE, command, environment)

    async def answers() -> bool:
        try:
            async with Http(port) as http:
                expect(await http.request("GET", "/openapi.json"), 200)
        except OSError:
            return False
        return True

    wait_for("the bare route", lambda: asyncio.run(answers()) or None, seconds=30.0,
             check=here.stack.processes.check, state=child.tail)  # fmt: skip
    return port


def measure(
    here: Room,
    members: tuple[Member, ...],
    bare_port: int,
    size: str,
    turns: int,
    step: Callable[[], None],
) -> Ingest:
    """``turns`` training rounds in which every member posts; after each, the bare route."""
    plan = plans.plan(f"ingest-{size}", size, rounds=turns, quorum=len(members))

    async def both() -> Ingest:
        async with Http(here.stack.port) as http, Http(bare_port) as plain:
            crowd, _ = await begin(http, here.operator, plan, members)
            return await _turns(crowd, plain, turns, step, here.api, here.pid(BARE))

    return asyncio.run(both())


async def _turns(
    crowd: Crowd, plain: Http, turns: int, step: Callable[[], None], api: int, other: int
) -> Ingest:
    count = len(crowd.members)
    ours, bare, size = [], [], 0
    cpu = [0.0, 0.0]
    for turn in range(turns + 1):
        orders = await crowd.orders()
        made = bodies(orders[0], count)
        used = usage.cpu_seconds(api)
        began = time.perf_counter()
        await crowd.send(orders, made, SENDERS)
        seconds = time.perf_counter() - began
        if turn == 0:  # the sketch: everything has been used once
            await _plain(plain, made)
            continue
        size = len(made[0])
        ours.append(count / seconds)
        cpu[0] += usage.cpu_seconds(api) - used
        if turn < turns:  # the sum of this round is no part of either
            await Crowd(crowd.http, crowd.members[:1]).orders()
        used = usage.cpu_seconds(other)
        bare.append(count / await _plain(plain, made))
        cpu[1] += usage.cpu_seconds(other) - used
        step()
    total = count * turns
    return Ingest(size, tuple(ours), tuple(bare), cpu[0] / total, cpu[1] / total)


async def _plain(http: Http, made: Sequence[bytes]) -> float:
    """Seconds of the bare route."""

    async def one(body: bytes) -> None:
        expect(await http.request("PUT", f"/{uuid.uuid4()}", body=body), 201)

    began = time.perf_counter()
    await each(made, one, SENDERS)
    return time.perf_counter() - began
