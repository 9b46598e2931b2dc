"""Sites, orders and a scripted coordinator for the tests of worker.

The scripted coordinator answers through ``httpx.MockTransport``: it stands in for the network in
tests of this side's behaviour only. The real coordinator is tested with real processes in e2e.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from core.federation.aggregate import pack_weights
from core.federation.plan import EmbeddingSpace, ModelPlan, Noise, Plan, PrivacyPlan, RunSpec
from core.federation.updates import expectation
from core.models.build import build
from core.models.generator import initial_weights
from core.models.layout import shared_layout, sketch_layout, train_layout
from core.training.compute import Compute
from core.wire.messages import (
    LEASE_HEADER,
    ConsentDecision,
    ObjectRef,
    OfferedOrder,
    OfferedPlan,
    PlanOffer,
    WorkOrder,
)
from core.wire.protocol import PROTOCOL_HEADER, RANGE_HEADER, SPOKEN
from worker.agent.site import Site
from worker.answers import Retry
from worker.cache import ObjectCache, digest_of_bytes
from worker.client import CoordinatorClient
from worker.config import ClientConfig, SiteConfig, SiteSection
from worker.delivery import Workplace

DIM = 12
CLASSES = 3
FAST = Retry(attempts=3, total_s=2.0, first_s=0.001, longest_s=0.005, jitter_s=0.0)


class Killed(BaseException):
    """Stands for ``kill -9`` inside a process: nothing may catch it."""


def space() -> EmbeddingSpace:
    return EmbeddingSpace(
        name="clusters",
        backbone="gaussian clusters",
        weights_digest="sha256:" + "0" * 64,
        preprocessing="none",
        dim=DIM,
        classes=tuple(f"class-{i}" for i in range(CLASSES)),
    )


def make_spec(
    *,
    run_id: str = "run-1",
    noise: Noise | None = None,
    purpose: str = "production",
    model: Mapping[str, Any] | None = None,
    **privacy: Any,
) -> RunSpec:
    """A small production run with noise multipliers 2 (about epsilon 3.5 at delta 1e-5)."""
    base = {"epsilon": 6.0, "delta": 1e-5, "n_max": 1000, "rounds": 2, "sample_rate": 0.5}
    base |= {"sketch_steps": 1, "sketch_share": 0.8, "validation_share": 0.0}
    sizes = {
        "code_dim": 4, "trunk_width": 3, "latent_dim": 2, "hidden": 6, "encoder_hidden": 5,
        "basis_rank": 5,
    }  # fmt: skip
    plan = Plan(
        name="test",
        space="clusters",
        privacy=PrivacyPlan.model_validate(base | privacy),
        model=ModelPlan.model_validate(sizes | dict(model or {})),
        purpose=purpose,
    )
    return RunSpec(
        run_id=run_id,
        plan=plan,
        space=space(),
        noise=noise or Noise(sketch_multiplier=2.0, train_multiplier=2.0),
    )


def make_order(
    spec: RunSpec | None = None,
    *,
    round_number: int = 0,
    attempt: int = 1,
    client: str = "site-a",
    inputs: tuple[ObjectRef, ...] = (),
    lease_s: float = 60.0,
) -> WorkOrder:
    spec = spec or make_spec()
    expected = expectation(spec, round_number)
    return WorkOrder(
        work_id=f"work-{spec.run_id}-{round_number}-{attempt}-{client}",
        run_id=spec.run_id,
        client_id=f"id-of-{client}",
        client=client,
        round_number=round_number,
        kind="sketch" if round_number == 0 else "train",
        attempt=attempt,
        lease_token=f"lease-{round_number}-{attempt}",
        lease_s=lease_s,
        spec=spec,
        spec_digest=spec.digest,
        event=spec.event(round_number),
        update_layout=expected.layout,
        max_update_bytes=expected.max_bytes,
        inputs=inputs,
    )


def make_plan(spec: RunSpec | None = None, **changes: Any) -> PlanOffer:
    """As a coordinator puts it; its epsilons are its own affair."""
    spec = spec or make_spec()
    values: dict[str, Any] = {
        "plan_id": f"plan-{spec.run_id}",
        "run_id": spec.run_id,
        "run": spec.plan.name,
        "client_id": "id-of-site-a",
        "client": "site-a",
        "joins": False,
        "rounds": spec.last_round + 1,
        "spec": spec,
        "spec_digest": spec.digest,
        "epsilon_plan": 1.0,
        "epsilon_spent": 0.0,
        "epsilon_after": 1.0,
        "delta": 1e-5,
        "state": "asked",
        "asked_at": "2026-03-01T12:00:00Z",
    }
    return PlanOffer.model_validate(values | changes)


def training_inputs(spec: RunSpec) -> tuple[dict[str, bytes], tuple[ObjectRef, ...]]:
    """A frame and initial weights in which site-a and another client have codes: their bytes by
    digest, and how an order names them. The same for the same spec.
    """
    draw = np.random.default_rng(5)
    sketches = [50 * draw.normal(size=sketch_layout(spec).size) for _ in range(2)]
    frame = build(spec, sketches, ["id-of-site-a", "id-of-b"], ["site-a", "b"])
    phi = initial_weights(spec)[train_layout(spec).places(shared_layout(spec))]
    bodies = {"frame": frame.to_bytes(spec.digest), "weights": pack_weights(spec, 0, phi, phi)}
    refs = tuple(
        ObjectRef(role=role, digest=digest_of_bytes(body), size=len(body))  # type: ignore[arg-type]
        for role, body in bodies.items()
    )
    return {digest_of_bytes(body): body for body in bodies.values()}, refs


def write_records(path: Path, *, n: int = 60, seed: int = 0) -> Path:
    """Clustered records as npz; the same for the same seed."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, CLASSES, n)
    x = np.eye(CLASSES, DIM)[y] + 0.2 * draw.normal(size=(n, DIM))
    np.savez(path, x=x.astype(np.float32), y=y)
    return path


