"""The validation part of a site's units, and what it says of the candidates for publication.

A secret coin a unit, the same in all rounds and attempts of a run, puts a share of the units into
the validation part. Sketches and training rounds work on the others only; the validation round, on
these only: it counts how many records each candidate's classifier labels rightly. The classifiers
are made of synthetic rows by the server, hence of released values.

For one unit u: s_u [J] = the mean over its records of (1 if candidate j is right, else 0), over
sqrt(J). Each entry is at most 1 / sqrt(J), so |s_u| <= 1.

Sensitivity: 1 in L2, for adding or removing one unit: the coin and s_u depend on that unit, its
secret stream and released values alone. Booked as a full batch in addition to all other rounds,
although no unit takes part in both: an upper bound whatever a client executes of a run.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.models.candidates import candidates
from core.privacy.coins import CoinStream
from core.training.sketch import record_shares
from core.wire import tensors

CLASSIFIERS = "candidates"


def part_of(
    spec: RunSpec, round_number: int, dataset: EmbeddingDataset, coins: CoinStream
) -> EmbeddingDataset:
    """The records that a round works on; others are as if they were not valid. All of a join's."""
    kind = spec.kind(round_number)
    if not spec.plan.privacy.validates or kind == "join":
        return dataset
    whole_run = CoinStream(coins.secret, coins.run_id, 0, 0)  # attempts count from 1
    share = spec.plan.privacy.validation_share or 0.0
    held_out = whole_run.bernoulli("validation", dataset.unit_ids, share)[dataset.unit_of]
    return replace(dataset, valid=dataset.valid & (held_out == (kind == "validate")))


def read_classifiers(spec: RunSpec, weights: bytes) -> NDArray[np.float64]:
    """[J, C, d + 1] weights and bias of every candidate's classifier on x/|x|.

    Raises ``TensorFileError`` unless there are as many as the plan has candidates, all finite. Call
    it before records are used: whether they are usable must not depend on those.
    """
    content, _ = tensors.unpack(weights)
    shape = (len(candidates(spec.plan)), len(spec.space.classes), spec.space.dim + 1)
    found = content.get(CLASSIFIERS)
    if found is None or found.shape != shape or not np.isfinite(found).all():
        raise tensors.TensorFileError(f"the candidates' classifiers are not finite or not {shape}")
    return np.asarray(found, np.float64)


def right_answers(
    dataset: EmbeddingDataset, classifiers: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[J] sum over units of s_u. NOT noised."""
    rows, shares = record_shares(dataset)
    directions, labels = dataset.directions[rows], dataset.y[rows]
    total = [
        shares @ ((directions @ each[:, :-1].T + each[:, -1]).argmax(axis=1) == labels)
        for each in classifiers
    ]
    return np.asarray(total) / math.sqrt(len(classifiers))
