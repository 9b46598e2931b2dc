"""Which of a client's units are held out for the report: a public coin a unit.

u(unit) in [0, 1) is HMAC-SHA256 of the unit's id under the client's id, which enrolment fixed. A
unit is held out if u < privacy.report_holdout. So holdouts nest: what a run holds out, every run
of the client with a report and no smaller share holds out. (With a coin a run, units that an
earlier generator has seen would be in the holdout of a later one.) The coin needs no secret: it
says which part a unit is in if it is there, and nothing of whether it is there.

Held-out units take part in the report round only, of all rounds of a run that has one, joins
included. The coin depends on that unit alone, so removing one moves no other.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.privacy.coins import CoinStream
from core.training.validation import part_of

_PURPOSE = b"fhv-report-holdout\0"


def held_out(spec: RunSpec, client_id: str, dataset: EmbeddingDataset) -> NDArray[np.bool_]:
    """[n] whether each record's unit is held out; none is in a run without a report round."""
    if not spec.plan.privacy.reports:
        return np.zeros(len(dataset), bool)
    below = int(spec.plan.privacy.report_holdout * 2.0**64)
    coins = [_coin(client_id, unit) < below for unit in dataset.unit_ids]
    return np.asarray(coins, bool)[dataset.unit_of]


def _coin(client_id: str, unit: bytes) -> int:
    """Uniform in 0 .. 2^64 - 1."""
    digest = hmac.digest(client_id.encode(), _PURPOSE + unit, hashlib.sha256)
    return int.from_bytes(digest[:8], "big")


def members_of(
    spec: RunSpec, round_number: int, client_id: str, dataset: EmbeddingDataset, coins: CoinStream
) -> EmbeddingDataset:
    """The records that a round works on, of units that are not held out; others are as if they
    were not valid. Of the report round: those that training rounds worked on.
    """
    if spec.plan.privacy.reports:
        left = dataset.valid & ~held_out(spec, client_id, dataset)
        dataset = replace(dataset, valid=left)
    return part_of(spec, round_number, dataset, coins)


def held_out_of(spec: RunSpec, client_id: str, dataset: EmbeddingDataset) -> EmbeddingDataset:
    """The records of held-out units; others are as if they were not valid."""
    return replace(dataset, valid=dataset.valid & held_out(spec, client_id, dataset))
