"""What one site may see for itself: the published model against its RAW records, without noise.

NOT PRIVATE. Every figure here is a release without protection if it leaves the site: no coordinator
calls this module, and nothing of it is sent anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.evaluation.distance import squared_distances, unit_rows
from core.evaluation.fidelity import NEIGHBOURS, Prdc, mmd, prdc
from core.evaluation.privacy import MembershipAttack, membership_attack
from core.evaluation.utility import fit
from core.report.values import Estimate
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator

STAMP = "LOCAL, NOT PRIVATE: never leaves the site"
MOST = 4_000  # records and synthetic rows that are compared: seconds, and little memory
LEAST_HELD_OUT = 20  # fewer say nothing
_POINTS = 400
_SEED = 0
_CLOSE = 0.05

Rows = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Picture:
    """Places [n, 2] of records and of synthetic rows in the plane of largest spread of both, with
    their classes; ``explained``: shares of the variance along each axis.
    """

    real: Rows
    real_labels: NDArray[np.int64]
    synthetic: Rows
    synthetic_labels: NDArray[np.int64]
    explained: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Copies:
    """Distances to synthetic rows of some records. ``closer``: share of them nearer to one than 95
    % of synthetic rows are to each other; ``median_ratio``: of d1 / d2, nearest over next.
    """

    closer: Estimate
    median_ratio: float


@dataclass(frozen=True, eq=False)
class Local:
    """``tested``: on which records utility and likeness were measured. ``accuracy`` by whose rows
    taught the classifier; ``recall`` [C] of the first of them. None: too few records.
    """

    client: str
    source: str  # whose code made the synthetic rows: the client's, or "neutral"
    members: int
    held_out: int
    tested: str
    class_counts: NDArray[np.int64]
    synthetic_counts: NDArray[np.int64]
    accuracy: dict[str, Estimate]
    recall: tuple[Estimate | None, ...]
    mmd2: float | None
    prdc: Prdc | None
    attack: MembershipAttack | None
    copies_members: Copies | None
    copies_held_out: Copies | None
    picture: Picture


def measure(
    generator: Generator,
    client: str,
    data: EmbeddingDataset,
    held_out: NDArray[np.bool_],
    unused: EmbeddingDataset | None = None,
) -> Local:
    """The figures of one site. ``held_out`` [n]: records that the run kept out of training by its
    public coin; ``unused``: other records that it has never seen, of the same kind. Raises
    ``ValueError`` without a valid record.
    """
    members = _some(data, data.valid & ~held_out)
    fresh = _some(data, data.valid & held_out)
    if unused is not None:
        more = _some(unused, unused.valid)
        fresh = (
            np.concatenate([fresh[0], more[0]])[:MOST],
            np.concatenate([fresh[1], more[1]])[:MOST],
        )
    if len(members[0]) == 0:
        raise ValueError("there is no valid record that this model was trained on")
    enough = len(fresh[0]) >= LEAST_HELD_OUT
    x, y = fresh if enough else members
    source = client if client in generator.clients else "neutral"
    made_x, made_y = _rows(generator, source)
    classes = len(generator.spec.space.classes)
    guesses = fit(made_x, made_y)(x)
    accuracy = {source: _share(guesses == y)}
    if source != "neutral":
        other_x, other_y = _rows(generator, "neutral")
        accuracy["neutral"] = _share(fit(other_x, other_y)(x) == y)
    comparable = min(len(x), len(made_x)) > NEIGHBOURS
    return Local(
        client=client,
        source=source,
        members=len(members[0]),
        held_out=len(fresh[0]),
        tested="held-out records" if enough else "records that the model was trained on",
        class_counts=np.bincount(y, minlength=classes),
        synthetic_counts=np.bincount(made_y, minlength=classes),
        accuracy=accuracy,
        recall=tuple(
            _share(guesses[y == label] == label) if (y == label).any() else None
            for label in range(classes)
        ),
        mmd2=mmd(x, made_x) if len(x) > 1 else None,
        prdc=prdc(x, made_x) if comparable else None,
        attack=membership_attack(members[0], fresh[0], made_x) if enough else None,
        copies_members=_copies(members[0], made_x),
        copies_held_out=_copies(fresh[0], made_x) if enough else None,
        picture=_picture(x, y, made_x, made_y),
    )


def _some(
    data: EmbeddingDataset, wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Up to ``MOST`` of the wanted records, the same ones each time."""
    rows = np.flatnonzero(wanted)
    if len(rows) > MOST:
        rows = np.sort(np.random.default_rng(_SEED).choice(rows, MOST, replace=False))
    return data.x[rows], data.y[rows]


def _rows(generator: Generator, code: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    mixture = code if code == "neutral" else {code: 1.0}
    request = SynthesisRequest.model_validate({"run": "local", "n": MOST, "mixture": mixture})
    made = generator.sample(request, _SEED)
    return made.x, made.y


def _share(hits: NDArray[np.bool_]) -> Estimate:
    """With the standard error of so many independent records."""
    share = float(hits.mean())
    return Estimate(
        value=share, se=math.sqrt(max(share * (1.0 - share), 1.0 / len(hits)) / len(hits))
    )


def _copies(records: NDArray[np.float32], made: NDArray[np.float32]) -> Copies | None:
    if len(records) == 0 or len(made) < 3:
        return None
    rows = unit_rows(made)
    # The nearest OTHER synthetic row: each row is its own nearest.
    among = _nearest(rows, rows, 2)[:, 1]
    two = _nearest(unit_rows(records), rows, 2)
    ratio = np.where(two[:, 1] > 0, two[:, 0] / np.maximum(two[:, 1], 1e-300), 1.0)
    threshold = np.quantile(among, _CLOSE)
    return Copies(_share(two[:, 0] < threshold), float(np.median(ratio)))


def _nearest(rows: Rows, others: Rows, count: int) -> Rows:
    """[n, count] the smallest distances from each row, ascending."""
    found = np.empty((len(rows), count))
    for part, squared in squared_distances(rows, others):
        found[part] = np.sqrt(np.sort(np.partition(squared, count - 1, axis=1)[:, :count], axis=1))
    return found


def _picture(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    made_x: NDArray[np.float32],
    made_y: NDArray[np.int64],
) -> Picture:
    real, made = unit_rows(x[:_POINTS]), unit_rows(made_x[:_POINTS])
    both = np.concatenate([real, made])
    centre = both.mean(axis=0)
    _, values, axes = np.linalg.svd(both - centre, full_matrices=False)
    variance = values**2 / max(float(np.sum(values**2)), 1e-300)
    plane = axes[:2].T
    return Picture(
        real=(real - centre) @ plane,
        real_labels=y[:_POINTS],
        synthetic=(made - centre) @ plane,
        synthetic_labels=made_y[:_POINTS],
        explained=(float(variance[0]), float(variance[1])),
    )
