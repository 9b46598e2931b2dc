"""Values shown in the OpenAPI document. They are checked against the models by a test."""

from __future__ import annotations

from typing import Any

from api.examples import CLIENT_ID, FRAME, RUN_ID, RUN_SPEC, SPEC, WEIGHTS

SITES = ["site-a", "site-b", "site-c", "site-d"]
STEP_ID = "0199c0de-bbbb-7000-8000-00000000000b"
KEY = "3d" * 32
IDENTITY = {"key": KEY}
PEER = {
    "client": "site-b",
    "key": KEY,
    "fingerprint": "9f1c 04ab 77d2 3e10 5b6a c8f4 0d91 e2b7",
}
ADVERT = {
    "site": "site-a",
    "sealing_key": "1a" * 32,
    "masking_key": "2b" * 32,
    "signature": "4c" * 64,
}
ANSWER = {"advert": ADVERT}
DECLINE = {"code": "site-not-ready"}
RECEIPT = {"step_id": STEP_ID, "step": "keys"}
STEP: dict[str, Any] = {
    "step_id": STEP_ID,
    "run_id": RUN_ID,
    "client_id": CLIENT_ID,
    "client": "site-a",
    "round_number": 3,
    "step": "confirm",
    "spec": RUN_SPEC,
    "spec_digest": SPEC,
    "session": {
        "plan": SPEC,
        "inputs": [f"frame={FRAME}", f"weights={WEIGHTS}"],
        "run_id": RUN_ID,
        "round_number": 3,
        "attempt": 1,
        "sites": SITES,
        "drop": 0,
        "collude": 1,
        "length": 34816,
        "bits": 24,
    },
    "deadline": "2026-03-01T12:05:00Z",
    "roster": [],
    "survivors": SITES,
    "attestations": [{"site": site, "signature": "6e" * 64} for site in SITES],
    "confirmations": [],
}
OFFERED_STEP = {"type": "step", "step": STEP}
