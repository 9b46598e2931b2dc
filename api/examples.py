"""Values shown in the OpenAPI document. They are checked against the models by a test."""

from __future__ import annotations

import json
from typing import Any

RUN_ID = "0199c0de-1111-7000-8000-000000000001"
CLIENT_ID = "0199c0de-2222-7000-8000-000000000002"
WORK_ID = "0199c0de-3333-7000-8000-000000000003"
PLAN_ID = "0199c0de-8888-7000-8000-000000000008"
JOB_ID = "0199c0de-4444-7000-8000-000000000004"
UPDATE_ID = "0199c0de-5555-7000-8000-000000000005"
KEY_ID = "0199c0de-6666-7000-8000-000000000006"
ACCOUNT_ID = "0199c0de-7777-7000-8000-000000000007"
AT = "2026-03-01T12:00:00Z"
LEASE = f"{WORK_ID}.1.8f0c"
FRAME = "sha256:" + "a1" * 32
WEIGHTS = "sha256:" + "b2" * 32
OPTIMISER = "sha256:" + "c3" * 32
UPDATE = "sha256:" + "d4" * 32
LAYOUT = "sha256:" + "e5" * 32
SPEC = "sha256:" + "f6" * 32

SPACE: dict[str, Any] = {
    "name": "lite0-digits",
    "backbone": "efficientnet-lite0",
    "weights_digest": "sha256:" + "0a" * 32,
    "preprocessing": "grey to rgb, 224 px bilinear, ImageNet mean and deviation",
    "dim": 1280,
    "classes": ["zero", "one", "two"],
}
SPACE_VIEW = {"id": ACCOUNT_ID, "digest": LAYOUT, "created_at": AT, **SPACE}

CLIENT_NEW: dict[str, Any] = {
    "name": "site-a",
    "space": "lite0-digits",
    "site": "hospital-a",
    "population": "hospital-a/inpatients",
    "unit": "record",
    "managed": False,
    "budget": {"epsilon": 8.0, "delta": 1e-5},
}
CLIENT = {
    "id": CLIENT_ID,
    "account_id": ACCOUNT_ID,
    "created_at": AT,
    "revoked_at": None,
    **CLIENT_NEW,
}
ENROLLED = {
    "client": CLIENT,
    "token": "fhv_client_3q2-7wAbCdEfGhIjKlMnOpQrStUvWxYz0123456789A",
    "note": "The token is shown once. Keep it on the site's machine.",
}

TOKEN_NEW = {"scope": "scientist", "label": "notebook of ada"}
TOKEN = {
    "id": KEY_ID,
    "scope": "scientist",
    "label": "notebook of ada",
    "client_id": None,
    "created_at": AT,
    "expires_at": None,
    "revoked_at": None,
    "renewable": False,
    "replaced_by": None,
}
OWN_TOKEN = {**TOKEN, "lifetime_s": None, "expires_in_s": None}
TOKEN_ROTATION = {"overlap_s": 3600}
TOKEN_ROTATED = {**TOKEN, "token": "fhv_scientist_Zm9vYmFyYmF6cXV4cXV1eGNvcmdlZ3JhdWx0Z2FycGx5"}
TOKEN_MADE = {**TOKEN, "token": "fhv_scientist_3q2-7wAbCdEfGhIjKlMnOpQrStUvWxYz0123456789A"}

