"""A report as the OpenAPI document shows it; shortened, and checked against its model by a test."""

from __future__ import annotations

from typing import Any

from api import examples

REPORT: dict[str, Any] = {
    "version": 1,
    "label": "",
    "caveat": "",
    "model": examples.SIGNED_RECEIPT["receipt"]["model"],
    "space": {
        key: examples.SPACE[key] for key in ("name", "backbone", "preprocessing", "dim", "classes")
    },
    "rounds": ["sketch", "spread", "train", "train"],
    "joins": 0,
    "privacy": {
        "epsilon_target": 4.0,
        "delta": 1e-5,
        "relation": "add-remove-one-unit",
        "noise_mode": "csprng",
        "accountant": "privacy loss distributions (PLDAccountant)",
        "accountant_version": "dp-accounting 0.6.0",
        "clients": [
            {
                "client": "site-a",
                "unit": "record",
                "epsilon": 3.99,
                "reservations": 4,
                "lost": 0,
                "curve": [
                    {"round": 0, "kind": "sketch", "epsilon": 1.9},
                    {"round": 3, "kind": "train", "epsilon": 3.99},
                ],
            }
        ],
    },
    "members": [
        {
            "client": "site-a",
            "domain": None,
            "state": "taking-part",
            "why": "",
            "accepted": 4,
            "has_code": True,
        }
    ],
    "released": {
        "classes": [
            {"value": 0.4, "se": 0.02},
            {"value": 0.35, "se": 0.02},
            {"value": 0.25, "se": 0.02},
        ],
        "sizes": [{"client": "site-a", "units": {"value": 1480.2, "se": 21.4}}],
        "floor": 42.8,
    },
    "synthetic": {
        "seed": 0,
        "labels_by": "trained classifier",
        "balance": {"n": 2000, "shares": [0.41, 0.34, 0.25]},
        "projection": {
            "explained": [0.21, 0.14],
            "clients": ["site-a"],
            "points": [
                {"x": 0.12, "y": -0.4, "label": 0, "client": -1},
                {"x": 0.31, "y": -0.2, "label": 2, "client": 0},
            ],
        },
        "differences": {"clients": ["site-a"], "values": [[0.0]], "left_out": 0},
    },
    "measured": None,
    "parts": [
        {
            "title": "Accuracy on real records",
            "source": "missing",
            "price": "a share of the privacy budget",
            "why": "It needs the sites' records, and this run's plan set no budget aside for it.",
        }
    ],
}
