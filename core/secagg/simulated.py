"""A secure sum with all its sites in one process: the protocol's own arithmetic, for simulations.

Neighbouring relation and sensitivity: ``core.privacy.discrete.lattice``. In one process nothing is
kept from anybody; what it shows is what the sum is worth, and what it costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from core.privacy.discrete import lattice
from core.privacy.discrete.gaussian import BitSource
from core.secagg.collector import Collector
from core.secagg.graph import Thresholds
from core.secagg.messages import Session
from core.secagg.participant import Participant


@dataclass(frozen=True)
class SecureTerms:
    """Up to ``drop`` sites may be missing from a sum and ``collude`` see through their own noise,
    whoever looks at it among them: each of M sites adds 1 / sqrt(M - drop - collude) of the noise.
    """

    bits: BitSource
    drop: int = 0
    collude: int = 0


def noised_sum(
    totals: Mapping[str, NDArray[np.float64]],
    *,
    run_id: str,
    round_number: int,
    bound: float,
    noise_multiplier: float,
    n_max: int,
    terms: SecureTerms,
) -> NDArray[np.float64]:
    """The sum [P] of the sites' clipped sums with distributed noise; nobody drops out.

    ``bound``: L2 sensitivity of each total. Raises ``NoThresholds``, or ``ValueError`` where the
    sum does not fit 62 bits.
    """
    names, length = sorted(totals), len(next(iter(totals.values())))
    Thresholds.of(len(names), terms.drop, terms.collude)
    grid = lattice.design(
        bound=bound, length=length, noise_multiplier=noise_multiplier,
        shares=len(names) - terms.drop - terms.collude, contributions=len(names),
        largest=n_max * bound,
    )  # fmt: skip
    session = Session(
        plan="simulated", run_id=run_id, round_number=round_number, attempt=1, sites=tuple(names),
        drop=terms.drop, collude=terms.collude, length=length, bits=grid.bits,
    )  # fmt: skip
    identities = {name: Ed25519PrivateKey.generate() for name in names}
    known = {name: key.public_key().public_bytes_raw() for name, key in identities.items()}
    sites = {name: Participant(session, name, identities[name], known) for name in names}
    collector = Collector(session)
    for site in sites.values():
        collector.advertise(site.advert())
    for name, site in sites.items():
        collector.share(name, site.share(collector.roster()))
    for name, site in sites.items():
        contribution = lattice.released(totals[name], grid, terms.bits)
        collector.collect(name, site.mask(collector.inbox(name), collector.sharers(), contribution))
    for site in sites.values():
        collector.confirm(site.confirm(collector.survivors(), collector.attestations()))
    for site in sites.values():
        collector.open(site.open(collector.confirmations()))
    return np.asarray(collector.total() * grid.step)
