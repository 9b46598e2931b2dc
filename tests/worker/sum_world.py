"""Sites of one secure sum, each with its own state folder, around a real ``Collector``.

The coordinator's HTTP is scripted (``httpx.MockTransport``, as in ``support``); its protocol is the
real collector's. Sums with the real coordinator: ``test_secure_round``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.federation.secure_sum import session_of
from core.secagg.collector import Collector, Rejected
from core.secagg.messages import Session
from core.wire.messages import LEASE_HEADER, WorkOrder
from core.wire.secure import CONTENT_TYPE_MASKED, StepAnswer, SumOrder, SumStep
from tests.worker.support import (
    FAST,
    make_config,
    make_order,
    make_spec,
    problem,
    write_records,
)
from worker.agent import peers, sums
from worker.agent.site import Site
from worker.agent.sum_identity import key_of
from worker.client import CoordinatorClient
from worker.config import ClientConfig
from worker.delivery import Workplace
from worker.execution import Outcome, perform

NAMES = ("site-a", "site-b", "site-c", "site-d")


def secure_spec(
    *,
    drop: int = 1,
    collude: int = 1,
    run_id: str = "run-1",
    names: tuple[str, ...] = NAMES,
) -> RunSpec:
    plain = make_spec(run_id=run_id, rounds=0, sketch_share=None, sample_rate=1.0)
    plan = plain.plan.model_validate(
        plain.plan.model_dump()
        | {"aggregation": "secure", "secure": {"drop": drop, "collude": collude}}
    )
    return plain.model_copy(update={"plan": plan, "founding_names": names})


@dataclass
class Coordinator:
    """The wire of a collector. ``before``: may answer, or raise, instead."""

    collector: Collector
    calls: list[str] = field(default_factory=list)
    declined: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    bodies: dict[str, list[bytes]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    before: Callable[[httpx.Request], httpx.Response | None] = lambda _: None
    after: Callable[[httpx.Request], None] = lambda _: None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls.append(f"{request.method} {request.url.path}")
        if (special := self.before(request)) is not None:
            return special
        answer = self._answer(request)
        self.after(request)
        return answer

    def _answer(self, request: httpx.Request) -> httpx.Response:
        match request.url.path.strip("/").split("/"):
            case ["v1", "secure-steps", step_id, "decline"]:
                self.declined.append(step_id)
                return httpx.Response(204)
            case ["v1", "secure-steps", step_id]:
                return self._step(step_id, request.read())
            case ["v1", "runs", _, "rounds", number, "updates", update_id]:
                return self._put(request, number, update_id)
            case ["v1", "work", work_id, "fail"]:
                self.failures.append((work_id, json.loads(request.read())["code"]))
                return httpx.Response(204)
            case ["v1", "work", _, "renew"]:
                return httpx.Response(200, json={"lease_s": 60.0})
        return problem(404, "not-found")

    def _step(self, step_id: str, body: bytes) -> httpx.Response:
        name, step = step_id.split(":")
        self.answers.setdefault(step_id, []).append(hashlib.sha256(body).hexdigest())
        answer = StepAnswer.model_validate_json(body)
        assert answer.step == step
        try:
            if answer.advert is not None:
                self.collector.advertise(answer.advert)
            elif answer.shares is not None:
                self.collector.share(name, answer.shares)
            elif answer.confirmation is not None:
                self.collector.confirm(answer.confirmation)
            elif answer.opening is not None:
                self.collector.open(answer.opening)
        except Rejected as error:
            return problem(422, "step-rejected", detail=str(error))
        return httpx.Response(201, json={"step_id": step_id, "step": step})

    def _put(self, request: httpx.Request, number: str, update_id: str) -> httpx.Response:
        assert request.headers["content-type"] == CONTENT_TYPE_MASKED
        name, body = request.headers[LEASE_HEADER].split(":")[0], request.read()
        self.bodies.setdefault(name, []).append(body)
        self.collector.collect(name, body)
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        return httpx.Response(
            201,
            json={
                "update_id": update_id, "run_id": "run-1", "round_number": int(number),
                "client_id": f"id-of-{name}", "digest": digest, "size": len(body),
            },
        )  # fmt: skip


class World:
    """``names`` take part in round 0 of a secure run; everybody has pinned everybody."""

    def __init__(self, folder: Path, spec: RunSpec | None = None, names: tuple[str, ...] = NAMES):
        self.folder, self.names = folder, names
        self.spec = spec or secure_spec()
        self.session = session_of(self.spec, 0, names)
        self.coordinator = Coordinator(Collector(self.session))
        self.client = CoordinatorClient(
            "http://coordinator.test", "token", retry=FAST,
            transport=httpx.MockTransport(self.coordinator),
        )  # fmt: skip
        self.configs: dict[str, ClientConfig] = {}
        keys = {}
        for at, name in enumerate(names):
            home = folder / name
            home.mkdir()
            self.configs[name] = make_config(
                write_records(home / "records.npz", seed=at), name=name, population=f"{name}/all",
                peers=home / "peers.json",
            )  # fmt: skip
            with self.site(name) as site:
                keys[name] = key_of(site, name)
        for name in names:
            known = {other: key for other, key in keys.items() if other != name}
            peers.pin(self.configs[name], known)

    def site(self, name: str) -> Site:
        return Site.open(self.folder / name / "state")

    def place(self, site: Site) -> Workplace:
        return Workplace(site, self.client, patience_s=0.0)

    def step(self, name: str, step: str, **changes: object) -> SumStep:
        """As the coordinator offers it."""
        collector = self.coordinator.collector
        more: dict[str, object] = {}
        if step == "shares":
            more["roster"] = collector.roster()
        if step in ("confirm", "open"):
            more["survivors"] = collector.survivors()
        if step == "confirm":
            more["attestations"] = collector.attestations()
        if step == "open":
            more["confirmations"] = collector.confirmations()
        values: dict[str, object] = {
            "step_id": f"{name}:{step}", "run_id": self.spec.run_id, "client": name,
            "client_id": f"id-of-{name}", "round_number": 0, "step": step, "spec": self.spec,
            "spec_digest": self.spec.digest, "session": self.session,
            "deadline": "2027-01-01T00:00:00Z",
        }  # fmt: skip
        return SumStep.model_validate(values | more | changes)

    def answer(self, name: str, step: str, **changes: object) -> bool:
        """One step of one site, in a process of its own as far as its state goes."""
        offered = self.step(name, step, **changes)
        with self.site(name) as site:
            return sums.answer(offered, self.configs[name], self.place(site))

    def all_answer(self, step: str, names: tuple[str, ...] | None = None) -> None:
        for name in names or self.names:
            assert self.answer(name, step)

    def order(self, name: str, attempt: int = 1, **changes: object) -> WorkOrder:
        collector = self.coordinator.collector
        plain = make_order(self.spec, attempt=attempt, client=name)
        asked = SumOrder(
            session=self.session, inbox=collector.inbox(name), sharers=collector.sharers()
        )
        values = {"lease_token": f"{name}:{attempt}", "sum": asked, **changes}
        return WorkOrder.model_validate(plain.model_dump() | values)

    def send(self, name: str, attempt: int = 1, **changes: object) -> Outcome:
        with self.site(name) as site:
            return perform(
                self.order(name, attempt, **changes), self.configs[name], self.place(site)
            )

    def total(self) -> NDArray[np.int64]:
        return self.coordinator.collector.total()


def other_session(world: World, **changes: object) -> Session:
    return Session.model_validate(world.session.model_dump() | changes)
