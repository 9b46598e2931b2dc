"""Labels by the trained classifier: of what the generator proposes, a class gets what it is given.

A generator knows where classes lie, the classifier where one ends and the next begins; the second
is what the training rounds measured well. Proposals are made wide in the few directions that the
classifier looks at (as wide as the class means lie apart, times ``guidance.widen``), so that they
cross its boundaries, and keep the generator's spread in all others. The k-th row of class y in a
block is the k-th of the block's proposals that the classifier calls y, from whatever class they
started: so a shorter request is a prefix of a longer one, and labels are exactly those that were
asked for. (Starting more proposals from the class itself would be cheaper, and cost 1.4 points of
accuracy: where rows start must say nothing about their label.) Proposals come in pairs that
differ in the sign of what the classifier does not look at: a classifier fitted to the rows then
finds these directions empty, as they are, and not filled by the accidents of a finite sample.

A class that gets too few of its proposals is not one that the classifier knows; its rows stay
those of the generator. Post-processing of released values throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from core.models.classifier import Linear, features
from core.synthesis.decoding import Decoding, on_sphere
from core.synthesis.proposals import Proposals
from core.synthesis.streams import CHUNK_ROWS, GUIDED, stream

if TYPE_CHECKING:
    from core.models.frame import Frame

Vector = NDArray[np.float64]

_SEEN_CHUNKS = 8  # of which it is judged what a classifier knows
_KNOWN = 1 / 8  # of a fair share of what was seen: below it a class is left to the generator
_PATIENCE = 4  # times as many chunks as a block of the rarest known class needs on average
_NEGLIGIBLE = 1e-6  # singular values of the classifier, relative, that are rounding only


@dataclass(frozen=True, eq=False)
class Guide:
    """A classifier and what it labels under one code, whatever the seed: kept between requests."""

    decoding: Decoding
    classifier: Linear

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """[C] whether the classifier gives the class its share. A property of model and code: the
        plan's public seed draws what is judged.
        """
        counts = np.zeros(len(self.classifier.bias))
        for chunk in range(_SEEN_CHUNKS):
            _, called = self._judged(chunk)
            counts += np.bincount(called, minlength=len(counts))
        return counts >= _KNOWN * _SEEN_CHUNKS * CHUNK_ROWS / len(counts)

    def seen(self) -> Vector:
        """[n, d] what the classifier sees of what is judged."""
        rows = np.concatenate([self._judged(chunk)[0] for chunk in range(_SEEN_CHUNKS)])
        return features(self.decoding.frame, rows / np.sqrt(rows.shape[1]))

    def _judged(self, chunk: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return self.proposals(stream(self.decoding.spec.plan.seed, GUIDED, 0, chunk=chunk))

    @property
    def most_chunks(self) -> int:
        """Of proposals for one block: then the classes that are still short are left alone."""
        return round(_PATIENCE * _SEEN_CHUNKS * len(self.classifier.bias) / _KNOWN)

    @cached_property
    def _directions(self) -> Vector:
        """[k, d] what the classifier looks at: what all classes have in common decides nothing."""
        contrasts = self.classifier.weight - self.classifier.weight.mean(axis=0)
        _, values, rows = np.linalg.svd(contrasts, full_matrices=False)
        return np.asarray(rows[values > _NEGLIGIBLE * max(float(values[0]), 1e-300)])

    @cached_property
    def _width(self) -> float:
        frame = self.decoding.frame
        apart = _distance_of_means(frame) / np.sqrt(len(frame.class_probs))
        return float(self.decoding.spec.plan.guidance.widen * apart)

    def proposals(self, draw: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """A chunk of proposals [n, d], and what the classifier calls them [n]."""
        made = self.decoding
        pairs = CHUNK_ROWS // 2
        probs = np.asarray(made.frame.class_probs, np.float64)
        origin = draw.choice(len(probs), size=pairs, p=probs / probs.sum())
        spread, decoded = made.residuals(origin, draw)
        wide = self._width * draw.standard_normal((pairs, len(self._directions)))
        outside = spread - (spread @ self._directions.T) @ self._directions
        middle = made.base[origin] + decoded + wide @ self._directions
        mirrored = np.stack([middle + outside, middle - outside], axis=1)
        rows = on_sphere(mirrored.reshape(CHUNK_ROWS, -1))
        seen = features(made.frame, rows / np.sqrt(rows.shape[1]))
        return rows, self.classifier.labels(seen)


@dataclass(frozen=True, eq=False)
class Guided:
    """Rows under one code and seed that the classifier labels. ``number``: which one of the
    request's codes this is.
    """

    guide: Guide
    seed: int
    number: int = 0

    def rows(self, labels: NDArray[np.int64], block: int = 0) -> NDArray[np.float32]:
        """x [n, d] of norm sqrt(d), the rows of one block, each called its label by the
        classifier where that knows the class.
        """
        x = np.empty((len(labels), self.guide.decoding.spec.space.dim), np.float32)
        left = np.zeros(len(labels), bool)
        places = {label: np.flatnonzero(labels == label) for label in np.unique(labels).tolist()}
        for label in [label for label in places if not self.guide.known[label]]:
            left[places.pop(label)] = True
        for chunk in range(self.guide.most_chunks):
            if not places:
                break
            draw = stream(self.seed, GUIDED, block, chunk=chunk, code=self.number)
            rows, called = self.guide.proposals(draw)
            for label in sorted(places):
                found = rows[called == label][: len(places[label])]
                x[places[label][: len(found)]] = found
                places[label] = places[label][len(found) :]
            places = {label: open_ for label, open_ in places.items() if len(open_)}
        for open_ in places.values():
            left[open_] = True
        if left.any():
            own = Proposals(self.guide.decoding, self.seed, self.number)
            x[left] = own.rows(labels, block)[left]
        return x


def _distance_of_means(frame: Frame) -> float:
    """Mean length of the class means' differences from their centre, in units of rows."""
    probs = frame.class_probs / frame.class_probs.sum()
    contrasts = frame.base - np.sqrt(frame.base.shape[1]) * frame.centre
    return float(probs @ np.linalg.norm(contrasts, axis=1))
