"""Operations of a site: coming in, its token, its word on plans, work and updates."""

from __future__ import annotations

from collections.abc import Sequence

from core.wire.messages import (
    CONTENT_TYPE_TENSORS,
    ConsentDecision,
    LeaseRenewal,
    PlanOffer,
    UpdateReceipt,
    WorkFailure,
    WorkOrder,
)
from core.wire.secure import (
    CONTENT_TYPE_MASKED,
    IdentityKey,
    Peer,
    StepAnswer,
    StepDecline,
    StepReceipt,
    SumStep,
)
from worker import parsing
from worker.answers import A_WHILE, BRIEFLY, ONCE, JsonObject
from worker.operations.base import Operations, path_part


class SiteWork(Operations):
    """For a client's agent; the worker of managed clients uses all but the first."""

    # --- coming in ---

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

    # --- plans ---

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

    # --- work ---

    def next_work(
        self,
        client_id: str,
        *,
        wait_s: float = 25.0,
        run_id: str | None = None,
        seen: Sequence[str] = (),
    ) -> WorkOrder | SumStep | PlanOffer | None:
        """Long poll for this client's next order (of one run), for a step of a secure sum, or for a
        plan that awaits its site's word and is not among ``seen``; None if there is none in time.

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
        self,
        *,
        run_id: str,
        round_number: int,
        update_id: str,
        lease_token: str,
        body: bytes,
        masked: bool = False,
    ) -> UpdateReceipt:
        """Post an update, or the masked vector of a secure sum; safe to repeat with the same id and
        bytes, for ever.
        """
        answer = self._send(
            "PUT",
            f"/v1/runs/{path_part(run_id)}/rounds/{round_number}/updates/{path_part(update_id)}",
            lease=lease_token,
            content=body,
            headers={"Content-Type": CONTENT_TYPE_MASKED if masked else CONTENT_TYPE_TENSORS},
            retry=BRIEFLY,  # ``worker.delivery`` repeats the call for as long as it takes
        )
        return parsing.message(UpdateReceipt, answer)

    # --- secure sums ---

    def sum_step(self, step_id: str) -> SumStep:
        """A step that a message has announced."""
        path = f"/v1/secure-steps/{path_part(step_id)}"
        return parsing.message(SumStep, self._send("GET", path, retry=BRIEFLY))

    def answer_step(self, step_id: str, answer: StepAnswer) -> StepReceipt:
        """Safe to repeat with the same answer."""
        path = f"/v1/secure-steps/{path_part(step_id)}"
        return parsing.message(StepReceipt, self._send("PUT", path, json=answer, retry=A_WHILE))

    def decline_step(self, step_id: str, decline: StepDecline) -> None:
        path = f"/v1/secure-steps/{path_part(step_id)}/decline"
        self._send("POST", path, json=decline, retry=A_WHILE)

    def put_identity_key(self, client_id: str, key: str) -> None:
        """Tell by which key others shall know this client. Another one than before is refused."""
        path = f"/v1/clients/{path_part(client_id)}/identity-key"
        self._send("PUT", path, json=IdentityKey(key=key), retry=A_WHILE)

    def peers(self, run_id: str) -> list[Peer]:
        """A run's clients and the keys that the coordinator has for them."""
        answer = self._send("GET", f"/v1/runs/{path_part(run_id)}/peers")
        return parsing.messages(Peer, answer)
