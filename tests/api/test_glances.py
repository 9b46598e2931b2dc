"""Reads outside transactions, connections that died while idle, and the order of an update's
locks.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import psycopg
import pytest

from tests.api.support import Coordinator, problem

_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


async def _cut_all(coordinator: Coordinator) -> None:
    """What a restart of the server does to every connection."""
    async with await coordinator.ctx.database.connect_alone() as connection:
        cut = await (await connection.execute(_OTHERS)).fetchall()
    assert cut


async def test_a_glance_sees_what_was_committed_and_cannot_write(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    database = coordinator.ctx.database
    assert await database.glance("SELECT name FROM clients") == [("site-a",)]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        await database.glance("UPDATE clients SET budget_epsilon = 1 RETURNING 1")
    assert await database.glance("SELECT %(a)s::int + 1", a=1) == [(2,)]


async def test_requests_go_on_after_the_server_has_cut_every_idle_connection(
    coordinator: Coordinator,
) -> None:
    """Glances and pooled transactions both; without a single failed request."""
    await coordinator.enrol("site-a")
    for _ in range(2):
        await asyncio.gather(*(coordinator.ok("GET", "/v1/clients") for _ in range(6)))
        await _cut_all(coordinator)
        await asyncio.sleep(0.2)
        await asyncio.gather(*(coordinator.ok("GET", "/v1/clients") for _ in range(6)))
        await coordinator.enrol(f"site-{_}")


async def test_a_cancelled_glance_leaves_no_answer_to_the_next_one(
    coordinator: Coordinator,
) -> None:
    database = coordinator.ctx.database
    for _ in range(6):  # more than there are connections
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await database.glance("SELECT 'old' FROM pg_sleep(30)")
    assert await database.glance("SELECT 'new'") == [("new",)]


async def test_a_crowd_of_waiters_looks_less_often_each(coordinator: Coordinator) -> None:
    hub = coordinator.ctx.hub
    assert hub.pace(1.0) == 1.0
    with ExitStack() as stack:
        for number in range(1000):
            stack.enter_context(hub.subscribe(f"work:{number}"))
        assert hub.pace(1.0) == 10.0
        with hub.subscribe("work:7") as bell:
            hub.wake("work:7")
            assert bell.is_set()
    assert hub.pace(1.0) == 1.0


async def test_an_update_locks_its_round_before_its_work(coordinator: Coordinator) -> None:
    """The order of the sweeper. The other way round the two could wait for each other."""
    await coordinator.enrol("site-a", "site-b")
    await coordinator.run("site-a", "site-b")
    order = await coordinator.poll("site-a")
    assert order is not None
    (work,) = await coordinator.managed_work("site-a")
    database = coordinator.ctx.database
    async with await database.connect_alone() as sweeper, sweeper.transaction():
        await sweeper.execute("SELECT 1 FROM rounds FOR NO KEY UPDATE")
        sending = asyncio.create_task(coordinator.send(order))
        await asyncio.sleep(0.5)
        assert not sending.done()
        # Free: the update has not got to its work yet. (NOWAIT raises if it had.)
        await sweeper.execute(
            "SELECT 1 FROM work_items WHERE id = %s FOR NO KEY UPDATE NOWAIT", (work.id,)
        )
        await sweeper.execute("UPDATE rounds SET state = 'closing'")
    # What it sees is what the other one has left, not what was there when it began.
    problem(await sending, 409, "round-closed")
    assert await coordinator.sql("SELECT 1 FROM updates") == []
    assert await coordinator.kinds("site-a") == ["reserve"]


async def test_a_single_statement_that_fails_leaves_nothing_and_its_connection_goes_on(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol("site-a")
    database = coordinator.ctx.database
    with pytest.raises(psycopg.errors.DivisionByZero):
        await database.act(
            "WITH a AS (UPDATE clients SET budget_epsilon = 7 RETURNING 0 AS zero) "
            "SELECT 1 / zero FROM a"
        )
    assert await database.glance("SELECT 1 FROM clients WHERE budget_epsilon = 7") == []
    raised = "UPDATE clients SET budget_epsilon = budget_epsilon + 1 RETURNING pg_backend_pid()"
    assert len({(await database.act(raised))[0] for _ in range(3)}) == 1
