"""The coordinator's HTTP operations as typed methods, apart from how bytes travel.

``worker.client.CoordinatorClient`` adds the transport. Operator and data-scientist calls return
plain JSON objects; whatever workers and agents exchange are the messages of ``core.wire``.
"""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel

from core.federation.plan import EmbeddingSpace, Plan
from core.wire.messages import (
    CONTENT_TYPE_TENSORS,
    AggregateJob,
    AggregateResult,
    ConsentDecision,
    JobFailure,
    LeaseRenewal,
    PlanOffer,
    UpdateReceipt,
    WorkFailure,
    WorkOrder,
)
from worker import parsing
from worker.answers import (
    A_WHILE,
    BRIEFLY,
    ONCE,
    Answer,
    Enrolment,
    JsonObject,
    Retry,
    SynthesisedTable,
    Timeouts,
)
from worker.errors import UnexpectedAnswer

PARQUET = "application/vnd.apache.parquet"


class Operations(ABC):
    """Every operation, over ``_send`` and ``_timeouts`` of the class that knows the transport."""

    _timeouts: Timeouts

    @abstractmethod
    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | Sequence[str]] | None = None,
        json: BaseModel | Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        lease: str | None = None,
        read_s: float | None = None,
        retry: Retry | None = None,
    ) -> Answer:
        """One request, retried as ``retry`` says. Raises a ``ClientError``."""

    # --- health ---

    def alive(self) -> JsonObject:
        return self._object("GET", "/healthz", retry=ONCE)

    def clock(self) -> datetime | None:
        """The coordinator's time, to the second; None if neither it nor a proxy says so."""
        said = self._send("GET", "/healthz", retry=ONCE).headers.get("date", "")
        try:
            return parsedate_to_datetime(said)
        except ValueError:
            return None

    def ready(self) -> JsonObject:
        return self._object("GET", "/readyz", retry=ONCE)

    # --- operators, auditors, data scientists ---

    def create_space(self, space: EmbeddingSpace) -> JsonObject:
        return self._object("POST", "/v1/spaces", json=space)

    def space(self, name: str) -> JsonObject:
        return self._object("GET", f"/v1/spaces/{path_part(name)}")

    def spaces(self, **query: str | int) -> JsonObject:
        return self._object("GET", "/v1/spaces", params=query)

    def enrol_client(
        self,
        *,
        name: str,
        space: str,
        site: str,
        population: str,
        unit: str,
        managed: bool,
        epsilon: float,
        delta: float,
        domain: str | None = None,
        idempotency_key: str | None = None,
    ) -> Enrolment:
        """Enrol a client. Without ``idempotency_key`` every call is a request of its own."""
        answer = self._object(
            "POST",
            "/v1/clients",
            json={
                "name": name,
                "space": space,
                "site": site,
                "population": population,
                "unit": unit,
                "managed": managed,
                "budget": {"epsilon": epsilon, "delta": delta},
                **({} if domain is None else {"domain": domain}),
            },
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
        )
        return Enrolment(client=answer["client"], token=answer.get("token"))

    def redeem_enrolment(self, code: str, token: str, agent: str) -> JsonObject:
        """Use a one-time code, or ask what has become of it. Needs no token."""
        body = {"code": code, "token": token, "agent": agent}
        return self._object("POST", "/v1/enrolments/redeem", json=body)

    def own_token(self) -> JsonObject:
        return self._object("GET", "/v1/tokens/me")

    def rotate_own_token(self, token: str, overlap_s: float) -> JsonObject:
        """Replace the token of this client by ``token``, which is kept already."""
        body = {"token": token, "overlap_s": overlap_s}
        return self._object("POST", "/v1/tokens/me/rotate", json=body)

    def clients(self, **query: str | int) -> JsonObject:
        return self._object("GET", "/v1/clients", params=query)

    def client(self, client_id: str) -> JsonObject:
        """One client; ``"me"`` with a client's own token."""
        return self._object("GET", f"/v1/clients/{path_part(client_id)}")

    def client_ledger(self, client_id: str) -> JsonObject:
        return self._object("GET", f"/v1/clients/{path_part(client_id)}/ledger")

    def client_ledger_table(self, client_id: str) -> str:
        """The ledger as CSV (RFC 4180, with its carriage returns)."""
        path = f"/v1/clients/{path_part(client_id)}/ledger.csv"
        headers = {"Accept": "text/csv, application/problem+json"}
        return self._send("GET", path, headers=headers).content.decode()

    def client_statement(self, client_id: str) -> JsonObject:
        """What the client's account has spent, run by run, with the accountant's version."""
        path = f"/v1/clients/{path_part(client_id)}/statement"
        return self._object("GET", path, read_s=self._timeouts.slow)

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

    def revoke_client(self, client_id: str, why: str) -> JsonObject:
        return self._object("POST", f"/v1/clients/{path_part(client_id)}/revoke", json={"why": why})

    def rejections(self, run_id: str, **query: str | int) -> JsonObject:
        path = f"/v1/runs/{path_part(run_id)}/rejections"
        return self._object("GET", path, params=query)

    def runs(self, **query: str | int) -> JsonObject:
        return self._object("GET", "/v1/runs", params=query)

    def run(self, run_id: str) -> JsonObject:
        return self._object("GET", f"/v1/runs/{path_part(run_id)}")

    def rounds(self, run_id: str, **query: str | int) -> JsonObject:
        return self._object("GET", f"/v1/runs/{path_part(run_id)}/rounds", params=query)

    def round(self, run_id: str, number: int) -> JsonObject:
        return self._object("GET", f"/v1/runs/{path_part(run_id)}/rounds/{number}")

    def joins(self, run_id: str, **query: str | int) -> JsonObject:
        return self._object("GET", f"/v1/runs/{path_part(run_id)}/joins", params=query)

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

    def tokens(self, **query: str | int) -> JsonObject:
        return self._object("GET", "/v1/tokens", params=query)

    def create_token(
        self,
        *,
        scope: str,
        label: str,
        client: str | None = None,
        expires_in_s: float | None = None,
    ) -> JsonObject:
        """A new token; its text is in this answer only. Asked once: a second try whose first
        answer was lost would leave a token that nobody has seen.
        """
        body = {"scope": scope, "label": label, "client": client, "expires_in_s": expires_in_s}
        return self._object("POST", "/v1/tokens", json=body, retry=ONCE)

    def revoke_token(self, token_id: str) -> JsonObject:
        return self._object("POST", f"/v1/tokens/{path_part(token_id)}/revoke")

    def events(self, **query: str | int | Sequence[str]) -> JsonObject:
        """One page of the audit trail (administrators and auditors)."""
        return self._object("GET", "/v1/events", params=query)

    def client_events(self, client_id: str, **query: str | int) -> JsonObject:
        return self._object("GET", f"/v1/clients/{path_part(client_id)}/events", params=query)

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

    def erase_updates(self, client_id: str) -> JsonObject:
        """Erase the stored bytes of a client's updates, but for those that a round needs."""
        path = f"/v1/clients/{path_part(client_id)}/updates"
        return self._object("DELETE", path, read_s=self._timeouts.slow)

    def model(self, run_id: str, round_number: int | Literal["latest"] = "latest") -> JsonObject:
        return self._object(
            "GET", f"/v1/runs/{path_part(run_id)}/model", params={"round": round_number}
        )

    def report(self, run_id: str, round_number: int | Literal["latest"] = "latest") -> JsonObject:
        """What the published model is, has cost and is worth: ``core.report.report.Report``."""
        path = f"/v1/runs/{path_part(run_id)}/report"
        asked = {"round": round_number, "format": "json"}
        return self._object("GET", path, params=asked, read_s=self._timeouts.slow)

    def report_page(self, run_id: str, round_number: int | Literal["latest"] = "latest") -> str:
        """The same as one HTML file."""
        path = f"/v1/runs/{path_part(run_id)}/report"
        asked = {"round": round_number, "format": "html"}
        headers = {"Accept": "text/html, application/problem+json"}
        answer = self._send("GET", path, params=asked, headers=headers, read_s=self._timeouts.slow)
        return answer.content.decode()

    def synthesize(self, request: BaseModel | Mapping[str, Any]) -> JsonObject:
        return self._object(
            "POST",
            "/v1/synthesize",
            json={**json_body(request), "format": "json"},
            read_s=self._timeouts.slow,
        )

    def synthesize_table(self, request: BaseModel | Mapping[str, Any]) -> SynthesisedTable:
        answer = self._send(
            "POST",
            "/v1/synthesize",
            json={**json_body(request), "format": "parquet"},
            headers={"Accept": f"{PARQUET}, application/problem+json"},
            read_s=self._timeouts.slow,
        )
        try:
            seed, model = int(answer.headers["x-fhv-seed"]), answer.headers["x-fhv-model"]
        except (KeyError, ValueError) as error:
            raise UnexpectedAnswer("the table came without X-FHV-Seed and X-FHV-Model") from error
        return SynthesisedTable(body=answer.content, seed=seed, model=model)

    def receipt(self, receipt_id: str) -> JsonObject:
        """The signed receipt of rows; with their content once all were made."""
        return self._object("GET", f"/v1/receipts/{path_part(receipt_id)}")

    def receipt_keys(self) -> JsonObject:
        return self._object("GET", "/v1/receipt-keys")

    # --- a client's work ---

    def next_work(
        self,
        client_id: str,
        *,
        wait_s: float = 25.0,
        run_id: str | None = None,
        seen: Sequence[str] = (),
    ) -> WorkOrder | PlanOffer | None:
        """Long poll for this client's next order (of one run), or for a plan that awaits its
        site's word and is not among ``seen``; None if there is neither in time.

        A coordinator of protocol 1 sends orders only. Not retried here: the agent's loop reconnects
        for ever and says so.
        """
        params: dict[str, str | int | Sequence[str]] = {"wait": round(wait_s)}
        if run_id is not None:
            params["run"] = run_id
        if seen:
            params["seen"] = list(seen)
        answer = self._send(
            "GET",
            f"/v1/clients/{path_part(client_id)}/work",
            params=params,
            read_s=wait_s + self._timeouts.poll_margin,
            retry=ONCE,
        )
        return None if answer.status == 204 else parsing.offer(answer)

    def plans(self, client_id: str | None = None, *, state: str | None = None) -> list[PlanOffer]:
        """Plans that were put before one client's site, or (a worker's token) before those of all
        managed clients; all pages.
        """
        path = "/v1/plans" if client_id is None else f"/v1/clients/{path_part(client_id)}/plans"
        found: list[PlanOffer] = []
        query: dict[str, str | int] = {} if state is None else {"state": state}
        while True:
            page = parsing.message(parsing.PlanPage, self._send("GET", path, params=query))
            found += page.items
            if page.next is None:
                return found
            query["after"] = page.next

    def decide(self, run_id: str, decision: ConsentDecision) -> PlanOffer:
        """Give a site's word on a run's plan. The same again changes nothing."""
        path = f"/v1/runs/{path_part(run_id)}/consents"
        return parsing.message(PlanOffer, self._send("POST", path, json=decision, retry=A_WHILE))

    def claim_work(self, work_id: str) -> WorkOrder:
        path = f"/v1/work/{path_part(work_id)}/claim"
        return parsing.order(self._send("POST", path, retry=BRIEFLY))

    def renew_work(self, work_id: str, lease_token: str) -> LeaseRenewal:
        path = f"/v1/work/{path_part(work_id)}/renew"
        return parsing.message(
            LeaseRenewal, self._send("POST", path, lease=lease_token, retry=ONCE)
        )

    def fail_work(self, work_id: str, lease_token: str, failure: WorkFailure) -> None:
        path = f"/v1/work/{path_part(work_id)}/fail"
        self._send("POST", path, lease=lease_token, json=failure, retry=A_WHILE)

    def put_update(
        self, *, run_id: str, round_number: int, update_id: str, lease_token: str, body: bytes
    ) -> UpdateReceipt:
        """Post an update; safe to repeat with the same id and bytes, for ever."""
        answer = self._send(
            "PUT",
            f"/v1/runs/{path_part(run_id)}/rounds/{round_number}/updates/{path_part(update_id)}",
            lease=lease_token,
            content=body,
            headers={"Content-Type": CONTENT_TYPE_TENSORS},
            retry=BRIEFLY,  # ``worker.delivery`` repeats the call for as long as it takes
        )
        return parsing.message(UpdateReceipt, answer)

    # --- the coordinator's own jobs ---

    def claim_job(self, job_id: str) -> AggregateJob:
        path = f"/v1/jobs/{path_part(job_id)}/claim"
        return parsing.message(AggregateJob, self._send("POST", path, retry=BRIEFLY))

    def renew_job(self, job_id: str, lease_token: str) -> LeaseRenewal:
        path = f"/v1/jobs/{path_part(job_id)}/renew"
        return parsing.message(
            LeaseRenewal, self._send("POST", path, lease=lease_token, retry=ONCE)
        )

    def complete_job(self, job_id: str, lease_token: str, result: AggregateResult) -> None:
        self._send("POST", f"/v1/jobs/{path_part(job_id)}/complete", lease=lease_token, json=result)

    def fail_job(self, job_id: str, lease_token: str, failure: JobFailure) -> None:
        self._send("POST", f"/v1/jobs/{path_part(job_id)}/fail", lease=lease_token, json=failure)

    def _object(self, method: str, path: str, **how: Any) -> JsonObject:
        answer = self._send(method, path, **how)
        try:
            value = json.loads(answer.content)
        except ValueError as error:
            raise UnexpectedAnswer(f"{answer.where}: the answer is not JSON") from error
        if not isinstance(value, dict):
            raise UnexpectedAnswer(f"{answer.where}: the answer is not a JSON object")
        return value


def path_part(value: str) -> str:
    """One path segment: an id from the other side can never reach into another path."""
    if value in ("", ".", ".."):
        raise UnexpectedAnswer(f"{value!r} is not an id")
    return quote(value, safe=":")


def json_body(value: BaseModel | Mapping[str, Any]) -> JsonObject:
    if isinstance(value, BaseModel):
        dumped: JsonObject = value.model_dump(mode="json")
        return dumped
    return dict(value)