def make_config(data: Path, **changes: Any) -> ClientConfig:
    values: dict[str, Any] = {
        "name": "site-a",
        "data": data,
        "unit": "record",
        "population": "a/all",
        "max_epsilon": 20.0,
        "delta": 1e-5,
        "min_noise_multiplier": 0.3,
    }
    return ClientConfig.model_validate(values | changes)


def make_site_config(state_dir: Path, *clients: ClientConfig) -> SiteConfig:
    return SiteConfig(site=SiteSection(state_dir=state_dir), client=clients)


def problem(status: int, code: str, **more: Any) -> httpx.Response:
    return httpx.Response(
        status,
        headers={"Content-Type": "application/problem+json", "X-Request-ID": "req-1"},
        content=json.dumps({"code": code, "status": status, "detail": f"detail of {code}", **more}),
    )


@dataclass
class Script:
    """A coordinator of one client: hands out orders, takes updates, remembers everything."""

    orders: list[WorkOrder] = field(default_factory=list)
    reissue: Callable[[int], WorkOrder] | None = None
    objects: dict[str, bytes] = field(default_factory=dict)
    puts: list[tuple[str, str, str]] = field(default_factory=list)  # (path, digest, lease)
    bodies: dict[str, bytes] = field(default_factory=dict)
    accepted: dict[str, str] = field(default_factory=dict)  # path -> digest
    failures: list[tuple[str, str]] = field(default_factory=list)  # (work_id, code)
    renewals: int = 0
    calls: list[str] = field(default_factory=list)
    before: Callable[[httpx.Request], httpx.Response | None] = lambda _: None
    after_put: Callable[[], None] = lambda: None
    # The version that it speaks; None: it knows nothing of versions and asks nobody.
    protocol: int | None = None
    plans: list[PlanOffer] = field(default_factory=list)
    said: list[ConsentDecision] = field(default_factory=list)
    me: Mapping[str, Any] = field(
        default_factory=lambda: {
            "id": "id-of-site-a", "name": "site-a", "space": "clusters",
            "population": "a/all", "unit": "record",
        }
    )  # fmt: skip

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.protocol is None:
            return self.answer_to(request)
        if self.protocol == 1 and request.headers[PROTOCOL_HEADER] != "1":
            answer = problem(400, "unsupported-protocol")  # as software of version 1 does it
        else:
            answer = self.answer_to(request)
        answer.headers[PROTOCOL_HEADER] = str(self.protocol)
        if self.protocol > 1:
            answer.headers[RANGE_HEADER] = f"{self.protocol - 1}-{self.protocol}"
        return answer

    def ask(self, spec: RunSpec | None = None, **changes: Any) -> PlanOffer:
        """Put a plan before site-a."""
        plan = make_plan(spec, **changes)
        self.plans.append(plan)
        return plan

    def answer_to(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.calls.append(f"{request.method} {path}")
        special = self.before(request)
        if special is not None:
            return special
        parts = path.strip("/").split("/")
        if request.method == "PUT":
            return self._put(request, path)
        match parts:
            case ["v1", "clients", "me"]:
                return httpx.Response(200, json=dict(self.me))
            case ["v1", "spaces", _]:
                return httpx.Response(
                    200, json={"id": "s1", "digest": "x", **space().model_dump(mode="json")}
                )
            case ["v1", "plans"] | ["v1", "clients", _, "plans"]:
                return self._plans(request)
            case ["v1", "runs", run_id, "consents"]:
                return self._decide(request, run_id)
            case ["v1", "clients", _, "work"] if (self.protocol or 1) > 1:
                return self._offer(request)
            case ["v1", "clients", _, "work"]:
                if not self.orders:
                    return httpx.Response(204)
                return httpx.Response(200, content=self.orders[0].model_dump_json())
            case ["v1", "work", work_id, "claim"]:
                found = next((o for o in self.orders if o.work_id == work_id), None)
                if found is None:
                    return problem(409, "work-gone")
                return httpx.Response(200, content=found.model_dump_json())
            case ["v1", "work", _, "renew"]:
                self.renewals += 1
                return httpx.Response(200, json={"lease_s": 60.0})
            case ["v1", "work", work_id, "fail"]:
                return self._fail(request, work_id)
            case ["v1", "objects", digest]:
                if digest not in self.objects:
                    return problem(404, "not-found")
                return httpx.Response(200, content=self.objects[digest])
        return problem(404, "not-found")

    def _plans(self, request: httpx.Request) -> httpx.Response:
        state = request.url.params.get("state")
        items = [p.model_dump(mode="json") for p in self.plans if state in (None, p.state)]
        return httpx.Response(200, json={"items": items, "next": None})

    def _offer(self, request: httpx.Request) -> httpx.Response:
        """An order of a run that nobody asked about or that was approved; else a plan."""
        asked = {plan.run_id: plan.state for plan in self.plans}
        ready = [o for o in self.orders if asked.get(o.run_id, "approved") == "approved"]
        if ready:
            offer: OfferedOrder | OfferedPlan = OfferedOrder(order=ready[0])
            return httpx.Response(200, content=offer.model_dump_json())
        seen = request.url.params.get_list("seen")
        for plan in self.plans:
            if plan.state == "asked" and plan.plan_id not in seen:
                return httpx.Response(200, content=OfferedPlan(plan=plan).model_dump_json())
        return httpx.Response(204)

    def _decide(self, request: httpx.Request, run_id: str) -> httpx.Response:
        said = ConsentDecision.model_validate_json(request.read())
        place = next(
            (i for i, p in enumerate(self.plans) if (p.run_id, p.client) == (run_id, said.client)),
            None,
        )
        if place is None:
            return problem(404, "not-found")
        plan, state = self.plans[place], {"approve": "approved", "refuse": "refused"}[said.decision]
        if plan.state not in ("asked", state):
            return problem(409, "conflict", mend="Leave the run.")
        self.said.append(said)
        self.plans[place] = plan.model_copy(update={"state": state})
        return httpx.Response(200, content=self.plans[place].model_dump_json())

    def _put(self, request: httpx.Request, path: str) -> httpx.Response:
        body = request.read()
        if path.endswith("/identity-key"):
            if self.protocol != SPOKEN.newest:
                return problem(404, "not-found")  # as software of before secure sums
            return httpx.Response(200, json={"client": "site-a", "key": None, "fingerprint": None})
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        self.puts.append((path, digest, request.headers[LEASE_HEADER]))
        self.bodies[digest] = body
        known = self.accepted.get(path)
        if known is not None and known != digest:
            return problem(409, "update-conflict")
        lease = request.headers[LEASE_HEADER]
        if known is None and all(order.lease_token != lease for order in self.orders):
            return problem(409, "lease-lost")
        self.accepted[path] = digest
        self.orders = [order for order in self.orders if order.lease_token != lease]
        self.after_put()
        _, _, run_id, _, number, _, update_id = path.strip("/").split("/")
        return httpx.Response(
            201,
            json={
                "update_id": update_id,
                "run_id": run_id,
                "round_number": int(number),
                "client_id": "id-of-site-a",
                "digest": digest,
                "size": len(body),
            },
        )

    def _fail(self, request: httpx.Request, work_id: str) -> httpx.Response:
        given = next((o for o in self.orders if o.work_id == work_id), None)
        if given is None or given.lease_token != request.headers[LEASE_HEADER]:
            return problem(409, "work-gone")
        code = json.loads(request.read())["code"]
        self.failures.append((work_id, code))
        self.orders = [order for order in self.orders if order.work_id != work_id]
        if code == "site-not-ready" and self.reissue is not None:
            self.orders.append(self.reissue(given.attempt + 1))
        return httpx.Response(204)

    def client(self, *, cache: ObjectCache | None = None) -> CoordinatorClient:
        return CoordinatorClient(
            "http://127.0.0.1:1",
            "fhv_client_secret",
            retry=FAST,
            cache=cache,
            transport=httpx.MockTransport(self),
        )

    def place(self, site: Site, *, patience_s: float = 0.0) -> Workplace:
        return Workplace(site, self.client(), compute=Compute(device="cpu"), patience_s=patience_s)
