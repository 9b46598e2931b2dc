"""Values of webhooks in the OpenAPI document. They are checked against the models by a test."""

from __future__ import annotations

from typing import Any

from api.examples import AT, RUN_ID

WEBHOOK_ID = "0199c0de-9999-7000-8000-000000000009"
EVENT_ID = "0199c0de-aaaa-7000-8000-00000000000a"
DELIVERY_ID = "0199c0de-bbbb-7000-8000-00000000000b"

NEW: dict[str, Any] = {
    "url": "https://alerts.example/fedhypevae",
    "events": ["round-stuck", "update-rejected"],
    "label": "on-call channel",
}
WEBHOOK: dict[str, Any] = {
    "id": WEBHOOK_ID,
    **NEW,
    "created_at": AT,
    "disabled_at": None,
    "disabled_why": "",
    "former_until": None,
}
MADE = {**WEBHOOK, "secret": "whsec_3q2+7wAbCdEfGhIjKlMnOpQrStUvWxYz0123456789A="}
ROTATED = {**MADE, "former_until": "2026-03-02T12:00:00Z"}
DISABLED = {**WEBHOOK, "disabled_at": AT, "disabled_why": "disabled by an administrator"}
DELIVERY: dict[str, Any] = {
    "id": DELIVERY_ID,
    "event_id": EVENT_ID,
    "type": "round-stuck",
    "data": {
        "run_id": RUN_ID,
        "round": 3,
        "state": "open",
        "why": "extended",
        "see": f"/v1/runs/{RUN_ID}/rounds/3",
    },
    "state": "dead",
    "attempts": 14,
    "due_at": None,
    "attempted_at": AT,
    "status": 500,
    "reason": "answered 500",
    "created_at": AT,
    "ended_at": AT,
}
PENDING = {
    **DELIVERY,
    "state": "pending",
    "attempts": 0,
    "due_at": AT,
    "ended_at": None,
}
PONG = {
    **DELIVERY,
    "type": "ping",
    "data": {"see": f"/v1/webhooks/{WEBHOOK_ID}"},
    "state": "delivered",
    "attempts": 1,
    "status": 204,
    "reason": "",
}
