"""Webhooks over real HTTP: signed, repeated with patience, given up with a reason, sent again."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from api.config import Settings
from api.embedded import free_port
from api.webhooks import delivery, kinds
from api.webhooks.delivery import Courier, pause_s
from api.webhooks.watch import Watcher
from tests.api.receiver import Receiver, receiving
from tests.api.support import Coordinator, problem
from tests.api.test_coordinator_process import environment, served

ROOT = Path(__file__).resolve().parents[2]
Verified = Callable[[dict[str, str], bytes, str], str]
ALL = list(kinds.KINDS)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "webhooks_allow_private": True,
            "webhooks_attempts": 3,
            "webhooks_timeout_s": 1.0,
            "webhooks_backoff_s": 60.0,
        }
    )


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
async def courier(coordinator: Coordinator) -> AsyncIterator[Courier]:
    found = Courier(coordinator.ctx)
    yield found
    await found.close()


@pytest.fixture(scope="module")
def verified() -> Verified:
    """The receiver's side as docs/webhooks.md shows it."""
    text = (ROOT / "docs/webhooks.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)  # noqa: S102 (our own document)
    found: Verified = names["verified"]
    return found


async def made(coordinator: Coordinator, url: str, *events: str) -> dict[str, Any]:
    body = {"url": url, "events": list(events or ALL), "label": "test"}
    return dict(await coordinator.ok("POST", "/v1/webhooks", json=body))


async def told(coordinator: Coordinator, kind: str = "client-enrolment-waiting") -> None:
    async with coordinator.ctx.database.write() as session:
        assert await kinds.tell(session, kind, see="/v1/clients")


async def deliveries(
    coordinator: Coordinator, webhook: dict[str, Any], query: str = ""
) -> list[dict[str, Any]]:
    path = f"/v1/webhooks/{webhook['id']}/deliveries{query}"
    return list((await coordinator.ok("GET", path))["items"])


async def test_a_delivery_is_signed_as_the_document_says(
    coordinator: Coordinator, courier: Courier, receiver: Receiver, verified: Verified
) -> None:
    webhook = await made(coordinator, receiver.url)
    await told(coordinator)
    assert await courier.deliver() == 1
    (got,) = receiver.got
    (shown,) = await deliveries(coordinator, webhook)
    assert verified(got.headers, got.body, webhook["secret"]) == shown["event_id"]
    assert got.path == "/hooks?room=7"
    assert got.headers["host"] == receiver.url.split("/")[2]
    assert got.headers["content-type"] == "application/json"
    body = json.loads(got.body)
    assert (body["type"], body["data"]) == ("client-enrolment-waiting", {"see": "/v1/clients"})
    assert (shown["state"], shown["status"], shown["attempts"]) == ("delivered", 204, 1)
    with pytest.raises(ValueError, match="not signed"):
        verified(got.headers, got.body + b" ", webhook["secret"])
    with pytest.raises(ValueError, match="not signed"):
        verified(got.headers, got.body, "whsec_" + "A" * 44)
    with pytest.raises(ValueError, match="too old"):
        verified({**got.headers, "webhook-timestamp": "1"}, got.body, webhook["secret"])
    assert await courier.deliver() == 0


async def test_it_is_tried_again_with_pauses_and_then_given_up(
    coordinator: Coordinator, courier: Courier, receiver: Receiver
) -> None:
    webhook = await made(coordinator, receiver.url)
    receiver.will_answer(500, 302, 404, Location="http://127.0.0.1:1/")
    await told(coordinator)
    assert await courier.deliver() == 1
    (shown,) = await deliveries(coordinator, webhook, "?state=pending")
    assert (shown["attempts"], shown["status"], shown["reason"]) == (1, 500, "answered 500")
    assert await courier.deliver() == 0, "its pause has not passed"
    coordinator.pass_time(61)
    assert await courier.deliver() == 1
    (shown,) = await deliveries(coordinator, webhook)
    assert shown["reason"] == "answered 302: redirects are not followed"
    coordinator.pass_time(59)
    assert await courier.deliver() == 0, "the second pause is twice as long, less half by chance"
    coordinator.pass_time(62)
    assert await courier.deliver() == 1
    (dead,) = await deliveries(coordinator, webhook, "?state=dead")
    assert (dead["attempts"], dead["reason"], dead["due_at"]) == (3, "answered 404", None)
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
    assert len({got.body for got in receiver.got}) == 1

    path = f"/v1/webhooks/{webhook['id']}/deliveries/{dead['id']}/redeliver"
    again = await coordinator.call("POST", path)
    assert (again.status_code, again.json()["state"]) == (202, "pending")
    assert await courier.deliver() == 1
    (shown,) = await deliveries(coordinator, webhook)
    assert (shown["state"], shown["attempts"]) == ("delivered", 1)
    assert receiver.got[-1].headers["webhook-id"] == dead["event_id"]


async def test_nobody_listens_or_answers_in_time(
    coordinator: Coordinator, courier: Courier, receiver: Receiver
) -> None:
    away = await made(coordinator, "http://127.0.0.1:1/")
    slow = await made(coordinator, receiver.url)
    receiver.hold.clear()
    await told(coordinator)
    began = time.monotonic()
    assert await courier.deliver() == 2
    assert time.monotonic() - began < 5
    (shown,) = await deliveries(coordinator, away)
    assert shown["reason"] == "no connection or no answer (ConnectError)"
    (shown,) = await deliveries(coordinator, slow)
    assert (shown["status"], shown["reason"]) == (None, "no answer in 1 s")


async def test_an_answer_is_read_only_so_far(
    coordinator: Coordinator, courier: Courier, receiver: Receiver
) -> None:
    webhook = await made(coordinator, receiver.url)
    receiver.answers.append((200, {}, b"x" * 50_000_000))
    await told(coordinator)
    assert await courier.deliver() == 1
    (shown,) = await deliveries(coordinator, webhook)
    assert shown["state"] == "delivered"


async def test_a_receiver_that_asks_for_time_gets_it(
    coordinator: Coordinator, courier: Courier, receiver: Receiver
) -> None:
    await made(coordinator, receiver.url)
    receiver.will_answer(429, Retry_After="600")
    await told(coordinator)
    await courier.deliver()
    coordinator.pass_time(590)
    assert await courier.deliver() == 0
    coordinator.pass_time(15)
    assert await courier.deliver() == 1


async def test_who_is_gone_or_never_answers_is_disabled(
    coordinator: Coordinator, courier: Courier, receiver: Receiver
) -> None:
    gone = await made(coordinator, receiver.url)
    receiver.will_answer(410)
    await told(coordinator)
    await courier.deliver()
    shown = await coordinator.ok("GET", f"/v1/webhooks/{gone['id']}")
    assert shown["disabled_why"] == "the receiver answered 410 Gone"
    assert [one["state"] for one in await deliveries(coordinator, gone)] == ["dead"]
    deaf = await made(coordinator, receiver.url)
    receiver.will_answer(*[500] * 17)
    for _ in range(6):
        await told(coordinator)
    for _ in range(3):
        await courier.deliver()
        coordinator.pass_time(300)
    shown = await coordinator.ok("GET", f"/v1/webhooks/{deaf['id']}")
    assert shown["disabled_why"] == "5 deliveries in a row were given up"
    states = [one["state"] for one in await deliveries(coordinator, deaf)]
    assert (states.count("dead"), states.count("pending")) == (5, 1)
    trail = (await coordinator.ok("GET", "/v1/events?kind=webhook-disabled"))["items"]
    assert [event["actor_scope"] for event in trail] == ["coordinator"] * 2
    assert "room=7" not in str(trail), "the rest of a URL may be a secret"

    await coordinator.ok("POST", f"/v1/webhooks/{deaf['id']}/enable")
    assert await courier.deliver() == 1, "what was pending goes on"


async def test_disabled_deleted_and_unasked_for(
    coordinator: Coordinator, courier: Courier, receiver: Receiver
) -> None:
    webhook = await made(coordinator, receiver.url, "update-rejected")
    async with coordinator.ctx.database.write() as session:
        assert not await kinds.tell(session, "budget-80", see="/x", key="k")
    path = f"/v1/webhooks/{webhook['id']}"
    for _ in range(2):
        off = await coordinator.ok("POST", f"{path}/disable")
    assert off["disabled_why"] == "disabled by an administrator"
    async with coordinator.ctx.database.write() as session:
        assert not await kinds.tell(session, "update-rejected", see="/x")
    pong = await coordinator.ok("POST", f"{path}/ping")
    assert (pong["state"], pong["type"]) == ("delivered", "ping")
    await coordinator.ok("POST", f"{path}/enable")
    async with coordinator.ctx.database.write() as session:
        assert await kinds.tell(session, "update-rejected", see="/x", key="k")
        assert not await kinds.tell(session, "update-rejected", see="/x", key="k"), "once"
        with pytest.raises(ValueError, match="unknown kind"):
            await kinds.tell(session, "round-burnt", see="/x")
    assert (await coordinator.call("DELETE", path)).status_code == 204
    assert await courier.deliver() == 0
    problem(await coordinator.call("GET", path), 404, "not-found", "webhook_id")
    assert await coordinator.sql("SELECT 1 FROM webhook_deliveries") == []
    kept = [item["kind"] for item in (await coordinator.ok("GET", "/v1/events"))["items"]]
    assert [kind for kind in kept if kind.startswith("webhook")] == [
        "webhook-created", "webhook-disabled", "webhook-enabled", "webhook-deleted",
    ]  # fmt: skip


async def test_a_ping_says_whether_it_arrived(coordinator: Coordinator, receiver: Receiver) -> None:
    webhook = await made(coordinator, receiver.url, "update-rejected")
    receiver.will_answer(503)
    path = f"/v1/webhooks/{webhook['id']}"
    pong = await coordinator.ok("POST", f"{path}/ping")
    assert (pong["state"], pong["status"], pong["reason"]) == ("dead", 503, "answered 503")
    assert (await coordinator.ok("POST", f"{path}/ping"))["state"] == "delivered"
    assert (await coordinator.ok("GET", path))["disabled_at"] is None


async def test_both_secrets_sign_while_one_is_changed(
    coordinator: Coordinator, courier: Courier, receiver: Receiver, verified: Verified
) -> None:
    webhook = await made(coordinator, receiver.url)
    new = await coordinator.ok("POST", f"/v1/webhooks/{webhook['id']}/rotate")
    assert new["secret"] != webhook["secret"]
    await told(coordinator)
    await courier.deliver()
    for secret in (webhook["secret"], new["secret"]):
        assert verified(receiver.got[0].headers, receiver.got[0].body, secret)
    coordinator.pass_time(coordinator.ctx.settings.webhooks_overlap_s + 1)
    await told(coordinator)
    await courier.deliver()
    assert verified(receiver.got[1].headers, receiver.got[1].body, new["secret"])
    with pytest.raises(ValueError, match="not signed"):
        verified(receiver.got[1].headers, receiver.got[1].body, webhook["secret"])


async def test_secrets_are_shown_once_and_sealed(
    coordinator: Coordinator, courier: Courier, receiver: Receiver
) -> None:
    webhook = await made(coordinator, receiver.url)
    listed = await coordinator.ok("GET", "/v1/webhooks")
    assert webhook["secret"] not in str(listed)
    (row,) = await coordinator.sql("SELECT webhooks::text FROM webhooks")
    assert webhook["secret"] not in row[0]
    other = coordinator.ctx.settings.model_copy(
        update={"token_pepper": SecretStr("another pepper for tests")}
    )
    object.__setattr__(coordinator.ctx, "settings", other)
    await told(coordinator)
    await courier.deliver()
    assert receiver.got == []
    rows = await coordinator.sql("SELECT reason FROM webhook_deliveries")
    assert rows[0][0] == "its secret was sealed under another FHV_TOKEN_PEPPER"


async def test_two_coordinators_share_the_work(
    coordinator: Coordinator, receiver: Receiver
) -> None:
    await made(coordinator, receiver.url)
    for _ in range(10):
        await told(coordinator)
    first, second = Courier(coordinator.ctx), Courier(coordinator.ctx)
    counts = await asyncio.gather(first.deliver(), second.deliver())
    assert sum(counts) == 10
    assert len({got.headers["webhook-id"] for got in receiver.got}) == len(receiver.got) == 10
    for courier in (first, second):
        await courier.close()


async def test_what_has_ended_is_forgotten(
    coordinator: Coordinator, courier: Courier, receiver: Receiver
) -> None:
    await made(coordinator, receiver.url)
    await told(coordinator)
    await courier.deliver()
    await told(coordinator)
    coordinator.pass_time(31 * 86_400)
    await Watcher(coordinator.ctx).look()
    left = await coordinator.sql("SELECT state FROM webhook_deliveries")
    assert [row[0] for row in left] == ["pending"]
    assert len(await coordinator.sql("SELECT 1 FROM webhook_events")) == 1


def test_pauses_double_up_to_a_limit() -> None:
    for attempts, planned in ((1, 10.0), (2, 20.0), (5, 160.0), (40, delivery._LONGEST_PAUSE_S)):
        for _ in range(20):
            assert planned / 2 <= pause_s(attempts, 10.0) <= planned
    assert pause_s(1, 10.0, 300.0) == 300.0
    assert pause_s(1, 10.0, 1e9) == delivery._LONGEST_PAUSE_S


async def test_killed_between_sending_and_writing_it_down(
    coordinator: Coordinator, receiver: Receiver, database_url: str, tmp_path: Path
) -> None:
    """kill -9 while the receiver has the event and the coordinator no answer: the next coordinator
    sends it again, under the same id.
    """
    webhook = await made(coordinator, receiver.url)
    await told(coordinator)
    receiver.hold.clear()
    more = {"FHV_WEBHOOKS_ALLOW_PRIVATE": "true", "FHV_WEBHOOKS_TIMEOUT_S": "1"}
    env = environment(database_url, tmp_path, **more)
    with served(env, free_port()) as first:
        receiver.wait()
        first.kill()
        first.wait(10)
    (shown,) = await deliveries(coordinator, webhook)
    assert (shown["state"], shown["attempts"], shown["status"]) == ("pending", 1, None)
    receiver.hold.set()
    with served(env, free_port()):
        receiver.wait()
        ends = time.monotonic() + 10
        while shown["state"] != "delivered" and time.monotonic() < ends:
            (shown,) = await deliveries(coordinator, webhook)
    assert (shown["state"], shown["attempts"]) == ("delivered", 2)
    first_time, second_time = receiver.got
    assert first_time.headers["webhook-id"] == second_time.headers["webhook-id"]
    assert first_time.body == second_time.body
