"""Per-unit clipped gradient sums: the query of a training round, before noise.

Who is in the batch, under which code, with which latent draws; the arithmetic is that of
``core.privacy.ghost`` or, by configuration, of ``core.training.reference``. Records of one unit are
summed BEFORE the norm is taken, so clip norms hold per unit.

Sensitivity of ``clipped_sum``: ``core.privacy.mechanism.sensitivity`` in L2 for adding or removing
one unit, given the released inputs (frame, weights): a unit's inclusion, code, latent draws and
gradient depend on that unit, the released inputs and the unit's own secret stream only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.models.classifier import features
from core.models.codes import TRAINED
from core.models.frame import Frame
from core.privacy.coins import CoinStream
from core.training.compute import CPU, Compute


@dataclass(frozen=True, eq=False)
class Batch:
    """The Poisson sample of one attempt, and what each of its records enters the loss with.

    ``rows`` [n] valid records of included units; ``neutral`` [units] which units are trained under
    the neutral code; ``own`` [c] the client's code.
    """

    spec: RunSpec
    dataset: EmbeddingDataset
    frame: Frame
    coins: CoinStream
    own: NDArray[np.float64]
    rows: NDArray[np.int64]
    neutral: NDArray[np.bool_]

    @classmethod
    def draw(
        cls,
        spec: RunSpec,
        dataset: EmbeddingDataset,
        frame: Frame,
        client_id: str,
        coins: CoinStream,
    ) -> Batch:
        """Flip the inclusion and code coins of every unit."""
        units = dataset.unit_ids
        included = coins.bernoulli("inclusion", units, spec.plan.privacy.sample_rate)
        neutral = coins.bernoulli("code-dropout", units, spec.plan.model.code_dropout)
        rows = np.flatnonzero(included[dataset.unit_of] & dataset.valid)
        return cls(spec, dataset, frame, coins, frame.code(client_id), rows, neutral)

    @property
    def unit_of(self) -> NDArray[np.int64]:
        """[n] unit of each record of the batch."""
        return self.dataset.unit_of[self.rows]

    @property
    def code_of(self) -> NDArray[np.int64]:
        """[n] 0 for the client's code, 1 for the neutral one."""
        return self.neutral[self.unit_of].astype(np.int64)

    @property
    def codes(self) -> NDArray[np.float64]:
        """[2, c] the client's code and the neutral one."""
        return np.stack([self.own, np.zeros_like(self.own)])

    def network_codes(self, parts: Mapping[str, NDArray[np.floating]]) -> NDArray[np.float64]:
        """[2, c] what the hypernetwork is given for these weights: a trained code is one of them.

        The frame's own parts (class means) always go by the sketch's code, ``codes``.
        """
        if TRAINED not in parts:
            return self.codes
        return np.stack([parts[TRAINED][:, 0].astype(np.float64), np.zeros_like(self.own)])

    def inputs(
        self, places: NDArray[np.int64], *, rows_at_once: int = 0
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """(rho [B, r], labels [B], draws [B, z]) of the batch's records at ``places``.

        ``rows_at_once`` >= B fixes the shape of the arithmetic: then a record's last bits do not
        depend on how many others are asked for.
        """
        rows = self.rows[places]
        dataset, frame = self.dataset, self.frame
        labels = dataset.y[rows]
        dropped = self.neutral[dataset.unit_of[rows]]
        own_base = frame.base_output(self.own)
        base = np.where(dropped[:, None], frame.base[labels], own_base[labels])
        residual = np.zeros((max(len(rows), rows_at_once), self.spec.space.dim))
        residual[: len(rows)] = np.sqrt(self.spec.space.dim) * dataset.directions[rows] - base
        keys = [dataset.record_keys[row] for row in rows]
        draws = self.coins.normal("latent", keys, self.spec.plan.model.latent_dim)
        return frame.whiten(residual)[: len(rows)], labels, draws

    def features(self, places: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """[B, d] what the auxiliary classifier sees of these records; None without one."""
        if self.spec.plan.model.classifier == "none":
            return None
        return features(self.frame, self.dataset.directions[self.rows[places]])


def clipped_sum(
    spec: RunSpec,
    dataset: EmbeddingDataset,
    frame: Frame,
    weights: NDArray[np.floating],
    client_id: str,
    coins: CoinStream,
    *,
    compute: Compute = CPU,
) -> NDArray[np.float64]:
    """Sum [P] over the Poisson-sampled units of their clipped gradients. NOT noised.

    ``weights`` [P of ``train_layout``] with the client's own code where codes are trained (any
    block beyond P, as in a stored update, is refused by the layout).
    """
    # torch and opacus take seconds to import and a sketch needs neither.
    if compute.engine == "opacus":
        from core.training.reference import reference_sum as engine
    else:
        from core.training.fast import ghost_sum as engine
    return engine(Batch.draw(spec, dataset, frame, client_id, coins), weights, compute)
