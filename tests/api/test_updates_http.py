"""Updates: what is refused, what is idempotent, and that acceptance is one transaction."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import numpy as np
import pytest

from core.federation.plan import RunSpec
from core.federation.updates import TENSOR, expectation
from core.storage import sha256_of
from core.wire import tensors
from tests.api.support import Coordinator, problem, update_body


@pytest.fixture
async def order(coordinator: Coordinator) -> dict:
    await coordinator.enrol("site-a", "site-b")
    await coordinator.run("site-a", "site-b")
    order = await coordinator.poll("site-a")
    assert order is not None
    return order


def _spec(order: dict) -> RunSpec:
    return RunSpec.model_validate(order["spec"])


async def _untouched(coordinator: Coordinator) -> None:
    """A refused update changes nothing: no row, the lease goes on, the reservation is open."""
    assert await coordinator.sql("SELECT 1 FROM updates") == []
    assert await coordinator.kinds("site-a") == ["reserve"]
    (work,) = await coordinator.managed_work("site-a")
    assert work.state == "leased"


async def test_the_same_bytes_get_the_same_receipt_also_after_the_round_closed(
    coordinator: Coordinator, order: dict
) -> None:
    update_id = uuid4()
    first = await coordinator.send(order, update_id=update_id)
    assert first.status_code == 201
    again = await coordinator.send(order, update_id=update_id)
    assert (again.status_code, again.json()) == (200, first.json())
    other_id = await coordinator.send(order)
    assert (other_id.status_code, other_id.json()) == (200, first.json())
    await coordinator.work("site-b")
    await coordinator.aggregate()
    late = await coordinator.send(order, update_id=update_id)
    assert (late.status_code, late.json()) == (200, first.json())
    assert await coordinator.kinds("site-a") == ["reserve", "commit", "reserve"]


async def test_another_body_is_a_conflict(coordinator: Coordinator, order: dict) -> None:
    update_id = uuid4()
    await coordinator.send(order, update_id=update_id)
    other = update_body(_spec(order), 0, seed=99)
    for used in (update_id, uuid4()):
        refused = await coordinator.send(order, other, update_id=used)
        problem(refused, 409, "update-conflict")
    assert len(await coordinator.sql("SELECT 1 FROM updates")) == 1


async def test_an_update_id_cannot_serve_two_rounds(coordinator: Coordinator, order: dict) -> None:
    update_id = uuid4()
    await coordinator.send(order, update_id=update_id)
    await coordinator.work("site-b")
    await coordinator.aggregate()
    following = await coordinator.poll("site-a")
    assert following is not None
    problem(await coordinator.send(following, update_id=update_id), 409, "update-conflict")


async def test_identical_requests_at_once_count_once(coordinator: Coordinator, order: dict) -> None:
    answers = await asyncio.gather(*(coordinator.send(order) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert len({answer.text for answer in answers}) == 1
    assert await coordinator.kinds("site-a") == ["reserve", "commit"]


def _vector(spec: RunSpec, **change: object) -> bytes:
    expected = expectation(spec, 0)
    vector = np.random.default_rng(1).normal(0, expected.noise_std, expected.length)
    if change.get("nan"):
        vector[3] = np.nan
    if change.get("quiet"):
        vector *= 0.5
    if change.get("huge"):
        vector[0] = 1e9
    array = vector.astype(change.get("dtype", np.float32))  # type: ignore[call-overload]
    if change.get("short"):
        array = array[:-1]
    return tensors.pack({TENSOR: array}, {"layout": str(change.get("layout", expected.layout))})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"dtype": np.float16}, "update-wrong-dtype"),
        ({"short": True}, "update-wrong-shape"),
        ({"layout": "sha256:" + "9" * 64}, "update-wrong-layout"),
    ],
)
async def test_bad_updates_are_refused_and_change_nothing(
    coordinator: Coordinator, order: dict, change: dict, code: str
) -> None:
    problem(await coordinator.send(order, _vector(_spec(order), **change)), 422, code)
    await _untouched(coordinator)
    assert (await coordinator.send(order)).status_code == 201


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"nan": True}, "update-not-finite"),
        ({"quiet": True}, "update-noise-implausible"),
        ({"huge": True}, "update-norm-implausible"),
    ],
)
async def test_an_implausible_update_does_not_count_and_quarantines_its_client(
    coordinator: Coordinator, order: dict, change: dict, code: str
) -> None:
    """Its bytes are not kept: without the promised noise they may be a private gradient."""
    bad, update_id = _vector(_spec(order), **change), uuid4()
    for _ in range(2):
        answer = await coordinator.send(order, bad, update_id=update_id)
        if answer.status_code == 422:
            problem(answer, 422, code)
    problem(answer, 409, "lease-lost")
    assert await coordinator.sql("SELECT 1 FROM updates") == []
    assert not coordinator.ctx.store.exists(sha256_of(bad))
    assert await coordinator.kinds("site-a") == ["reserve", "lost"]
    await coordinator.sweep()
    assert await coordinator.poll("site-a") is None
    run_id = order["run_id"]
    shown = await coordinator.round({"id": run_id}, 0)
    assert "site-a (quarantined)" in shown["why"]
    (row,) = (await coordinator.ok("GET", f"/v1/runs/{run_id}/rejections", "auditor"))["items"]
    assert (row["client"], row["code"], row["digest"]) == ("site-a", code, sha256_of(bad))
    assert row["quarantined"]
    assert row["reason"].startswith(_reason(code))
    (seat,) = [
        seat
        for seat in (await coordinator.ok("GET", f"/v1/runs/{run_id}"))["seats"]
        if seat["client"] == "site-a"
    ]
    assert (seat["state"], seat["why"]) == ("quarantined", row["reason"])
    assert (await coordinator.ok("GET", f"/v1/runs/{run_id}/rejections", "site-b"))["items"] == []
    # Mended, released: the next attempt is a new reservation, and counts.
    client = coordinator.clients["site-a"]
    await coordinator.ok("POST", f"/v1/runs/{run_id}/clients/{client}/release")
    await coordinator.sweep()
    again = await coordinator.poll("site-a")
    assert again is not None
    assert again["attempt"] == 2
    assert (await coordinator.send(again)).status_code == 201
    assert await coordinator.kinds("site-a") == ["reserve", "lost", "reserve", "commit"]


def _reason(code: str) -> str:
    return {
        "update-not-finite": "the update holds NaN",
        "update-noise-implausible": "the null coordinates carry 0.",
        "update-norm-implausible": "norm 1e+09",
    }[code]


async def test_requests_that_are_no_update(coordinator: Coordinator, order: dict) -> None:
    problem(await coordinator.send(order, b"no tensors"), 422, "update-unreadable")
    problem(await coordinator.send(order, b""), 422, "update-unreadable")
    big = b"x" * (order["max_update_bytes"] + 1)
    found = problem(await coordinator.send(order, big), 413, "payload-too-large")
    assert found["limit"] == order["max_update_bytes"]

    async def endless():
        for _ in range(20):
            yield b"x" * 2**20

    problem(await coordinator.send(order, endless()), 413, "payload-too-large")  # type: ignore[arg-type]
    wrong = await coordinator.send(order, **{"Content-Type": "application/json"})
    problem(wrong, 415, "unsupported-media-type", "Content-Type")
    problem(await coordinator.send(order, update_id="mine"), 422, "invalid-request", "update_id")
    await _untouched(coordinator)


async def test_an_update_for_a_closed_round_is_refused(
    coordinator: Coordinator, order: dict
) -> None:
    await coordinator.sql("UPDATE rounds SET state = 'closing'")
    problem(await coordinator.send(order), 409, "round-closed")


async def test_only_the_current_lease_counts(coordinator: Coordinator, order: dict) -> None:
    other = await coordinator.poll("site-b")
    assert other is not None
    forged = order["lease_token"][:-1] + ("0" if order["lease_token"][-1] != "0" else "1")
    for lease in (other["lease_token"], forged, "nonsense"):
        problem(await coordinator.send(order, lease=lease), 409, "lease-lost")
    missing = await coordinator.call(
        "PUT",
        f"/v1/runs/{order['run_id']}/rounds/0/updates/{uuid4()}",
        "site-a",
        headers={"Content-Type": "application/vnd.fedhypevae.tensors+safetensors"},
    )
    problem(missing, 422, "invalid-request", "X-FHV-Lease")
    await _untouched(coordinator)


async def test_an_overdue_lease_still_counts_until_it_is_declared_lost(
    coordinator: Coordinator, order: dict
) -> None:
    coordinator.pass_time(50)
    assert (await coordinator.send(order)).status_code == 201
    other = await coordinator.poll("site-b")
    assert other is not None
    coordinator.pass_time(11)
    await coordinator.sweep()
    problem(await coordinator.send(other), 409, "lease-lost")
    assert await coordinator.kinds("site-b") == ["reserve", "lost", "reserve"]


async def test_somebody_elses_round_or_lease(coordinator: Coordinator, order: dict) -> None:
    await coordinator.enrol("outsider")
    problem(await coordinator.send(order, who="outsider"), 404, "not-found")
    problem(await coordinator.send(order, who="site-b"), 409, "lease-lost")
    # A worker acts for managed clients only.
    problem(await coordinator.send(order, who="worker"), 404, "not-found")
    for who in ("admin", "scientist", "auditor"):
        problem(await coordinator.send(order, who=who), 403, "forbidden")
    await _untouched(coordinator)


_BREAK = """
CREATE FUNCTION fhv_test_break() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the server ends here' USING ERRCODE = 'crash_shutdown';
END $$;
CREATE TRIGGER fhv_test_break BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION
    fhv_test_break()
