"""Sites of secure sums: each plays the real participant over HTTP, message by message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from api.secure_sums.repository import STEP_OF
from core.federation.secure_sum import grid_of
from core.privacy.discrete import lattice
from core.privacy.discrete.gaussian import csprng
from core.secagg.participant import Participant
from core.wire.messages import LEASE_HEADER, WorkOrder
from core.wire.protocol import PROTOCOL_HEADER, RANGE_HEADER
from core.wire.secure import CONTENT_TYPE_MASKED, StepAnswer, SumStep
from tests.api.support import Coordinator

SITES = ("site-a", "site-b", "site-c", "site-d")
SECURE: dict[str, Any] = {
    "aggregation": "secure",
    "secure": {"drop": 1, "collude": 1, "step_s": 30.0},
    "round": {"quorum": 3},
}


class Site:
    """One client's site. It keeps the state of every round, and what it has contributed."""

    def __init__(self, coordinator: Coordinator, name: str) -> None:
        self.coordinator, self.name = coordinator, name
        self.identity = Ed25519PrivateKey.generate()
        self.known: dict[str, bytes] = {}
        self.participants: dict[int, Participant] = {}
        self.contributed: dict[int, NDArray[np.int64]] = {}

    @property
    def who(self) -> str:
        return self.name if self.name in self.coordinator.tokens else "worker"

    @property
    def key(self) -> str:
        return self.identity.public_key().public_bytes_raw().hex()

    async def register(self) -> None:
        path = f"/v1/clients/{self.coordinator.clients[self.name]}/identity-key"
        await self.coordinator.ok("PUT", path, self.who, json={"key": self.key})

    async def poll(self, *, protocol: int = 3) -> dict[str, Any] | None:
        response = await self.coordinator.call(
            "GET",
            f"/v1/clients/{self.coordinator.clients[self.name]}/work",
            self.name,
            headers={PROTOCOL_HEADER: str(protocol), RANGE_HEADER: f"1-{protocol}"},
        )
        assert response.status_code in (200, 204), response.text
        return response.json() if response.status_code == 200 else None

    async def offered(self) -> SumStep:
        found = await self.poll()
        assert found is not None, f"nothing for {self.name}"
        assert found["type"] == "step", found["type"]
        return SumStep.model_validate(found["step"])

    def _participant(self, step: SumStep) -> Participant:
        if step.round_number not in self.participants:
            self.participants[step.round_number] = Participant(
                step.session, self.name, self.identity, self.known
            )
        return self.participants[step.round_number]

    def answer_of(self, step: SumStep) -> StepAnswer:
        site = self._participant(step)
        match step.step:
            case "keys":
                return StepAnswer(advert=site.advert())
            case "shares":
                return StepAnswer(shares=site.share(step.roster))
            case "confirm":
                return StepAnswer(confirmation=site.confirm(step.survivors, step.attestations))
            case "open":
                return StepAnswer(opening=site.open(step.confirmations))

    async def put(self, step: SumStep, answer: StepAnswer) -> httpx.Response:
        return await self.coordinator.call(
            "PUT",
            f"/v1/secure-steps/{step.step_id}",
            self.who,
            json=answer.model_dump(mode="json", exclude_none=True),
        )

    async def decline(self, step: SumStep, code: str = "site-not-ready") -> httpx.Response:
        path = f"/v1/secure-steps/{step.step_id}/decline"
        return await self.coordinator.call("POST", path, self.who, json={"code": code})

    async def answer(self, wanted: str) -> SumStep:
        step = await self.offered()
        assert step.step == wanted
        response = await self.put(step, self.answer_of(step))
        assert response.status_code == 201, response.text
        return step

    async def order(self) -> WorkOrder:
        found = await self.poll()
        assert found is not None, f"no order for {self.name}"
        assert found["type"] == "order", found["type"]
        return WorkOrder.model_validate(found["order"])

    def masked(self, order: WorkOrder) -> bytes:
        """Noise alone, which is what every contribution looks like, under the round's masks."""
        assert order.sum is not None
        grid = grid_of(order.spec, order.round_number, len(order.sum.session.sites))
        zeros = np.zeros(order.sum.session.length)
        vector = lattice.released(zeros, grid, csprng())
        self.contributed[order.round_number] = vector
        return self.participants[order.round_number].mask(
            order.sum.inbox, order.sum.sharers, vector
        )

    async def send(
        self, order: WorkOrder, body: bytes, media: str = CONTENT_TYPE_MASKED
    ) -> httpx.Response:
        return await self.coordinator.call(
            "PUT",
            f"/v1/runs/{order.run_id}/rounds/{order.round_number}/updates/{uuid4()}",
            self.who,
            content=body,
            headers={LEASE_HEADER: order.lease_token, "Content-Type": media},
        )

    async def work(self) -> WorkOrder:
        order = await self.order()
        response = await self.send(order, self.masked(order))
        assert response.status_code == 201, response.text
        return order


class Sites:
    """All sites of a run; each knows the others' keys, from its own people."""

    def __init__(self, sites: Mapping[str, Site], run: dict[str, Any]) -> None:
        self.all, self.run = sites, run
        self.coordinator = next(iter(sites.values())).coordinator

    def __getitem__(self, name: str) -> Site:
        return self.all[name]

    async def answer(self, wanted: str, names: Iterable[str] | None = None) -> None:
        for name in self.all if names is None else names:
            await self.all[name].answer(wanted)
        await self.coordinator.sweep()

    async def work(self, names: Iterable[str] | None = None) -> None:
        for name in self.all if names is None else names:
            await self.all[name].work()
        await self.coordinator.sweep()

    async def go(self, names: Iterable[str] | None = None) -> None:
        """What the round waits for, by these."""
        now = (await self.round())["state"]
        if now == "open":
            await self.work(names)
        else:
            await self.answer(STEP_OF[now], names)

    async def upto(self, state: str, names: Iterable[str] | None = None) -> None:
        """To the round's next state of this name, all of them (or these) answering."""
        for _ in range(8):
            if (await self.round())["state"] == state:
                return
            await self.go(names)
        raise AssertionError((await self.round())["why"])

    async def round(self) -> dict[str, Any]:
        run = await self.coordinator.ok("GET", f"/v1/runs/{self.run['id']}")
        return await self.coordinator.round(self.run, run["current_round"])

    async def state(self) -> str:
        return str((await self.coordinator.ok("GET", f"/v1/runs/{self.run['id']}"))["state"])

    async def sums(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """One whole round; the job that summed it."""
        await self.upto("aggregating", names)
        return await self.coordinator.aggregate()


async def a_secure_run(
    coordinator: Coordinator,
    *names: str,
    managed: bool = False,
    epsilon: float = 8.0,
    **changes: Any,
) -> Sites:
    """A run that has begun: its first round asks for keys."""
    names = names or SITES
    await coordinator.enrol(*names, managed=managed, epsilon=epsilon)
    sites = {name: Site(coordinator, name) for name in names}
    for site in sites.values():
        await site.register()
    keys = {name: site.identity.public_key().public_bytes_raw() for name, site in sites.items()}
    for site in sites.values():
        site.known = keys
    run = await coordinator.run(*names, **{**SECURE, **changes})
    return Sites(sites, run)
