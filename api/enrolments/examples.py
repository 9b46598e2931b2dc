"""Examples of the OpenAPI document."""

from __future__ import annotations

from typing import Any

from api.examples import AT, CLIENT, CLIENT_NEW

_ID = "0199c0de-0000-7000-8000-00000000e001"
_CODE = "7K3WQ-M0ZT4-HX2PN-9RB6D-CVE1M"
_PRINT = "4F7K-92QD"

NEW: dict[str, Any] = {"client": {**CLIENT_NEW, "managed": False}, "expires_in_s": 604_800}
OPEN: dict[str, Any] = {
    "id": _ID,
    "state": "open",
    "name": CLIENT["name"],
    "client": {**CLIENT_NEW, "managed": False},
    "client_id": None,
    "approval": "administrator",
    "token_days": 180.0,
    "created_at": AT,
    "expires_at": AT,
    "redeemed_at": None,
    "fingerprint": None,
    "agent": "",
    "address": "",
    "decided_at": None,
    "why": "",
}
MADE = {**OPEN, "code": _CODE}
WAITING = {
    **OPEN,
    "state": "waiting",
    "redeemed_at": AT,
    "fingerprint": _PRINT,
    "agent": "fedhypevae 0.1.0 on research-3",
    "address": "198.51.100.7",
}
APPROVED = {**WAITING, "state": "approved", "client_id": CLIENT["id"], "decided_at": AT}
REFUSED = {**WAITING, "state": "refused", "decided_at": AT, "why": "nobody there knows of it"}
APPROVAL = {"fingerprint": _PRINT}
REFUSAL = {"why": REFUSED["why"]}
REDEMPTION = {"code": _CODE, "agent": WAITING["agent"]}
REDEEMED = {
    "id": _ID,
    "state": "waiting",
    "why": "",
    "fingerprint": _PRINT,
    "client": None,
    "token": None,
    "token_expires_at": None,
}
