"""Synthetic rows against real records: distances, an attack, and which code is whose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.utility.splits import Split
from core.evaluation.fidelity import domain_fidelity, mmd, prdc
from core.evaluation.privacy import membership_attack
from core.evaluation.utility import fit, score

# A code's samples: the code's number (None: neutral) and how many rows -> x [n, d], y [n].
Draw = Callable[[int | None, int], tuple[NDArray[np.float32], NDArray[np.int64]]]

# Distances take time and memory with the product of two sets' sizes. Which rows are taken is
# decided by a public seed and the number of rows, by nothing in them.
FIDELITY_ROWS = 2_000
MATRIX_ROWS, MATRIX_CLIENTS = 1_000, 12
DOMAIN_ROWS = 8_000


def _some(rows: int, most: int) -> NDArray[np.int64]:
    return np.random.default_rng(rows).permutation(rows)[:most]


def closeness(parts: Split, x: NDArray[np.floating]) -> dict[str, Any]:
    """MMD and PRDC against test records, and a membership attack on the training records.

    ``x`` [n, d] synthetic rows. The attacker sees all of them; elsewhere ``FIDELITY_ROWS`` a side.
    """
    trained = np.concatenate([site.x for site in parts.sites])
    members = trained[_some(len(trained), FIDELITY_ROWS)]
    real = parts.test_x[_some(len(parts.test_x), FIDELITY_ROWS)]
    made = x[_some(len(x), FIDELITY_ROWS)]
    attack = membership_attack(members, real, x)
    return {
        "mmd": mmd(real, made),
        **asdict(prdc(real, made)),
        "membership_auc": attack.auc,
        "membership_null_sd": attack.null_sd,
    }


def matrix(parts: Split, draw: Draw) -> dict[str, Any]:
    """Which client's held-out records does which code reproduce? MMD and TSTR [sources, clients].

    Sources are the clients' codes in the clients' order, then the neutral one. None where a
    client holds too few test records. Of many clients the first ``MATRIX_CLIENTS``.
    """
    clients = range(min(len(parts.sites), MATRIX_CLIENTS))
    sources = [draw(code, MATRIX_ROWS) for code in (*clients, None)]
    own = [np.flatnonzero(parts.test_owner == m) for m in clients]
    some = [rows[_some(len(rows), MATRIX_ROWS)] for rows in own]
    result = domain_fidelity(sources, [(parts.test_x[rows], parts.test_y[rows]) for rows in some])
    return {
        "sources": [*parts.names[: len(clients)], "neutral"],
        "clients": list(parts.names[: len(clients)]),
        "mmd": _plain(result.mmd),
        "tstr": _plain(result.tstr),
        "own_is_nearest": float(result.own_is_nearest().mean()),
    }


def domain_check(parts: Split, draw: Draw) -> dict[str, Any]:
    """TSTR on each site's test records, from its own code and from the neutral one.

    ``DOMAIN_ROWS`` rows each; None for a site without test records.
    """
    neutral = fit(*draw(None, DOMAIN_ROWS))
    own: list[float | None] = []
    same: list[float | None] = []
    for site in range(len(parts.sites)):
        rows = np.flatnonzero(parts.test_owner == site)
        x, y = parts.test_x[rows], parts.test_y[rows]
        some = len(rows) > 0
        own.append(score(fit(*draw(site, DOMAIN_ROWS))(x), y).accuracy if some else None)
        same.append(score(neutral(x), y).accuracy if some else None)
    return {"sites": list(parts.names), "own": own, "neutral": same}


def _plain(values: NDArray[np.float64]) -> Sequence[Sequence[float | None]]:
    """As JSON, which has no NaN."""
    return [[None if np.isnan(v) else float(v) for v in row] for row in values]
