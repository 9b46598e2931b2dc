"""The report round: what a site says, with noise, of a published model and its own records.

For one held-out unit: the mean over its records of bounded blocks (``core.report.blocks``): which
class the classifier of synthetic rows gives it, how near to synthetic rows it lies and where. For
one member, a unit that the generator was trained on: how near. Their difference is the membership
attack. Sums over units, in one vector.

Everything that records are compared with is made of released values: synthetic rows, and public
thresholds from them. Radii and thresholds are of SYNTHETIC rows: one of real records would depend
on other units.

Sensitivity: 1 in L2, for adding or removing one unit. Its coins and its vector depend on that unit
and on released values alone; it fills the blocks of one part, whose weights have norm 1; a mean of
vectors no longer than 1 is no longer than 1. Booked as a full batch in addition to all other
rounds, also for held-out units, which take part in nothing else: an upper bound for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.models.features import fourier_features, report_frequencies
from core.models.layout import report_layout
from core.report import blocks, exact
from core.report.neighbours import Synthetic, bins, cells, ratios
from core.report.reference import Reference
from core.synthesis.sampler import Generator
from core.training.sketch import record_shares
from core.wire import tensors

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """The published model, ready to be compared with records."""

    spec: RunSpec
    reference: Reference
    synthetic: Synthetic

    @classmethod
    def read(cls, spec: RunSpec, inputs: Mapping[str, bytes]) -> Comparison:
        """From the files of the round before. Raises ``TensorFileError`` if they are not usable,
        whatever the records are.
        """
        reference = Reference.read(spec, inputs["weights"])
        try:
            generator = Generator.load(inputs["frame"], inputs["weights"], spec)
            synthetic = Synthetic.of(generator)
        except (ValueError, KeyError, np.linalg.LinAlgError) as error:
            raise tensors.TensorFileError(f"this model makes no rows: {error}") from error
        return cls(spec, reference, synthetic)

    def held_out(self, dataset: EmbeddingDataset) -> dict[str, Vector]:
        """Sums over units of the blocks of held-out units, before their weights."""
        rows, shares = record_shares(dataset)
        directions, labels = dataset.directions[rows], dataset.y[rows]
        return {
            "count": np.array([shares.sum()]),
            **self._answers(directions, labels, shares),
            "domains": self._domains(directions, labels, shares),
            "features": shares
            @ fourier_features(directions, report_frequencies(self.spec, blocks.FEATURE_PAIRS)),
            "inside": np.array([shares @ self.synthetic.inside(directions)]),
            **self._distances(directions, shares),
            "map": _one_hot(
                cells(directions, self.reference.axes, self.reference.edges),
                shares,
                blocks.CELLS**2,
            ),
        }

    def members(self, dataset: EmbeddingDataset) -> dict[str, Vector]:
        """Sums over units of the blocks of members, before their weights."""
        rows, shares = record_shares(dataset)
        count = np.array([shares.sum()])
        return {"count": count, **self._distances(dataset.directions[rows], shares)}

    def _distances(self, directions: Vector, shares: Vector) -> dict[str, Vector]:
        two = self.synthetic.two_nearest(directions)
        near = bins(two[:, 0], self.reference.distances)
        close = bins(ratios(two), np.array(blocks.RATIOS))
        return {
            "nearest": _one_hot(near, shares, blocks.DISTANCES + 1),
            "ratio": _one_hot(close, shares, len(blocks.RATIOS) + 1),
        }

    def _answers(
        self, directions: Vector, labels: NDArray[np.int64], shares: Vector
    ) -> dict[str, Vector]:
        classes = len(self.spec.space.classes)
        said = exact.labels(directions, self.reference.classifiers[0])
        right = said == labels
        width = classes if classes <= blocks.MOST_CONFUSED else 2
        column = said if width == classes else right.astype(np.int64)
        return {
            "confusion": _one_hot(width * labels + column, shares, classes * width),
            "right": np.array([shares @ right]),
        }

    def _domains(self, directions: Vector, labels: NDArray[np.int64], shares: Vector) -> Vector:
        """Entries of at most 1 / sqrt(J) each, so that the block of a record has norm 1."""
        own = self.reference.classifiers[1:]
        right = np.zeros(blocks.MOST_DOMAINS)
        for place, classifier in enumerate(own):
            right[place] = shares @ (exact.labels(directions, classifier) == labels)
        return np.asarray(right / np.sqrt(max(len(own), 1)))


def report_sum(
    comparison: Comparison, held_out: EmbeddingDataset, members: EmbeddingDataset
) -> Vector:
    """Sum over units [R of ``report_layout``]. NOT noised. No unit may be valid in both parts."""
    layout = report_layout(comparison.spec)
    shapes = dict(layout.blocks)
    sums = {
        f"{part}.{name}": value
        for part, found in (
            (blocks.HELD_OUT, comparison.held_out(held_out)),
            (blocks.MEMBERS, comparison.members(members)),
        )
        for name, value in found.items()
    }
    weights = blocks.weights()
    return layout.join(
        {name: (weights[name] * value).reshape(shapes[name]) for name, value in sums.items()}
    )


def _one_hot(places: NDArray[np.int64], shares: Vector, count: int) -> Vector:
    """[count] the sum over records of their shares, each in its place."""
    return np.asarray(np.bincount(places, weights=shares, minlength=count), np.float64)
