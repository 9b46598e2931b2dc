"""Deliveries over real HTTP: signed, repeated with patience, given up with a reason."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from api.embedded import free_port
from api.webhooks import delivery
from api.webhooks.delivery import Courier, pause_s
from tests.api.support import Coordinator
from tests.api.test_coordinator_process import environment, served
from tests.api.webhooks.receiver import Receiver, Verified, deliveries, made, told


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


async def test_the_head_of_an_answer_is_enough(
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
    assert [event["actor"] for event in trail] == ["coordinator"] * 2
    assert "room=7" not in str(trail), "the rest of a URL may be a secret"

    await coordinator.ok("POST", f"/v1/webhooks/{deaf['id']}/enable")
    assert await courier.deliver() == 1, "what was pending goes on"


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


def test_pauses_double_up_to_a_limit() -> None:
    for attempts, planned in ((1, 10.0), (2, 20.0), (5, 160.0), (40, delivery._LONGEST_PAUSE_S)):
        for _ in range(20):
            assert planned / 2 <= pause_s(attempts, 10.0) <= planned
    assert pause_s(1, 10.0, 300.0) == 300.0
    assert pause_s(1, 10.0, 1e9) == delivery._LONGEST_PAUSE_S


async def test_killed_between_sending_and_writing_it_down(
    coordinator: Coordinator,
    courier: Courier,
    receiver: Receiver,
    database_url: str,
    tmp_path: Path,
) -> None:
    """kill -9 while the receiver has the event and the coordinator no answer: the next coordinator
    sends it again, under the same id.
    """
    webhook = await made(coordinator, receiver.url)
    await told(coordinator)
    receiver.hold.clear()
    more = {"FHV_WEBHOOKS_ALLOW_PRIVATE": "true", "FHV_WEBHOOKS_TIMEOUT_S": "20"}
    with served(environment(database_url, tmp_path, **more), free_port()) as process:
        receiver.wait()
        process.kill()
        process.wait(10)
    (shown,) = await deliveries(coordinator, webhook)
    assert (shown["state"], shown["attempts"], shown["status"]) == ("pending", 1, None)
    receiver.hold.set()
    assert await courier.deliver() == 0, "the dead one's attempt may still be under way"
    coordinator.pass_time(46)
    assert await courier.deliver() == 1
    (shown,) = await deliveries(coordinator, webhook)
    assert (shown["state"], shown["attempts"]) == ("delivered", 2)
    first_time, second_time = receiver.got
    assert first_time.headers["webhook-id"] == second_time.headers["webhook-id"]
    assert first_time.body == second_time.body
