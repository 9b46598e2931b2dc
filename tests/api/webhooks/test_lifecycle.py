"""Webhooks are made, tried, disabled, forgotten; their secrets are shown once and changed."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from pydantic import SecretStr

from api.metrics.books import Books
from api.webhooks import kinds
from api.webhooks.delivery import Courier
from api.webhooks.service import Kind
from api.webhooks.watch import Watcher
from tests.api.support import Coordinator, problem
from tests.api.webhooks.conftest import ROOT
from tests.api.webhooks.receiver import Receiver, Verified, made, told


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
    coordinator: Coordinator, receiver: Receiver, verified: Verified
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
    courier = Courier(coordinator.ctx)
    await courier.deliver()
    assert receiver.got == []
    rows = await coordinator.sql("SELECT reason FROM webhook_deliveries")
    assert rows[0][0] == "its secret was sealed under another FHV_TOKEN_PEPPER"
    del coordinator.tokens["admin"]  # tokens are stored under the pepper, too
    new = await coordinator.ok("POST", f"/v1/webhooks/{webhook['id']}/rotate")
    coordinator.pass_time(61)
    assert await courier.deliver() == 1, "a new secret is all that it takes"
    assert verified(receiver.got[0].headers, receiver.got[0].body, new["secret"])
    await courier.close()


async def test_what_has_ended_is_forgotten(
    coordinator: Coordinator, courier: Courier, receiver: Receiver
) -> None:
    webhook = await made(coordinator, receiver.url)
    await coordinator.ok("POST", f"/v1/webhooks/{webhook['id']}/rotate")
    await told(coordinator)
    await courier.deliver()
    await told(coordinator)
    coordinator.pass_time(31 * 86_400)
    await Watcher(coordinator.ctx).look()
    left = await coordinator.sql("SELECT state FROM webhook_deliveries")
    assert [row[0] for row in left] == ["pending"]
    assert len(await coordinator.sql("SELECT 1 FROM webhook_events")) == 1
    (former,) = await coordinator.sql("SELECT former_sealed, former_until FROM webhooks")
    assert tuple(former) == (None, None)


async def test_metrics_say_what_arrives_and_what_does_not(
    coordinator: Coordinator, courier: Courier, receiver: Receiver
) -> None:
    coordinator.app.state.books = Books(kept_s=0.0, spent_kept_s=0.0)
    webhook = await made(coordinator, receiver.url, "update-rejected")
    receiver.will_answer(204, 410)
    path = f"/v1/webhooks/{webhook['id']}"
    assert (await coordinator.ok("POST", f"{path}/ping"))["state"] == "delivered"
    await told(coordinator, "update-rejected")
    await courier.deliver()
    await coordinator.ok("POST", f"{path}/enable")
    await told(coordinator, "update-rejected")
    await coordinator.ok("POST", f"{path}/disable")
    text = (await coordinator.call("GET", "/metrics", "auditor")).text
    for line in (
        'fhv_webhook_attempts_total{outcome="delivered"} 1.0',
        'fhv_webhook_attempts_total{outcome="refused"} 1.0',
        'fhv_webhook_attempts_total{outcome="failed"} 0.0',
        'fhv_webhook_deliveries{state="pending"} 1.0',
        'fhv_webhook_deliveries{state="dead"} 1.0',
        "fhv_webhooks_disabled 1.0",
    ):
        assert line in text.splitlines(), line


def test_every_kind_is_documented() -> None:
    text = (ROOT / "docs/webhooks.md").read_text()
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", text, flags=re.MULTILINE)
    assert listed == [*kinds.KINDS, kinds.PING]
    assert get_args(Kind) == tuple(kinds.KINDS)


async def test_webhooks_come_page_by_page(coordinator: Coordinator) -> None:
    made_here = [(await made(coordinator, f"https://a.example/{n}"))["id"] for n in range(3)]
    first = await coordinator.ok("GET", "/v1/webhooks?limit=2")
    rest = await coordinator.ok("GET", f"/v1/webhooks?limit=2&after={first['next']}")
    assert [one["id"] for one in first["items"] + rest["items"]] == made_here
    assert rest["next"] is None
