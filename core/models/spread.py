"""The frame after step 2 of the sketch: better means, and spread along released directions.

Post-processing of releases. How much of the released moments is signal: ``core.models.factors``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models import shrinkage, symmetric
from core.models.build import from_evidence, to_clients
from core.models.evidence import Evidence, clipped_share, refined, split_spread
from core.models.factors import with_factors
from core.models.frame import Frame
from core.privacy.mechanism import sensitivity

Vector = NDArray[np.float64]
_LEAST_TRACE = 1e-3


def with_spread(
    spec: RunSpec,
    frame: Frame,
    evidence: Evidence,
    releases: Sequence[Vector],
    client_ids: Sequence[str],
    noise_gain: float = 1.0,
) -> Frame:
    """The frame from step 2's released vectors, one of each of ``client_ids``.

    ``evidence`` is what ``frame`` was built from. The denominator of the moments is the noised
    number of units of those who answered. ``noise_gain``: the noise in each release, in terms of
    what the event of step 2 promises.
    """
    centre = frame.base / math.sqrt(spec.space.dim)
    positions = [frame.client_ids.index(client) for client in client_ids]
    blocks = split_spread(spec, positions, releases)
    after = frame
    if "sums" in blocks:
        evidence = refined(spec, evidence, centre, blocks["sums"], noise_gain)
        after = from_evidence(spec, evidence, frame.client_ids, frame.clients)
    if "moments" not in blocks:
        return after
    return _along(spec, after, centre, blocks["moments"], noise_gain)


def _along(
    spec: RunSpec,
    frame: Frame,
    centre: Vector,
    answers: Mapping[int, Vector],
    noise_gain: float,
) -> Frame:
    """``frame`` with factors from released second moments around ``centre``.

    ``answers`` are vectors [d (d + 1) / 2] by client position.
    """
    dim = spec.space.dim
    unit = spec.plan.sketch.residual_radius**2 / math.sqrt(1.0 - spec.plan.privacy.refinement)
    noise_std = unit * spec.event(1).noise_multiplier * noise_gain * sensitivity(spec, 1)
    units = float(sum(frame.sizes[position] for position in answers))
    matrix = symmetric.unpack(unit / units * np.sum(list(answers.values()), axis=0), dim)
    # Clipping shortened long residuals; the true trace is known from the means.
    around = max(1.0 - float(frame.class_probs @ np.sum(centre**2, axis=1)), _LEAST_TRACE)
    stretch = around / max(float(np.trace(matrix)), 0.2 * around)
    # Moments were taken around the means of step 1; better ones are known by now.
    moved = (centre - frame.base / math.sqrt(dim)) * clipped_share(spec, centre)[:, None]
    matrix = stretch * (matrix - (moved.T * frame.class_probs) @ moved)
    # An off-diagonal entry carries 1/sqrt(2) of its packed coordinate's noise.
    entry_std = stretch * noise_std * math.sqrt(len(answers) / 2.0) / units
    total = float(frame.scale[0]) ** 2  # what the pooled means leave of the length 1
    after = with_factors(spec, frame, matrix, entry_std, total)
    return _of_clients(spec, after, centre, answers, stretch * unit, stretch * noise_std)


def _of_clients(
    spec: RunSpec,
    frame: Frame,
    centre: Vector,
    answers: Mapping[int, Vector],
    unit: float,
    noise_std: float,
) -> Frame:
    """``frame`` with each client's own variance along the factors, where noise allows.

    ``unit`` turns a released moment into one of directions, ``noise_std`` is its noise then:
    u^T (noise) u has the standard deviation of a packed coordinate for every unit vector u.
    """
    if not len(frame.factors):
        return frame
    lengths = np.linalg.norm(frame.factors, axis=1)
    along = frame.factors / lengths[:, None]
    root, dim = math.sqrt(spec.space.dim), spec.space.dim
    pooled = (lengths**2 + frame.scale[0] ** 2) / dim
    share = clipped_share(spec, centre)[:, None]
    logs = np.zeros((len(frame.codes), len(along)))
    for position, packed in answers.items():
        size = float(frame.sizes[position])
        moments = symmetric.unpack(unit / size * packed, dim)
        # Its own means are no spread: codes move the means by themselves.
        moved = share * (frame.base_output(frame.codes[position]) / root - centre)
        shift = frame.class_probs @ (moved @ along.T) ** 2
        change = (np.sum((along @ moments) * along, axis=1) - shift) / pooled - 1.0
        variances = (noise_std / size / pooled) ** 2
        kept = shrinkage.separate(change[:, None], variances) * change
        logs[position] = np.log(np.clip(1.0 + kept, math.exp(-1.0), math.exp(1.0)))
    return replace(frame, factor_directions=to_clients(frame.codes) @ logs)