"""
_MEND = "DROP TRIGGER fhv_test_break ON {table}; DROP FUNCTION fhv_test_break()"


@pytest.mark.parametrize("table", ["ledger_entries", "updates", "objects", "audit_events"])
async def test_a_crash_before_the_commit_leaves_nothing_behind(
    coordinator: Coordinator, order: dict, table: str
) -> None:
    """Whatever of it the server was at."""
    async with await coordinator.ctx.database.connect_alone() as connection:
        await connection.execute(_BREAK.format(table=table).encode())
        try:
            problem(await coordinator.send(order), 503, "not-ready")
        finally:
            await connection.execute(_MEND.format(table=table).encode())
    await _untouched(coordinator)
    assert (await coordinator.send(order)).status_code == 201
    assert await coordinator.kinds("site-a") == ["reserve", "commit"]


async def test_a_connection_that_ends_while_an_update_counts_counts_it_once(
    coordinator: Coordinator, order: dict
) -> None:
    """The server ends the connection in the middle of the statement: it runs again, on another."""
    database = coordinator.ctx.database
    async with await database.connect_alone() as other:
        async with other.transaction():
            await other.execute("SELECT 1 FROM rounds FOR UPDATE")
            sending = asyncio.create_task(coordinator.send(order))
            async with asyncio.timeout(10), await database.connect_alone() as third:
                cut: list = []
                while not cut:
                    found = await third.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
                        "current_database() AND wait_event_type = 'Lock'"
                    )
                    cut = await found.fetchall()
        assert (await sending).status_code == 201
    assert await coordinator.kinds("site-a") == ["reserve", "commit"]
    assert len(await coordinator.sql("SELECT 1 FROM updates")) == 1


async def test_a_store_that_takes_no_bytes_accepts_no_update(
    coordinator: Coordinator, order: dict
) -> None:
    folder = coordinator.ctx.store._folder
    assert folder is not None
    blocked = folder / "sha256"
    assert not blocked.exists()
    blocked.write_text("a file where a folder belongs")
    refused = problem(await coordinator.send(order), 503, "store-unavailable")
    assert "send it again" in refused["mend"]
    await _untouched(coordinator)
    blocked.unlink()
    assert (await coordinator.send(order)).status_code == 201