PLAN: dict[str, Any] = {
    "name": "digits-1",
    "space": "lite0-digits",
    "privacy": {"epsilon": 4.0, "delta": 1e-5, "n_max": 5000, "rounds": 10},
    "round": {"quorum": 2, "deadline_s": 3600},
}
# What the coordinator makes of it: the split of the budget is chosen.
PLAN_CHOSEN: dict[str, Any] = {
    **PLAN,
    "privacy": {
        **PLAN["privacy"],
        "sketch_steps": 2,
        "mean_share": 0.35,
        "refine_share": 0.35,
        "sketch_share": 0.674,
        "validation_share": 0.0,
    },
}
RUN_NEW = {"plan": PLAN, "clients": ["site-a", "site-b"]}
RUN_SPEC: dict[str, Any] = {
    "protocol": 1,
    "run_id": RUN_ID,
    "plan": PLAN_CHOSEN,
    "space": SPACE,
    "noise": {
        "sketch_multiplier": 2.5832,
        "spread_multiplier": 1.8956,
        "train_multiplier": 4.8378,
    },
}
RUN = {
    "id": RUN_ID,
    "name": "digits-1",
    "state": "running",
    "why": "",
    "spec": RUN_SPEC,
    "spec_digest": SPEC,
    "paused_until": None,
    "clients": ["site-a", "site-b"],
    "clients_total": 2,
    "seats": [
        {
            "client": name,
            "client_id": CLIENT_ID,
            "state": "taking-part",
            "consent": "approved",
            "why": "",
        }
        for name in ("site-a", "site-b")
    ],
    "epsilon_planned": 3.9998,
    "current_round": 3,
    "rounds_published": 3,
    "rounds_planned": 12,
    "joins_published": 0,
    "created_at": AT,
    "started_at": AT,
    "finished_at": None,
}
RUN_PAUSED = {
    **RUN,
    "state": "paused",
    "why": "paused by the operator",
    "paused_until": "2026-03-08T12:00:00Z",
}
RUN_CANCELLED = {**RUN, "state": "cancelled", "why": "stopped by the operator", "finished_at": AT}
PAUSE = {"seconds": 604800.0}
DEPARTURE = {"why": "the study has ended"}
FRAME_REF = {"role": "frame", "digest": FRAME, "size": 262144}
WEIGHTS_REF = {"role": "weights", "digest": WEIGHTS, "size": 131072}
ROUND = {
    "run_id": RUN_ID,
    "number": 3,
    "kind": "train",
    "state": "open",
    "why": "1 of 2 updates, quorum 2; working: site-b; until 2026-03-01T13:00:00Z",
    "quorum": 2,
    "deadline": "2026-03-01T13:00:00Z",
    "extended": False,
    "updates_accepted": 1,
    "missing_clients": ["site-b"],
    "outliers": [],
    "clients": [
        {"client": "site-a", "standing": "accepted", "attempt": 1, "until": None, "why": ""},
        {
            "client": "site-b",
            "standing": "leased",
            "attempt": 1,
            "until": "2026-03-01T12:10:00Z",
            "why": "",
        },
    ],
    "created_at": AT,
    "opened_at": AT,
    "closed_at": None,
    "published_at": None,
    "frame": None,
    "weights": None,
}
REJECTION = {
    "id": KEY_ID,
    "run_id": RUN_ID,
    "round": 3,
    "client": "site-a",
    "update_id": UPDATE_ID,
    "digest": UPDATE,
    "size": 132312,
    "code": "update-noise-implausible",
    "reason": "the null coordinates carry 0.5 times the promised noise",
    "quarantined": True,
    "at": AT,
}
JOIN_NEW = {"clients": ["site-c"]}
JOIN = {
    "run_id": RUN_ID,
    "round": 11,
    "state": "open",
    "why": "0 of 1 updates, quorum 1; not yet claimed: site-c; until 2026-03-01T13:00:00Z",
    "clients": ["site-c"],
    "members": [
        {"client": "site-c", "standing": "waiting", "attempt": 1, "until": None, "why": ""}
    ],
    "deadline": "2026-03-01T13:00:00Z",
    "created_at": AT,
    "published_at": None,
    "frame": None,
}
EVENT_ID = "0199c0de-8888-7000-8000-000000000008"
REPLAY_ID = "0199c0de-9999-7000-8000-000000000009"
EVENT_VIEW = {
    "id": EVENT_ID,
    "at": AT,
    "kind": "update-accepted",
    "actor": "client",
    "token_id": KEY_ID,
    "run_id": RUN_ID,
    "round": 3,
    "client_id": CLIENT_ID,
    "request_id": "5f0c2f0e-9d55-4a55-8f0e-5b8d0c6b1d11",
    "detail": {"digest": UPDATE, "attempt": 1},
}
PROGRESS = {
    "run_id": RUN_ID,
    "name": "digits-1",
    "state": "running",
    "why": "",
    "rounds_published": 3,
    "rounds_planned": 12,
    "round": ROUND,
}
END = {"state": "completed", "why": ""}
FEED = (
    f"retry: 2000\n\nid: {EVENT_ID}\nevent: state\ndata: {json.dumps(PROGRESS)}\n\n"
    f"id: {EVENT_ID}\nevent: update-accepted\ndata: {json.dumps(EVENT_VIEW)}\n\n"
    f": heartbeat\n\nevent: end\ndata: {json.dumps(END)}\n\n"
)
REPLAY: dict[str, Any] = {
    "id": REPLAY_ID,
    "run_id": RUN_ID,
    "round": 3,
    "state": "waiting",
    "why": "waits for a worker of the queue coordinator",
    "same": None,
    "files": [
        {"file": "frame", "expected": FRAME, "found": None},
        {"file": "weights", "expected": WEIGHTS, "found": None},
        {"file": "optimiser", "expected": OPTIMISER, "found": None},
    ],
    "attempt": 0,
    "created_at": AT,
    "finished_at": None,
}
ERASED = {
    "client": "site-a",
    "erased": 41,
    "kept": [
        {
            "run_id": RUN_ID,
            "round": 3,
            "why": "the round is open and needs it; ask again once it has ended",
        }
    ],
}
EVENT = {
    "mechanism": "gaussian",
    "noise_multiplier": 4.8378,
    "sample_rate": 1.0,
    "steps": 1,
    "relation": "add-remove-one-unit",
    "unit": "record",
}
ORDER = {
    "work_id": WORK_ID,
    "run_id": RUN_ID,
    "client_id": CLIENT_ID,
    "client": "site-a",
    "round_number": 3,
    "kind": "train",
    "attempt": 1,
    "lease_token": LEASE,
    "lease_s": 600.0,
    "spec": RUN_SPEC,
    "spec_digest": SPEC,
    "event": EVENT,
    "update_layout": LAYOUT,
    "max_update_bytes": 139264,
    "inputs": [FRAME_REF, WEIGHTS_REF],
}
PLAN_OFFER: dict[str, Any] = {
    "plan_id": PLAN_ID,
    "run_id": RUN_ID,
    "run": "digits-1",
    "client_id": CLIENT_ID,
    "client": "site-a",
    "joins": False,
    "rounds": 12,
    "spec": RUN_SPEC,
    "spec_digest": SPEC,
    "epsilon_plan": 3.9998,
    "epsilon_spent": 2.1,
    "epsilon_after": 4.83,
    "delta": 1e-5,
    "state": "asked",
    "decided_by": None,
    "decided_at": None,
    "why": "",
    "round_number": 0,
    "deadline": "2026-03-01T13:00:00Z",
    "asked_at": AT,
}
PLAN_APPROVED: dict[str, Any] = {
    **PLAN_OFFER,
    "state": "approved",
    "decided_by": "person",
    "decided_at": AT,
    "why": "ethics vote 12/2026",
    "round_number": None,
    "deadline": None,
}
CONSENT = {
    "client": "site-a",
    "spec_digest": SPEC,
    "decision": "approve",
    "by": "person",
    "why": "ethics vote 12/2026",
}
OFFERED_ORDER = {"type": "order", "order": ORDER}
OFFERED_PLAN = {"type": "plan", "plan": PLAN_OFFER}
RENEWAL = {"lease_s": 600.0}
FAILURE = {"code": "site-not-ready"}
RECEIPT = {
    "update_id": UPDATE_ID,
    "run_id": RUN_ID,
    "round_number": 3,
    "client_id": CLIENT_ID,
    "digest": UPDATE,
    "size": 135168,
}
JOB = {
    "job_id": JOB_ID,
    "lease_token": f"{JOB_ID}.1.8f0c",
    "lease_s": 120.0,
    "run_id": RUN_ID,
    "round_number": 3,
    "kind": "train",
    "spec": RUN_SPEC,
    "updates": [{"client_id": CLIENT_ID, "client": "site-a", "digest": UPDATE}],
    "frame": FRAME,
    "weights": WEIGHTS,
    "optimiser": OPTIMISER,
}
JOB_RESULT = {
    "frame": FRAME_REF,
    "weights": WEIGHTS_REF,
    "optimiser_digest": OPTIMISER,
    "optimiser_size": 262144,
    "diagnostics": {
        "clients": [
            {"client_id": CLIENT_ID, "norm": 41.7, "z": 0.0},
        ],
        "outliers": [],
    },
}
JOB_FAILURE = {"code": "object-missing", "detail": "no object sha256:d4..."}
SPENT = {"client": "site-a", "epsilon": 3.2, "delta": 1e-5, "unit": "record"}
MODEL = {
    "run_id": RUN_ID,
    "round": 3,
    "spec_digest": SPEC,
    "frame": FRAME_REF,
    "weights": WEIGHTS_REF,
    "clients": ["site-a", "site-b"],
    "per_client": [SPENT, {**SPENT, "client": "site-b"}],
    "premise": "none",
    "relation": "add-remove-one-unit",
    "noise_mode": "csprng",
}
LEDGER = {
    "client": "site-a",
    "account": {"site": "hospital-a", "population": "hospital-a/inpatients", "unit": "record"},
    "budget": {"epsilon": 8.0, "delta": 1e-5},
    "epsilon_committed": 3.2,
    "epsilon_reserved": 0.03,
    "epsilon_total": 3.23,
    "premise": "none",
    "delta": 1e-5,
    "entries": [
        {
            "id": ACCOUNT_ID,
            "kind": "reserve",
            "client": "site-a",
            "event": EVENT,
            "reserve_id": None,
            "run_id": RUN_ID,
            "round": 3,
            "attempt": 1,
            "at": AT,
        }
    ],
}
LEDGER_TABLE = (
    "at,entry,kind,reservation,client,site,population,run,round,attempt,mechanism,noise_multiplier,"
    "sample_rate,steps,relation,unit,collude\r\n"
    f"{AT},{ACCOUNT_ID},reserve,{ACCOUNT_ID},site-a,hospital-a,hospital-a/inpatients,{RUN_ID},3,1,"
    "gaussian,4.5,1.0,1,add-remove-one-unit,record,\r\n"
)
EPSILONS = {"committed": 0.94, "lost": 0.2, "open": 0.0, "charged": 0.98, "total": 0.98}
STATEMENT: dict[str, Any] = {
    "client": "site-a",
    "clients": ["site-a"],
    "account": LEDGER["account"],
    "budget": LEDGER["budget"],
    "delta": 1e-5,
    "relation": "add-remove-one-unit",
    "accountant": {
        "method": "privacy loss distributions (PLDAccountant)",
        "package": "dp-accounting",
        "version": "0.6.0",
    },
    "computed_at": AT,
    "epsilon": EPSILONS,
    "runs": [
        {
            "run_id": RUN_ID,
            "run": "digits-1",
            "spec_digest": SPEC,
            "rounds": 1,
            "attempts": 2,
            "committed": 1,
            "lost": 1,
            "open": 0,
            "epsilon": EPSILONS,
            "events": [{"event": EVENT, "committed": 1, "lost": 1, "open": 0}],
            "lost_reservations": [
                {
                    "client": "site-a",
                    "round": 3,
                    "attempt": 1,
                    "reason": "the lease ended without an update",
                    "reserved_at": AT,
                    "lost_at": AT,
                    "event": EVENT,
                }
            ],
        }
    ],
}
PLANNER = {"plan": PLAN, "clients": ["site-a"], "participants": 2, "rounds": [10, 40]}
NOISE_FOR_10 = {
    "rounds": 10, "participations": 10, "possible": True, "train_multiplier": 4.31, "why": "",
}  # fmt: skip
NOISE_FOR_40 = {**NOISE_FOR_10, "rounds": 40, "participations": 40, "train_multiplier": 8.6}
PLANNED: dict[str, Any] = {
    "plan": {
        "epsilon": 3.9998,
        "delta": 1e-5,
        "rounds": 10,
        "participations": 10,
        "participants": 2,
        "noise": RUN_SPEC["noise"],
    },
    "fits": True,
    "clients": [
        {
            "client": "site-a",
            "budget": {"epsilon": 8.0, "delta": 1e-5},
            "epsilon_spent": 1.2,
            "epsilon_after": 4.4,
            "fits": True,
            "rounds_left": 87,
            "lost_attempts": {"sketch": 12, "spread": 6, "train": 77},
            "noise": [NOISE_FOR_10, NOISE_FOR_40],
            "premise": "none",
        }
    ],
    "noise": [
        {**NOISE_FOR_10, "limited_by": "site-a"},
        {**NOISE_FOR_40, "limited_by": "site-a"},
    ],
}
SYNTHESIS = {
    "run": "digits-1",
    "mixture": {"site-a": 0.7, "site-b": 0.3},
    "n": 2,
    "seed": 7,
}
RECEIPT_ID = "rcp_" + "9c56cc51b374c3ba" * 2
SIGNING_KEY = "5f0d1a9c7e34b286"
ROWS_CONTENT = {"algorithm": "fhv-rows-1", "n": 2, "digest": "sha256:" + "07" * 32}
MADE_WITH = {
    "fedhypevae": "0.1.0",
    "numpy": "2.4.6",
    "instruction_set": "x86_64 Haswell X86_V3",
}
SIGNED_RECEIPT: dict[str, Any] = {
    "id": RECEIPT_ID,
    "receipt": {
        "version": 1,
        "model": {
            "run_id": RUN_ID,
            "run": "digits-1",
            "round": 3,
            "plan_digest": SPEC,
            "frame_digest": FRAME,
            "weights_digest": WEIGHTS,
        },
        "asked": {
            "mixture": {"site-a": 0.7, "site-b": 0.3},
            "mode": "blend",
            "n": 2,
            "labels": "model",
            "class_counts": None,
            "temperature": 1.0,
            "guidance": "model",
            "seed": 7,
        },
        "n": 2,
        "codes": [{"domain": "blend", "share": 1.0, "code_id": "9c56cc51b374c3ba"}],
        "labels_by": "trained classifier",
        "per_client": [SPENT, {**SPENT, "client": "site-b"}],
        "relation": "add-remove-one-unit",
        "noise_mode": "csprng",
        "label": "",
        "caveat": "",
        "withdrawn": [],
        "made_with": MADE_WITH,
        "content": ROWS_CONTENT,
    },
    "key_id": SIGNING_KEY,
    "algorithm": "ed25519",
    "signature": "c2lnbmVk" * 11,
}
SYNTHESIS_JOB = {
    "id": JOB_ID,
    "state": "leased",
    "why": "a worker makes rows",
    "run": "digits-1",
    "run_id": RUN_ID,
    "round": 3,
    "format": "parquet",
    "request": {"run": RUN_ID, "round": 3, "n": 10_000_000, "format": "parquet"},
    "seed": 7,
    "rows": 10_000_000,
    "rows_done": 4_096_000,
    "attempt": 1,
    "size": None,
    "receipt_id": RECEIPT_ID,
    "receipt": f"/v1/receipts/{RECEIPT_ID}",
    "file": None,
    "created_at": AT,
    "finished_at": None,
    "expires_at": None,
}
SYNTHESIS_CLAIM = {"made_with": MADE_WITH}
SYNTHESIS_WORK = {
    "job_id": JOB_ID,
    "lease_token": f"{JOB_ID}.1.8f0c",
    "lease_s": 120.0,
    "spec": RUN_SPEC,
    "frame": FRAME,
    "weights": WEIGHTS,
    "request": {"run": RUN_ID, "round": 3, "n": 10_000_000, "format": "parquet"},
    "seed": 7,
    "format": "parquet",
    "receipt": SIGNED_RECEIPT,
}
SYNTHESIS_PART = {"number": 0, "digest": UPDATE, "size": 16_777_216, "rows": 16_384}
SYNTHESIS_FILE_MADE = {"parts": 610, "size": 10_234_567_890}
USAGE = {
    "requests_this_minute": 3,
    "requests_per_minute": 300,
    "rows_today": 12_000,
    "rows_per_day": 100_000_000,
    "rows_per_request": 10_000_000,
    "answers_at_once": 4,
}
TOKEN_USAGE = {
    "token_id": KEY_ID,
    "label": "notebook of ada",
    "scope": "scientist",
    "requests_this_minute": 3,
    "rows_today": 12_000,
}
VERDICT = {
    "valid": True,
    "why": "",
    "key_id": SIGNING_KEY,
    "recorded": True,
    "rows": "as recorded",
}
PROOF = {
    "receipt_id": RECEIPT_ID,
    "same": True,
    "why": "",
    "recorded": ROWS_CONTENT,
    "found": ROWS_CONTENT,
    "made_with": MADE_WITH,
}
RECEIPT_KEYS = {
    "items": [
        {
            "id": SIGNING_KEY,
            "algorithm": "ed25519",
            "public": "1f" * 32,
            "created_at": AT,
            "retired_at": None,
            "revoked_at": None,
        }
    ]
}
SYNTHESISED = {
    "n": 2,
    "classes": ["zero", "one", "two"],
    "labels": ["zero", "two"],
    "label_ids": [0, 2],
    "embeddings": [[0.12, -0.4], [0.08, 0.31]],
    "receipt": SIGNED_RECEIPT,
}
METRICS = """# HELP fhv_rounds Rounds of all runs. The same in every replica: take max, not sum.
# TYPE fhv_rounds gauge
fhv_rounds{state="open"} 1.0
"""


def page(item: Any) -> dict[str, Any]:
    return {"items": [item], "next": None}
