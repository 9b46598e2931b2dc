"""Operations on runs: planned, created, steered, looked at, recomputed."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from core.federation.plan import Plan
from worker.answers import JsonObject
from worker.operations.base import Operations, path_part


class Runs(Operations):
    """For administrators; auditors and data scientists may look, clients leave and join."""

    # --- made and steered ---

    def plan_budget(
        self,
        plan: Plan | Mapping[str, Any],
        clients: Sequence[str] = (),
        *,
        participants: int | None = None,
        rounds: Sequence[int] | None = None,
    ) -> JsonObject:
        """What a plan would cost these clients, and how many rounds are left. Creates nothing."""
        body = plan.model_dump(mode="json") if isinstance(plan, Plan) else dict(plan)
        asked = {"clients": list(clients), "participants": participants}
        return self._object(
            "POST",
            "/v1/planner",
            json={"plan": body, **asked, "rounds": None if rounds is None else list(rounds)},
            read_s=self._timeouts.slow,
        )

    def create_run(self, plan: Plan | Mapping[str, Any], clients: Sequence[str]) -> JsonObject:
        body = plan.model_dump(mode="json") if isinstance(plan, Plan) else dict(plan)
        return self._object(
            "POST",
            "/v1/runs",
            json={"plan": body, "clients": list(clients)},
            headers={"Idempotency-Key": uuid.uuid4().hex},
            read_s=self._timeouts.slow,  # the noise is calibrated while we wait
        )

    def start_run(self, run_id: str) -> JsonObject:
        return self._object("POST", f"/v1/runs/{path_part(run_id)}/start")

    def pause_run(self, run_id: str, seconds: float = 7 * 86_400.0) -> JsonObject:
        """No orders and no deadlines; cancelled unless it is resumed within ``seconds``."""
        path = f"/v1/runs/{path_part(run_id)}/pause"
        return self._object("POST", path, json={"seconds": seconds})

    def resume_run(self, run_id: str) -> JsonObject:
        return self._object("POST", f"/v1/runs/{path_part(run_id)}/resume")

    def cancel_run(self, run_id: str) -> JsonObject:
        return self._object("POST", f"/v1/runs/{path_part(run_id)}/cancel")

    def leave_run(self, run_id: str, client_id: str, why: str) -> JsonObject:
        """Take a client out of a run for good (its own token, or an administrator's)."""
        path = f"/v1/runs/{path_part(run_id)}/clients/{path_part(client_id)}/leave"
        return self._object("POST", path, json={"why": why})

    def release_client(self, run_id: str, client_id: str) -> JsonObject:
        path = f"/v1/runs/{path_part(run_id)}/clients/{path_part(client_id)}/release"
        return self._object("POST", path)

    def join(
        self, run_id: str, clients: Sequence[str], *, idempotency_key: str | None = None
    ) -> JsonObject:
        """Let clients join a completed run (a client's own token: that client)."""
        return self._object(
            "POST",
            f"/v1/runs/{path_part(run_id)}/joins",
            json={"clients": list(clients)},
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
        )

    # --- looked at ---

    def runs(self, **query: str | int) -> JsonObject:
        return self._object("GET", "/v1/runs", params=query)

    def run(self, run_id: str) -> JsonObject:
        return self._object("GET", f"/v1/runs/{path_part(run_id)}")

    def rounds(self, run_id: str, **query: str | int) -> JsonObject:
        return self._object("GET", f"/v1/runs/{path_part(run_id)}/rounds", params=query)

    def round(self, run_id: str, number: int) -> JsonObject:
        return self._object("GET", f"/v1/runs/{path_part(run_id)}/rounds/{number}")

    def rejections(self, run_id: str, **query: str | int) -> JsonObject:
        path = f"/v1/runs/{path_part(run_id)}/rejections"
        return self._object("GET", path, params=query)

    def joins(self, run_id: str, **query: str | int) -> JsonObject:
        return self._object("GET", f"/v1/runs/{path_part(run_id)}/joins", params=query)

    # --- recomputed ---

    def replay(self, run_id: str, round_number: int, *, wait_s: float = 0.0) -> JsonObject:
        """Have a published round recomputed; ``same`` says whether its bytes were found again."""
        return self._object(
            "POST",
            f"/v1/runs/{path_part(run_id)}/rounds/{round_number}/replay",
            params={"wait": round(wait_s)},
            headers={"Idempotency-Key": uuid.uuid4().hex},
            read_s=wait_s + self._timeouts.poll_margin,
        )

    def replay_result(
        self, run_id: str, round_number: int, replay_id: str, *, wait_s: float = 0.0
    ) -> JsonObject:
        path = f"/v1/runs/{path_part(run_id)}/rounds/{round_number}/replays/{path_part(replay_id)}"
        return self._object(
            "GET", path, params={"wait": round(wait_s)}, read_s=wait_s + self._timeouts.poll_margin
        )
