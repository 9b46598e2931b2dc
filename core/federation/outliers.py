"""Whose released update is implausibly long among its peers, though it passed every check?

For a person to look at; nothing acts on it. Norms are of released, noised vectors [P] (without the
null coordinates): post-processing, public, free.

    z_i = (norm_i - median) / max(1.4826 MAD, s),

s the noise's standard deviation in one coordinate. Why s is the right floor, whatever P and
whatever the sums: a norm moves by no more than the noise vector does, so the noise alone moves it
by about s and never by much more (Gaussian concentration), while norm^2 - P s^2, which says how
much of it is no noise, would have a scale of its own in every round.

False alarms. Let the sites be alike: sums of one length, a release of one step. Then norms are
exchangeable, norm_i - median has median 0 and is a function of all noise with Lipschitz constant
sqrt(2) at most, so by the Gaussian isoperimetric inequality

    P(|z_i| > t) <= 2 Q(t / sqrt(2)),   Q the upper tail of the standard Gaussian:

below 1.6e-8 for t = 8, one client and one round, for any number of clients and of coordinates.
Sites that differ (in size, above all) have norms that differ; the MAD takes that into account as
far as most of them do. With fewer than three clients there are no peers, and nobody is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from core.wire.messages import AggregateInput, ClientNorm, Diagnostics

THRESHOLD = 8.0
_FEWEST = 3
_MAD_OF_A_GAUSSIAN = 1.4826  # standard deviation over median absolute deviation


def diagnose(
    updates: Sequence[AggregateInput], norms: Mapping[str, float], noise_std: float
) -> Diagnostics:
    """The report of one round: ``norms`` by ``client_id``, ``noise_std`` s of one coordinate."""
    lengths = np.array([norms[update.client_id] for update in updates])
    away = lengths - np.median(lengths)
    scale = max(_MAD_OF_A_GAUSSIAN * float(np.median(np.abs(away))), noise_std)
    scores = (away / scale).tolist()
    peers = len(updates) >= _FEWEST
    return Diagnostics(
        clients=tuple(
            ClientNorm(client_id=update.client_id, norm=norm, z=z)
            for update, norm, z in zip(updates, lengths.tolist(), scores, strict=True)
        ),
        outliers=tuple(
            update.client
            for update, z in zip(updates, scores, strict=True)
            if peers and abs(z) > THRESHOLD
        ),
    )
