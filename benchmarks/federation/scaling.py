"""What a round costs the coordinator's side, against the number of clients and against P.

Cost: CPU seconds of coordinator, its worker and Postgres for a training round, from one published
model to the next. Clients are simulated, and what they cost is no part of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from benchmarks.federation import plans, usage
from benchmarks.federation.crowd import Member, begin, bodies
from benchmarks.federation.http import Http
from benchmarks.federation.numbers import Line, line
from benchmarks.federation.room import Room

CLIENTS = (10, 50, 100, 200, 300, 400)
SIZES = ("33k", "125k", "250k", "500k", "1250k")
FEW = 20  # clients of the series over P
ROUNDS = 2
_SENDERS = 4


@dataclass(frozen=True)
class Series:
    """``x`` against ``cost`` in CPU seconds a round, and the straight line through them."""

    over: str
    x: tuple[float, ...]
    cost: tuple[float, ...]
    line: Line


def over_clients(here: Room, members: Sequence[Member], step: Callable[[], None]) -> Series:
    costs = [_cost(here, tuple(members[:count]), "33k", step) for count in CLIENTS]
    return _series("clients", CLIENTS, costs)


def over_parameters(here: Room, members: Sequence[Member], step: Callable[[], None]) -> Series:
    costs = [_cost(here, tuple(members[:FEW]), size, step) for size in SIZES]
    return _series("parameters", [plans.parameters(size) for size in SIZES], costs)


def _series(over: str, x: Sequence[float], cost: Sequence[float]) -> Series:
    return Series(over, tuple(x), tuple(cost), line(x, cost))


def _ended(here: Room, run_id: str) -> None:
    while here.operator.run(run_id)["state"] == "running":
        time.sleep(0.05)


def _cost(here: Room, members: tuple[Member, ...], size: str, step: Callable[[], None]) -> float:
    count = len(members)
    plan = plans.plan(f"cost-{count}-{size}", size, rounds=ROUNDS, quorum=count)
    pids = (here.api, here.worker, here.postgres)

    def used() -> float:
        return sum(map(usage.cpu_seconds_of_tree, pids))

    async def rounds() -> list[float]:
        marks: list[float] = []
        async with Http(here.stack.port) as http:
            crowd, run_id = await begin(http, here.operator, plan, members)
            orders = await crowd.orders()
            for number in range(ROUNDS + 1):
                await crowd.send(orders, bodies(orders[0], count), _SENDERS)
                if number < ROUNDS:  # there are new orders once this round is published
                    orders = await crowd.orders()
                else:
                    await asyncio.to_thread(_ended, here, run_id)
                marks.append(used())
        return [after - before for before, after in pairwise(marks)]

    cost = median(asyncio.run(rounds()))
    step()
    return cost
