"""Simulated clients: the protocol of a site agent over HTTP, all in one process, no records.

What they post is what every update looks like: noise of the promised standard deviation, drawn
from the generator of production, in the layout of the order's round.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from benchmarks.federation.http import Http, expect
from benchmarks.federation.plans import DELTA, SPACE
from core.federation.plan import Plan, RunSpec
from core.federation.updates import TENSOR, expectation
from core.privacy.noise import csprng
from core.wire import tensors
from core.wire.messages import CONTENT_TYPE_TENSORS, LEASE_HEADER
from core.wire.protocol import PROTOCOL_HEADER, RANGE_HEADER, SPOKEN
from worker.answers import JsonObject
from worker.client import CoordinatorClient

T = TypeVar("T")
Order = dict[str, Any]
_AT_ONCE = 8
_SPOKEN = {PROTOCOL_HEADER: str(SPOKEN.newest), RANGE_HEADER: str(SPOKEN)}
_JSON = {"Content-Type": "application/json", **_SPOKEN}
_BUDGET = 100.0  # several runs


@dataclass(frozen=True)
class Member:
    name: str
    client_id: str
    token: str


async def each(items: Iterable[T], do: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """``do`` for every item, ``at_once`` of them at any time: closed-loop senders."""
    waiting = iter(items)

    async def sender() -> None:
        for item in waiting:
            await do(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(sender())


async def enrol(port: int, admin: str, count: int) -> tuple[Member, ...]:
    """``count`` clients with a token each; the space exists."""
    found: dict[int, Member] = {}
    async with Http(port) as http:

        async def one(number: int) -> None:
            name = f"client-{number:04d}"
            body = {
                "name": name, "space": SPACE.name, "site": name, "population": f"{name}/all",
                "unit": "record", "managed": False, "budget": {"epsilon": _BUDGET, "delta": DELTA},
            }  # fmt: skip
            made = await http.request(
                "POST", "/v1/clients", admin, json.dumps(body).encode(),
                {**_JSON, "Idempotency-Key": uuid.uuid4().hex},
            )  # fmt: skip
            answer = expect(made, 201).json()
            found[number] = Member(name, answer["client"]["id"], answer["token"])

        await each(range(count), one, _AT_ONCE)
    return tuple(found[number] for number in range(count))


@dataclass(frozen=True)
class Crowd:
    """Members and the connections that they share."""

    http: Http
    members: tuple[Member, ...]

    async def poll(self, member: Member, wait_s: int = 0) -> Order | None:
        path = f"/v1/clients/{member.client_id}/work?wait={wait_s}"
        answer = await self.http.request("GET", path, member.token, headers=_SPOKEN)
        if expect(answer, 200, 204).status == 204:
            return None
        return dict(answer.json()["order"])  # there are no plans to decide on: see ``approve``

    async def approve(self, run: JsonObject) -> None:
        """What each site's policy would say of the run's plan."""

        async def one(member: Member) -> None:
            word = {
                "client": member.name, "spec_digest": run["spec_digest"], "decision": "approve",
                "by": "policy",
            }  # fmt: skip
            path, body = f"/v1/runs/{run['id']}/consents", json.dumps(word).encode()
            expect(await self.http.request("POST", path, member.token, body, _JSON), 200)

        await each(self.members, one, _AT_ONCE)

    async def put(self, member: Member, order: Order, body: bytes) -> None:
        path = f"/v1/runs/{order['run_id']}/rounds/{order['round_number']}/updates/{uuid.uuid4()}"
        headers = {
            LEASE_HEADER: order["lease_token"], "Content-Type": CONTENT_TYPE_TENSORS, **_SPOKEN,
        }  # fmt: skip
        expect(await self.http.request("PUT", path, member.token, body, headers), 201)

    async def orders(self, wait_s: int = 30) -> list[Order]:
        """Every member's order of the round that is open or about to be."""
        found: dict[str, Order] = {}

        async def one(member: Member) -> None:
            order = None
            while order is None:
                order = await self.poll(member, wait_s)
            found[member.name] = order

        await each(self.members, one, _AT_ONCE)
        return [found[member.name] for member in self.members]

    async def send(self, orders: Sequence[Order], bodies: Sequence[bytes], at_once: int) -> None:
        async def one(place: int) -> None:
            await self.put(self.members[place], orders[place], bodies[place])

        await each(range(len(orders)), one, at_once)


async def begin(
    http: Http, operator: CoordinatorClient, plan: Plan, members: tuple[Member, ...]
) -> tuple[Crowd, str]:
    """A run of these members, approved by all of them and started; and its id."""
    run = await asyncio.to_thread(operator.create_run, plan, [member.name for member in members])
    crowd = Crowd(http, members)
    await crowd.approve(run)
    await asyncio.to_thread(operator.start_run, str(run["id"]))
    return crowd, str(run["id"])


def bodies(order: Order, count: int) -> list[bytes]:
    """``count`` updates of an order's round, different from each other."""
    spec, number = RunSpec.model_validate(order["spec"]), int(order["round_number"])
    expected = expectation(spec, number)
    metadata = {"layout": expected.layout, "spec": spec.digest, "round": str(number)}
    source = csprng()
    return [
        tensors.pack(
            {TENSOR: source.normal(expected.length, expected.noise_std).astype(np.float32)},
            metadata,
        )
        for _ in range(count)
    ]
