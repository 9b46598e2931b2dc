"""Labels by the trained classifier: of what the generator proposes, a class gets what it is given.

A generator knows where classes lie, the classifier where one ends and the next begins; the second
is what the training rounds measured well. Proposals are made wide in the few directions that the
classifier looks at (as wide as the class means lie apart, times ``guidance.widen``), so that they
cross its boundaries, and keep the generator's spread in all others. Row k of class y is the
k-th of all proposals that the classifier calls y, from whatever class they started: so a request
of n rows is a prefix of a longer one, class by class, and labels are exactly those that were asked
for. (Starting more proposals from the class itself would be cheaper, and cost 1.4 points of
accuracy: where rows start must say nothing about their label.) Proposals come in pairs that
differ in the sign of what the classifier does not look at: a classifier fitted to the rows then
finds these directions empty, as they are, and not filled by the accidents of a finite sample.

A class that gets too few of its proposals is not one that the classifier knows; its rows stay
those of the generator. Post-processing of released values throughout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from core.models.classifier import Linear, features
from core.synthesis.proposals import GUIDED, Proposals, on_sphere, stream

if TYPE_CHECKING:
    from core.models.frame import Frame

Vector = NDArray[np.float64]

_BLOCK = 4_096  # proposals: one shape for all products, so that a row's bits do not depend on n
_KNOWN = 1 / 8  # of a fair share of the first block: below it a class is left to the generator
_NEGLIGIBLE = 1e-6  # singular values of the classifier, relative, that are rounding only


def guided_rows(
    proposals: Proposals, classifier: Linear, labels: NDArray[np.int64]
) -> NDArray[np.float32]:
    """x [n, d] of norm sqrt(d) for labels [n], each called its label by ``classifier`` where that
    knows the class.
    """
    x = np.empty((len(labels), proposals.spec.space.dim), np.float32)
    looks = _Looks.of(proposals, classifier)
    places = {label: np.flatnonzero(labels == label) for label in np.unique(labels).tolist()}
    filled = dict.fromkeys(places, 0)
    open_classes, block = set(places), 0
    while open_classes:
        rows, called = looks.block(block)
        if block == 0:
            least = _KNOWN * _BLOCK / len(classifier.bias)
            counts = np.bincount(called, minlength=len(classifier.bias))
            open_classes = {label for label in open_classes if counts[label] >= least}
        for label in sorted(open_classes):
            begin, wanted = filled[label], places[label]
            found = rows[called == label][: len(wanted) - begin]
            x[wanted[begin : begin + len(found)]] = found
            filled[label] = begin + len(found)
        open_classes = {label for label in open_classes if filled[label] < len(places[label])}
        block += 1
    unknown = np.isin(labels, [label for label, count in filled.items() if count == 0])
    if unknown.any():
        x[unknown] = proposals.rows(labels)[unknown]
    return x


def seen_proposals(proposals: Proposals, classifier: Linear) -> Vector:
    """[n, d] what the classifier sees of the first block of proposals."""
    rows, _ = _Looks.of(proposals, classifier).block(0)
    return features(proposals.frame, rows / np.sqrt(rows.shape[1]))


class _Looks:
    """The classifier's view of proposals: its directions, and how wide proposals are in them."""

    def __init__(
        self, proposals: Proposals, classifier: Linear, directions: Vector, width: float
    ) -> None:
        self._proposals, self._classifier = proposals, classifier
        self._directions, self._width = directions, width
        probs = np.asarray(proposals.frame.class_probs, np.float64)
        self._probs = probs / probs.sum()

    @classmethod
    def of(cls, proposals: Proposals, classifier: Linear) -> _Looks:
        # What all classes have in common decides nothing.
        contrasts = classifier.weight - classifier.weight.mean(axis=0)
        _, values, rows = np.linalg.svd(contrasts, full_matrices=False)
        directions = rows[values > _NEGLIGIBLE * max(float(values[0]), 1e-300)]
        apart = _distance_of_means(proposals.frame) / np.sqrt(len(proposals.frame.class_probs))
        width = proposals.spec.plan.guidance.widen * apart
        return cls(proposals, classifier, directions, width)

    def block(self, block: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The proposals [n, d] of a block, and what the classifier calls them [n]."""
        made, draw = self._proposals, stream(self._proposals.seed, GUIDED, block)
        pairs = _BLOCK // 2
        origin = draw.choice(len(self._probs), size=pairs, p=self._probs)
        spread, decoded = made.residuals(origin, draw, draw, draw_rows=pairs)
        wide = self._width * draw.standard_normal((pairs, len(self._directions)))
        outside = spread - (spread @ self._directions.T) @ self._directions
        middle = made.base[origin] + decoded + wide @ self._directions
        mirrored = np.stack([middle + outside, middle - outside], axis=1)
        rows = on_sphere(mirrored.reshape(_BLOCK, -1))
        seen = features(made.frame, rows / np.sqrt(rows.shape[1]))
        return rows, self._classifier.labels(seen)


def _distance_of_means(frame: Frame) -> float:
    """Mean length of the class means' differences from their centre, in units of rows."""
    probs = frame.class_probs / frame.class_probs.sum()
    contrasts = frame.base - np.sqrt(frame.base.shape[1]) * frame.centre
    return float(probs @ np.linalg.norm(contrasts, axis=1))
