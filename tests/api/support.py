"""What the tests of the coordinator share: a driver that plays operator, site and worker.

Everything goes through HTTP against the real application on a real database; only time is moved
(``Coordinator.pass_time``) and the background tasks are called by hand (``sweep``).
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import numpy as np
from fastapi import FastAPI
from sqlalchemy import exists, select, text

from api import tokens
from api.context import Context
from api.db.run_models import Job, OutboxMessage, Round, WorkItem
from api.sweeper import Sweeper
from core.federation import plan
from core.federation.aggregate import aggregate
from core.federation.plan import RunSpec
from core.federation.updates import TENSOR, expectation
from core.wire import tensors
from core.wire.messages import CONTENT_TYPE_TENSORS, LEASE_HEADER, AggregateJob

# The real calibration, once a session for every plan that the tests use.
calibrate = functools.cache(plan.calibrate)

SPACE = {
    "name": "tiny",
    "backbone": "none",
    "weights_digest": "sha256:" + "0" * 64,
    "preprocessing": "none",
    "dim": 6,
    "classes": ["a", "b", "c"],
}


def a_plan(name: str = "run-1", **changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "name": name,
        "space": "tiny",
        "privacy": {
            "epsilon": 4.0,
            "delta": 1e-5,
            "n_max": 1000,
            "rounds": 1,
            "sample_rate": 1.0,
            "sketch_steps": 1,
        },
        "model": {
            "code_dim": 2,
            "trunk_width": 2,
            "latent_dim": 2,
            "hidden": 3,
            "encoder_hidden": 3,
            "basis_rank": 2,
        },
        "round": {"quorum": 2, "deadline_s": 100.0, "lease_s": 10.0, "max_attempts": 2},
    }
    for key, change in changes.items():
        value[key] = {**value.get(key, {}), **change} if isinstance(change, dict) else change
    return value


def update_body(spec: RunSpec, number: int, seed: int = 1, **metadata: str) -> bytes:
    """An update of a site without records: noise alone, which is what every update looks like."""
    expected = expectation(spec, number)
    vector = np.random.default_rng(seed).normal(0.0, expected.noise_std, expected.length)
    named = {"layout": expected.layout, **metadata}
    return tensors.pack({TENSOR: vector.astype(np.float32)}, named)


class Coordinator:
    """The application, its HTTP client, and everybody who calls it."""

    def __init__(self, app: FastAPI, http: httpx.AsyncClient) -> None:
        self.app = app
        self.http = http
        self.ctx: Context = app.state.context
        self.sweeper = Sweeper(self.ctx)
        self.tokens: dict[str, str] = {}
        self.clients: dict[str, str] = {}

    async def token(self, scope: str, client_id: str | None = None, **extra: Any) -> str:
        async with self.ctx.database.write() as session:
            _, secret = await tokens.issue(
                session,
                self.ctx.settings.pepper,
                scope=scope,
                label="test",
                client_id=UUID(client_id) if client_id else None,
                **extra,
            )
        return secret

    async def call(
        self, method: str, path: str, who: str | None = "admin", **options: Any
    ) -> httpx.Response:
        """As ``who``: a scope, a client's name, or None for nobody."""
        headers = dict(options.pop("headers", {}))
        if who is not None:
            if who not in self.tokens:
                self.tokens[who] = await self.token(who)
            headers["Authorization"] = f"Bearer {self.tokens[who]}"
        return await self.http.request(method, path, headers=headers, **options)

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, who: str, headers: dict[str, str], **options: Any
    ) -> AsyncIterator[httpx.Response]:
        """The answer as it comes; its body is not decoded."""
        self.tokens.setdefault(who, await self.token(who))
        headers = {"Authorization": f"Bearer {self.tokens[who]}", **headers}
        async with self.http.stream(method, path, headers=headers, **options) as answer:
            yield answer

    async def ok(self, method: str, path: str, who: str | None = "admin", **options: Any) -> Any:
        response = await self.call(method, path, who, **options)
        assert response.is_success, response.text
        return response.json() if response.content else None

    # --- operator ---

    async def enrol(
        self, *names: str, managed: bool = False, epsilon: float = 8.0, **changes: Any
    ) -> None:
        await self.ok("POST", "/v1/spaces", json=SPACE)
        for name in names:
            body = {
                "name": name,
                "space": "tiny",
                "site": f"hospital-{name}",
                "population": f"{name}/all",
                "unit": "record",
                "managed": managed,
                "budget": {"epsilon": epsilon, "delta": 1e-5},
                **changes,
            }
            made = await self.ok("POST", "/v1/clients", json=body)
            self.clients[name] = made["client"]["id"]
            if made["token"]:
                self.tokens[name] = made["token"]

    async def run(
        self, *names: str, start: bool = True, approved: bool = True, **changes: Any
    ) -> dict[str, Any]:
        """A run, approved by all its sites unless a test is about that."""
        body = {"plan": a_plan(**changes), "clients": list(names)}
        made = await self.ok("POST", "/v1/runs", json=body)
        if approved:
            await self.approve(made, *names)
        if start:
            await self.ok("POST", f"/v1/runs/{made['id']}/start")
            await self.sweep()
        return dict(made)

    async def consent(self, run: dict[str, Any], name: str, **changes: Any) -> httpx.Response:
        """What a client's site says, by its own token or, for a managed one, by the worker's."""
        body = {
            "client": name,
            "spec_digest": run["spec_digest"],
            "decision": "approve",
            "by": "policy",
            **changes,
        }
        who = name if name in self.tokens else "worker"
        return await self.call("POST", f"/v1/runs/{run['id']}/consents", who, json=body)

    async def approve(self, run: dict[str, Any], *names: str) -> None:
        for name in names:
            answer = await self.consent(run, name)
            assert answer.status_code == 200, answer.text

    # --- time and background ---

    async def sweep(self) -> None:
        await self.sweeper.sweep()

    def pass_time(self, seconds: float) -> None:
        self.ctx.database.clock_offset += timedelta(seconds=seconds)

    # --- sites ---

    async def poll(self, name: str) -> dict[str, Any] | None:
        response = await self.call("GET", f"/v1/clients/{self.clients[name]}/work", name)
        assert response.status_code in (200, 204), response.text
        return response.json() if response.status_code == 200 else None

    async def send(
        self,
        order: dict[str, Any],
        body: bytes | None = None,
        *,
        who: str | None = None,
        update_id: object = None,
        lease: str | None = None,
        **headers: str,
    ) -> httpx.Response:
        if body is None:
            spec = RunSpec.model_validate(order["spec"])
            body = update_body(spec, order["round_number"], seed=order["attempt"])
        return await self.call(
            "PUT",
            f"/v1/runs/{order['run_id']}/rounds/{order['round_number']}/updates/"
            f"{update_id or uuid4()}",
            who or order["client"],
            content=body,
            headers={
                LEASE_HEADER: order["lease_token"] if lease is None else lease,
                "Content-Type": CONTENT_TYPE_TENSORS,
                **headers,
            },
        )

    async def work(self, name: str, seed: int | None = None) -> dict[str, Any]:
        """Poll, train (noise only; the same noise for all, unless there is a seed) and send."""
        order = await self.poll(name)
        assert order is not None, f"no work for {name}"
        body = None
        if seed is not None:
            body = update_body(RunSpec.model_validate(order["spec"]), order["round_number"], seed)
        response = await self.send(order, body)
        assert response.status_code == 201, response.text
        return order

    # --- coordinator's worker ---

    async def rows(self, model: Any, *where: Any) -> list[Any]:
        async with self.ctx.database.read() as session:
            return list(await session.scalars(select(model).where(*where).order_by(model.id)))

    async def sql(self, statement: str, **values: Any) -> list[Any]:
        async with self.ctx.database.write() as session:
            result = await session.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    async def job(self) -> Job:
        """The one that somebody could claim; an abandoned round leaves its job behind."""
        (job,) = await self._jobs()
        return job

    async def _jobs(self) -> list[Job]:
        summing = (Round.run_id == Job.run_id) & (Round.number == Job.round_number)
        return await self.rows(
            Job,
            Job.kind == "aggregate",
            Job.state == "ready",
            exists().where(summing, Round.state == "aggregating"),
        )

    async def managed_work(self, name: str) -> list[WorkItem]:
        return await self.rows(WorkItem, WorkItem.client_id == UUID(self.clients[name]))

    async def messages(self, *tasks: str) -> list[OutboxMessage]:
        """What was announced: everything, or some tasks only."""
        found: list[OutboxMessage] = await self.rows(OutboxMessage)
        return [message for message in found if not tasks or message.task in tasks]

    async def aggregate(self) -> dict[str, Any]:
        """Claim the ready job, sum for real, complete it; the sweeper publishes."""
        await self.sweep()
        return await self._carry_out(await self.job())

    async def aggregate_any(self) -> None:
        """Sum every round that waits for it, of whatever run."""
        await self.sweep()
        for job in await self._jobs():
            await self._carry_out(job)

    async def _carry_out(self, job: Job) -> dict[str, Any]:
        claimed = await self.ok("POST", f"/v1/jobs/{job.id}/claim", "worker")
        result = self.sum(AggregateJob.model_validate(claimed))
        await self.ok(
            "POST",
            f"/v1/jobs/{job.id}/complete",
            "worker",
            json=result,
            headers={LEASE_HEADER: claimed["lease_token"]},
        )
        await self.sweep()
        return dict(claimed)

    def sum(self, job: AggregateJob) -> dict[str, Any]:
        made = aggregate(job, self.ctx.store.get)
        frame, weights = self.ctx.store.put(made.frame), self.ctx.store.put(made.weights)
        optimiser = self.ctx.store.put(made.optimiser)
        return {
            "frame": {"role": "frame", "digest": frame.digest, "size": frame.size},
            "weights": {"role": "weights", "digest": weights.digest, "size": weights.size},
            "optimiser_digest": optimiser.digest,
            "optimiser_size": optimiser.size,
            "diagnostics": made.diagnostics.model_dump(mode="json"),
        }

    async def finish(self, run: dict[str, Any], *names: str) -> dict[str, Any]:
        """All rounds with all clients, to the end; no two updates are the same bytes."""
        for number in range(run["rounds_planned"]):
            for place, name in enumerate(names):
                await self.work(name, seed=1 + number * len(names) + place)
            await self.aggregate()
        return dict(await self.ok("GET", f"/v1/runs/{run['id']}"))

    async def join(self, run: dict[str, Any], *names: str, who: str = "admin") -> dict[str, Any]:
        """Open a join round, approved by its sites, and hand out its work."""
        path, body = f"/v1/runs/{run['id']}/joins", {"clients": list(names)}
        made = await self.ok("POST", path, who, json=body)
        await self.approve(await self.ok("GET", f"/v1/runs/{run['id']}"), *names)
        await self.sweep()
        return dict(made)

    async def round(self, run: dict[str, Any], number: int) -> dict[str, Any]:
        return dict(await self.ok("GET", f"/v1/runs/{run['id']}/rounds/{number}"))

    async def ledger(self, name: str) -> dict[str, Any]:
        return dict(await self.ok("GET", f"/v1/clients/{self.clients[name]}/ledger"))

    async def kinds(self, name: str) -> list[str]:
        return [entry["kind"] for entry in (await self.ledger(name))["entries"]]


def problem(response: httpx.Response, status: int, code: str, field: str | None = None) -> Any:
    """Assert that an answer is this problem; give its body."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    body = response.json()
    assert (response.status_code, body["code"], body["status"]) == (status, code, status), body
    if field is not None:
        assert body.get("field") == field, body
    assert body["request_id"] == response.headers["X-Request-ID"]
    return body
