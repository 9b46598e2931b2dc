"""Polls at a fixed rate, whatever the answers take: an open loop, which hides no delay."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from benchmarks.federation.crowd import Crowd, Member, Order

_LONGEST_S = 120.0
_NO_MEMBER_S = 0.005


@dataclass(frozen=True)
class Poll:
    """When it was due and when its answer was there, in seconds since the epoch."""

    due: float
    done: float

    @property
    def ms(self) -> float:
        return 1e3 * (self.done - self.due)


@dataclass
class Polled:
    """All polls of a run, and the orders that some of them brought."""

    polls: list[Poll] = field(default_factory=list)
    orders: dict[str, Order] = field(default_factory=dict)

    def split(self, busy: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
        """Milliseconds of the polls that met no busy interval, and of those that did."""
        outside: list[float] = []
        inside: list[float] = []
        for poll in self.polls:
            met = any(poll.due < end and start < poll.done for start, end in busy)
            (inside if met else outside).append(poll.ms)
        return outside, inside

    async def go_on(
        self, crowd: Crowd, rate: float, end: Callable[[], Awaitable[bool]], look_s: float = 0.25
    ) -> None:
        """Members in turn, ``rate`` polls a second, until ``end`` says so.

        As agents do, a member has one poll under way at a time and none while it holds an order
        that this phase brought. A poll that has to wait for a free member waits from when it was
        due.
        """
        free = deque(crowd.members)
        began, wall = time.perf_counter(), time.time()
        ended = asyncio.create_task(_until(end, look_s))
        sent = 0

        async def one(member: Member, due: float) -> None:
            order = await crowd.poll(member)
            self.polls.append(Poll(wall - began + due, wall - began + time.perf_counter()))
            if order is None:
                free.append(member)
            else:
                self.orders[member.name] = order

        async with asyncio.TaskGroup() as group:
            while not ended.done():
                due = began + sent / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if not free:
                    await asyncio.sleep(_NO_MEMBER_S)
                    continue
                group.create_task(one(free.popleft(), due))
                sent += 1
        await ended


async def _until(end: Callable[[], Awaitable[bool]], look_s: float) -> None:
    async with asyncio.timeout(_LONGEST_S):
        while not await end():  # noqa: ASYNC110 (it is another process that changes)
            await asyncio.sleep(look_s)


def epoch(text: str) -> float:
    """Seconds since the epoch of a time as the coordinator writes it."""
    return datetime.fromisoformat(text).astimezone(UTC).timestamp()
