"""The server's side of label shifts: each client's mean bias gradient, apart from the others'.

A client's posted classifier block holds the noised sum of its units' bias gradients. Its deviation
from the mean over the clients of the same round, averaged over the rounds that it answered, is
what its labels ask of the bias. Averages are noisy, by a known variance: they are shrunk together
(``core.models.shrinkage.pooled``).

Reads released values only. Noise added once, to a sum over clients, knows no clients: all zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models import shrinkage
from core.models.classifier import BIAS
from core.models.frame import Frame
from core.models.label_shift import LABEL_SHIFT
from core.models.layout import Layout
from core.wire import tensors

Vector = NDArray[np.float64]
_SUMS, _NOISE, _ROUNDS = "label_shift_sums", "label_shift_noise", "label_shift_rounds"
PER_CLIENT = (_SUMS,)  # in the optimiser file: a row of own releases for each client


@dataclass(frozen=True, eq=False)
class Centre:
    """What deviations are taken from: the ``total`` [C] of all clients' bias gradients, each
    unit's once, and the standard deviation of its noise over that of one client's.
    """

    total: Vector
    noise_gain: float


@dataclass(frozen=True, eq=False)
class LabelShift:
    """Of the M founding clients, in the frame's order: ``sums`` [M, C] of deviations over the
    ``rounds`` [M] that each one answered, and the variance ``noise`` [M] of a coordinate of it.
    """

    sums: Vector
    noise: Vector
    rounds: NDArray[np.int64]

    @classmethod
    def start(cls, spec: RunSpec, clients: int) -> LabelShift | None:
        """Zeros; None where no classifier is trained."""
        plan = spec.plan
        if plan.model.classifier != "linear" or plan.privacy.classifier_clip_norm == 0.0:
            return None
        sums = np.zeros((clients, len(spec.space.classes)))
        return cls(sums, np.zeros(clients), np.zeros(clients, np.int64))

    @classmethod
    def read(
        cls, spec: RunSpec, optimiser: Mapping[str, NDArray[np.generic]], clients: int
    ) -> LabelShift | None:
        """From the tensors of the previous round's optimiser file."""
        start = cls.start(spec, clients)
        if start is None or _SUMS not in optimiser:
            return start
        return cls(
            np.asarray(optimiser[_SUMS], np.float64),
            np.asarray(optimiser[_NOISE], np.float64),
            np.asarray(optimiser[_ROUNDS], np.int64),
        )

    def after(
        self,
        frame: Frame,
        biases: Mapping[int, Vector],
        noise_std: float,
        centre: Centre | None = None,
    ) -> LabelShift:
        """One round on: ``biases`` has the noised sum of bias gradients [C] of each client that
        answered, by its place in the frame, each unit's once on average; ``noise_std`` of one of
        its coordinates. ``centre``: None, their plain sum.
        """
        places = sorted(biases)
        units = frame.sizes[places]
        means = np.stack([biases[place] for place in places]) / units[:, None]
        share = units / units.sum()
        sums, noise, rounds = self.sums.copy(), self.noise.copy(), self.rounds.copy()
        of_one = (noise_std / units) ** 2
        if centre is None:
            mean, of_mean = share @ means, (share**2) @ of_one
        else:
            mean = centre.total / units.sum()
            of_mean = (noise_std * centre.noise_gain / units.sum()) ** 2
        sums[places] += means - mean
        # Var(g_m - mean) = v_m (1 - 2 w_m) + Var(mean), with v_m = (noise / n_m)^2: M times a
        # trimmed mean goes along with a client's noise as much as the sum does (Basu's theorem).
        noise[places] += of_one * (1.0 - 2.0 * share) + of_mean
        rounds[places] += 1
        return LabelShift(sums, noise, rounds)

    def shrunk(self) -> Vector:
        """[M, C] what samplers use: mean deviations times how much of them is no noise."""
        rounds = np.maximum(self.rounds, 1)
        mean, noise = self.sums / rounds[:, None], self.noise / rounds**2
        known = self.rounds > 0
        if known.any():
            mean[known] *= shrinkage.pooled(mean[known], noise[known])[:, None]
        return mean

    def published(self) -> dict[str, tensors.Array]:
        """What samplers read in the weights file."""
        return {LABEL_SHIFT: self.shrunk().astype(np.float32)}

    def state(self) -> dict[str, tensors.Array]:
        """What the next round needs in the optimiser file."""
        return {_SUMS: self.sums, _NOISE: self.noise, _ROUNDS: self.rounds}


def bias_part(posted: Layout, released: NDArray[np.floating]) -> Vector:
    """[C] the bias block of a released vector [P of ``posted``]."""
    return np.asarray(posted.split(released)[BIAS], np.float64).ravel()
