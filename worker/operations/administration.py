"""Operations of administrators and auditors: spaces, clients, codes, tokens, ledgers, the trail."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from core.federation.plan import EmbeddingSpace
from worker.answers import ONCE, Enrolment, JsonObject
from worker.operations.base import Operations, path_part


class Administration(Operations):
    """Who takes part and who may call, and what each has spent. A client's own token may ask for
    its own: its id or ``"me"``.
    """

    # --- embedding spaces ---

    def create_space(self, space: EmbeddingSpace) -> JsonObject:
        return self._object("POST", "/v1/spaces", json=space)

    def space(self, name: str) -> JsonObject:
        return self._object("GET", f"/v1/spaces/{path_part(name)}")

    def spaces(self, **query: str | int) -> JsonObject:
        return self._object("GET", "/v1/spaces", params=query)

    # --- clients ---

    def remove_identity_key(self, client_id: str) -> None:
        """So that the client's site can register another. Refused while it signs in a run."""
        self._send("DELETE", f"/v1/clients/{path_part(client_id)}/identity-key")

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

    def clients(self, **query: str | int) -> JsonObject:
        return self._object("GET", "/v1/clients", params=query)

    def client(self, client_id: str) -> JsonObject:
        """One client; ``"me"`` with a client's own token."""
        return self._object("GET", f"/v1/clients/{path_part(client_id)}")

    def revoke_client(self, client_id: str, why: str) -> JsonObject:
        return self._object("POST", f"/v1/clients/{path_part(client_id)}/revoke", json={"why": why})

    def erase_updates(self, client_id: str) -> JsonObject:
        """Erase the stored bytes of a client's updates, but for those that a round needs."""
        path = f"/v1/clients/{path_part(client_id)}/updates"
        return self._object("DELETE", path, read_s=self._timeouts.slow)

    # --- enrolments ---

    def issue_code(
        self,
        client: Mapping[str, Any] | None = None,
        *,
        existing: str | None = None,
        automatic: bool = False,
        expires_in_s: float | None = None,
        token_days: float | None = None,
    ) -> JsonObject:
        """A one-time code for a site: of a new client, or of an ``existing`` one. The code is in
        this answer only, hence asked once, as a token is.
        """
        body = {
            "client": None if client is None else dict(client),
            "existing": existing,
            "approval": "automatic" if automatic else "administrator",
            "expires_in_s": expires_in_s,
            "token_days": token_days,
        }
        given = {key: value for key, value in body.items() if value is not None}
        return self._object("POST", "/v1/enrolments", json=given, retry=ONCE)

    def enrolments(self, **query: str | int) -> JsonObject:
        return self._object("GET", "/v1/enrolments", params=query)

    def approve_enrolment(self, enrolment_id: str, fingerprint: str | None = None) -> JsonObject:
        """Let a site in; refused if it has redeemed a token of another ``fingerprint``."""
        path = f"/v1/enrolments/{path_part(enrolment_id)}/approve"
        return self._object("POST", path, json={"fingerprint": fingerprint})

    def refuse_enrolment(self, enrolment_id: str, why: str) -> JsonObject:
        """Refuse a site that has redeemed its code, or withdraw a code that nobody has used."""
        path = f"/v1/enrolments/{path_part(enrolment_id)}/refuse"
        return self._object("POST", path, json={"why": why})

    # --- what was spent ---

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

    # --- tokens ---

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

    # --- the audit trail ---

    def events(self, **query: str | int | Sequence[str]) -> JsonObject:
        """One page of the audit trail (administrators and auditors)."""
        return self._object("GET", "/v1/events", params=query)

    def client_events(self, client_id: str, **query: str | int) -> JsonObject:
        return self._object("GET", f"/v1/clients/{path_part(client_id)}/events", params=query)
