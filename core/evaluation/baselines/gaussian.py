"""DP shared-covariance Gaussian: class means, then one covariance of residuals. Simulation only.

The two sketch steps of the method (``core.training.sketch``, ``core.training.spread``) and what
its frame makes of them, without codes, rounds or a decoder: every site is the average site.

Privacy: per site two adaptive Gaussian events, add or remove one unit: step 1 with sensitivity
sqrt(count_weight^2 + mean_weight^2), step 2 with 1 (moments over the squared radius). Residuals are
taken around the means that step 1 RELEASED.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.evaluation.baselines.common import (
    EventsBySite,
    Terms,
    calibrated,
    gaussian,
    known,
    on_sphere,
    released_sum,
)
from core.federation.plan import EmbeddingSpace, Noise, Plan, PrivacyPlan, RunSpec
from core.federation.rule import NoiseMode
from core.models.build import build
from core.models.evidence import from_sketches
from core.models.frame import Frame
from core.models.spread import with_spread
from core.privacy.events import PrivacyEvent
from core.privacy.mechanism import sensitivity
from core.privacy.noise import NoiseSource
from core.training.sketch import clipped_sketch
from core.training.spread import clipped_spread

MEAN_SHARE = 0.65  # fixed, as a plain baseline would be; ours chooses by core.federation.rule
_ALL = "all-sites"  # the one "client" of the pooled frame


@dataclass(frozen=True, eq=False)
class SharedGaussian:
    """``frame`` holds pooled means [C, d], scale and factors [k, d], all times sqrt(d)."""

    frame: Frame
    events: EventsBySite
    private: bool = True

    def sample(self, n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """``n`` rows x [n, d] on the sphere of radius sqrt(d) and labels [n]."""
        draw = np.random.default_rng(seed)
        frame = self.frame
        probs = frame.class_probs / frame.class_probs.sum()
        y = draw.choice(len(probs), size=n, p=probs).astype(np.int64)
        x = frame.base[y] + frame.scale[0] * draw.normal(size=(n, frame.base.shape[1]))
        x += draw.normal(size=(n, len(frame.factors))) @ frame.factors
        return on_sphere(x), y


def shared_gaussian(
    sites: Sequence[EmbeddingDataset], space: EmbeddingSpace, terms: Terms, noise: NoiseSource
) -> SharedGaussian:
    """Release and pool means, then the second moment of residuals, at ``terms`` together."""
    privacy = PrivacyPlan(
        epsilon=terms.epsilon, delta=terms.delta, n_max=1, unit=terms.unit,
        rounds=0, sketch_steps=2, mean_share=MEAN_SHARE, refine_share=0.0,
    )  # fmt: skip

    def events_of(z: float) -> list[PrivacyEvent]:
        shares = (MEAN_SHARE, 1.0 - MEAN_SHARE)
        return [gaussian(z / math.sqrt(share), terms.unit) for share in shares]

    _, events = calibrated(terms, events_of)
    first, second = (event.noise_multiplier for event in events)
    # The sum over sites is read as ONE client's sketch whose noise is that of the sum.
    factor = _in_sum(len(sites), terms.noise_mode)
    spec = RunSpec(
        run_id="baseline",
        plan=Plan(name="shared-gaussian", space=space.name, privacy=privacy, purpose="simulation"),
        space=space,
        noise=Noise(sketch_multiplier=factor * first, spread_multiplier=factor * second),
    )
    own = [known(site, len(space.classes)) for site in sites]
    means = released_sum(
        [clipped_sketch(spec, site) for site in own],
        z=first, bound=sensitivity(spec, 0), mode=terms.noise_mode, noise=noise,
    )  # fmt: skip
    frame = _without_code(build(spec, [means], [_ALL], [_ALL]))
    moments = released_sum(
        [clipped_spread(spec, site, frame) for site in own],
        z=second, bound=sensitivity(spec, 1), mode=terms.noise_mode, noise=noise,
    )  # fmt: skip
    found = with_spread(spec, frame, from_sketches(spec, [means]), [moments], [_ALL])
    return SharedGaussian(found, (events,) * len(sites))


def _in_sum(sites: int, mode: NoiseMode) -> float:
    """Noise of the sum over that of one release."""
    return math.sqrt(sites) if mode == "local" else 1.0


def _without_code(frame: Frame) -> Frame:
    """One pooled client is the average client: its means are the base output."""
    return replace(
        frame, codes=np.zeros_like(frame.codes), directions=np.zeros_like(frame.directions)
    )
