"""What a model makes under one code, whatever the seed: kept between requests.

x = base_y(v) + s e + F^T f + Q^T A g(z, y, v): see ``core.synthesis.sampler``.
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


@dataclass(frozen=True, eq=False)
class Decoding:
    """A model (``spec``, ``frame``, ``weights``) under one code.

    ``code`` [c] is the frame's, ``network_code`` [c] the hypernetwork's: they differ where codes
    are trained. ``temperature`` scales the standard deviations of latents and spread; 1 is the
    model.
    """

    spec: RunSpec
    frame: Frame
    weights: Weights
    code: Vector
    network_code: Vector
    temperature: float = 1.0

    @cached_property
    def _theta(self) -> Generated:
        return generate(architecture_of(self.spec), self.weights, self.network_code)

    @cached_property
    def base(self) -> Vector:
        """[C, d] class means under the code."""
        return self.frame.base_output(self.code)

    @cached_property
    def _spread(self) -> tuple[float, Vector]:
        scale, factors = self.frame.scale_under(self.code), self.frame.factors_under(self.code)
        return self.temperature * scale, self.temperature * factors

    def residuals(
        self, labels: NDArray[np.int64], draw: np.random.Generator
    ) -> tuple[Vector, Vector]:
        """What rows add to the means of their classes [n]: (spread, decoder's part), [n, d] each.

        The spread is symmetric around 0. Whoever draws for the same n gets the same rows.
        """
        scale, factors = self._spread
        theta, n = self._theta, len(labels)
        normal = draw.standard_normal((n, self.spec.plan.model.latent_dim))
        isotropic = draw.standard_normal((n, self.spec.space.dim), dtype=np.float32)
        along = draw.standard_normal((n, len(factors)))
        deviations = self.temperature * np.exp(theta.prior_log_std[labels])
        z = theta.prior_mean[labels] + deviations * normal
        decoded = self.frame.colour(decode(theta, z, labels))
        return np.asarray(scale * isotropic + along @ factors), decoded


def on_sphere(rows: Vector) -> NDArray[np.float32]:
    """Rows [n, d] scaled to norm sqrt(d)."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled = np.sqrt(rows.shape[1]) * rows / np.where(norms > 0, norms, 1.0)
    return np.asarray(scaled, np.float32)
