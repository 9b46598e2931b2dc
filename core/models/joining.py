"""Zero-round joining: a client that comes after training gets a code from ONE released sketch.

Post-processing of that release and of the published frame, hence free for everybody else. What
was published does not change: codes, class means under them, the neutral code, class frequencies
and sizes of the clients before keep their values up to the rounding of the frame's file.

Linear algebra, for one client with code v and wanted class means base + delta (delta: its own
released deviations, shrunk like everybody's). The directions D say v -> v D. With w the part of v
that is orthogonal to all codes before, D + w (delta - v D) / |w|^2 is the smallest change with
which v gives delta, and every code before has w . v_i = 0. Where the code space has no such room
(as many independent codes as it is wide), D stays: it is the public ridge map from codes to class
means, and the code alone places the client among the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models.build import project
from core.models.estimates import site_deviations
from core.models.evidence import Evidence, from_sketches
from core.models.frame import Frame

Vector = NDArray[np.float64]

# A code has room if this share of its length lies outside the codes before. The change of D grows
# with the inverse, and with it what float32 rounds off in everybody's class means: 100 * 6e-8.
ROOM = 1e-2
# Directions of the codes before with a smaller singular value (relative) are rounding only: codes
# are centred, so the last of them depends on the others up to the float32 of the frame's file.
_ROUNDING = 1e-6


def join(
    spec: RunSpec,
    frame: Frame,
    sketches: Sequence[Vector],
    client_ids: Sequence[str],
    clients: Sequence[str],
) -> Frame:
    """The frame with these clients behind those that it has. Sketches [C + C * d] as in ``build``.

    Clients are taken in the given order, so the same input gives the same frame. Raises
    ``ValueError`` for a client that has a code already: a second code would move it.
    """
    known = set(frame.client_ids).intersection(client_ids)
    if known or len(set(client_ids)) != len(client_ids):
        raise ValueError(f"clients {sorted(known) or list(client_ids)} would get a second code")
    evidence = from_sketches(spec, sketches, spec.noise.join_multiplier)
    codes = _codes(spec, frame, evidence)
    deltas = own_means(spec, frame, evidence) - frame.base
    directions, outside = frame.directions.copy(), _span(frame.codes)
    for code, delta in zip(codes, deltas, strict=True):
        rest = code - (outside @ code) @ outside
        rest = rest - (outside @ rest) @ outside  # twice is enough
        length = float(np.linalg.norm(rest))
        if length <= ROOM * float(np.linalg.norm(code)):
            continue
        missing = delta - np.tensordot(code, directions, axes=1)
        directions += np.multiply.outer(rest / length**2, missing)
        outside = np.vstack([outside, rest / length])
    return replace(
        frame,
        directions=directions,
        codes=np.concatenate([frame.codes, codes]),
        sizes=np.concatenate([frame.sizes, evidence.sizes]),
        client_ids=(*frame.client_ids, *client_ids),
        clients=(*frame.clients, *clients),
    )


def own_means(spec: RunSpec, frame: Frame, evidence: Evidence) -> Vector:
    """[J, C, d] class means of clients by their own sketches, shrunk towards the frame's."""
    root = math.sqrt(spec.space.dim)
    means = frame.base / root
    _, deviations = site_deviations(evidence, means)
    own = means + deviations
    # A mean of directions is not longer than 1. Without this an absurd sketch would make changes
    # so large that their float32 rounding moves everybody.
    own /= np.maximum(1.0, np.linalg.norm(own, axis=2, keepdims=True))
    return np.asarray(root * own)


def _codes(spec: RunSpec, frame: Frame, evidence: Evidence) -> Vector:
    """[J, c] by the frame's own map, none longer than the longest that training has seen.

    A sketch of noise alone has a code far outside; the trained network says nothing of use there.
    """
    projected = project(spec, evidence)
    codes = frame.code_scale[0] * (projected - frame.code_offset)
    # sqrt(c) is the root mean square length of the founding codes.
    longest = max(
        float(np.linalg.norm(frame.codes, axis=1).max()), math.sqrt(spec.plan.model.code_dim)
    )
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    return np.asarray(codes * np.minimum(1.0, longest / np.maximum(lengths, 1e-300)))


def _span(codes: Vector) -> Vector:
    """[k, c] orthonormal rows that span the codes [M, c]."""
    _, values, rows = np.linalg.svd(codes, full_matrices=False)
    return np.asarray(rows[values > _ROUNDING * max(float(values[0]), 1e-300)])
