"""Rows that the generator proposes for given classes, block by block, each from its own stream.

x = base_y(v) + s e + F^T f + Q^T A g(z, y, v): see ``core.synthesis.sampler``. Draws are made for a
whole block, so a shorter request is a prefix of a longer one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models.architecture import architecture_of
from core.models.frame import Frame
from core.models.generator import Generated, Weights, decode, generate

Vector = NDArray[np.float64]

BLOCK_ROWS = 4_096
LABELS, _ROWS, _ALONG, GUIDED = 1, 2, 3, 4  # purposes of the streams


@dataclass(frozen=True, eq=False)
class Proposals:
    """What a model (``spec``, ``frame``, ``weights``) makes under one code and seed.

    ``code`` [c] is the frame's, ``network_code`` [c] the hypernetwork's: they differ where codes
    are trained.
    """

    spec: RunSpec
    frame: Frame
    weights: Weights
    code: Vector
    network_code: Vector
    seed: int

    @cached_property
    def _theta(self) -> Generated:
        return generate(architecture_of(self.spec), self.weights, self.network_code)

    @cached_property
    def base(self) -> Vector:
        """[C, d] class means under the code."""
        return self.frame.base_output(self.code)

    @cached_property
    def _spread(self) -> tuple[float, Vector]:
        return self.frame.scale_under(self.code), self.frame.factors_under(self.code)

    def rows(self, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """x [n, d] of norm sqrt(d): each row drawn from the class that its label names."""
        x = np.empty((len(labels), self.spec.space.dim), np.float32)
        for start in range(0, len(labels), BLOCK_ROWS):
            part = labels[start : start + BLOCK_ROWS]
            block = start // BLOCK_ROWS
            draws = (stream(self.seed, _ROWS, block), stream(self.seed, _ALONG, block))
            spread, decoded = self.residuals(part, *draws, draw_rows=BLOCK_ROWS)
            x[start : start + len(part)] = on_sphere(self.base[part] + spread + decoded)
        return x

    def residuals(
        self,
        labels: NDArray[np.int64],
        own: np.random.Generator,
        along: np.random.Generator,
        *,
        draw_rows: int,
    ) -> tuple[Vector, Vector]:
        """What rows add to the means of their classes [n]: (spread, decoder's part), [n, d] each.

        The spread is symmetric around 0. ``own`` gives latent and isotropic draws (``draw_rows``
        >= n latent ones, where the next draw must not depend on n), ``along`` those of factors.
        """
        scale, factors = self._spread
        theta, dim = self._theta, self.spec.space.dim
        normal = own.standard_normal((draw_rows, self.spec.plan.model.latent_dim))[: len(labels)]
        isotropic = own.standard_normal((len(labels), dim), dtype=np.float32)
        z = theta.prior_mean[labels] + np.exp(theta.prior_log_std[labels]) * normal
        wide = along.standard_normal((len(labels), len(factors)))
        decoded = self.frame.colour(decode(theta, z, labels))
        return np.asarray(scale * isotropic + wide @ factors), decoded


def on_sphere(rows: Vector) -> NDArray[np.float32]:
    """Rows [n, d] scaled to norm sqrt(d)."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled = np.sqrt(rows.shape[1]) * rows / np.where(norms > 0, norms, 1.0)
    return np.asarray(scaled, np.float32)


def stream(seed: int, purpose: int, block: int) -> np.random.Generator:
    """The draws of one purpose and block: counter-based, independent of all others."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, block, purpose]))
