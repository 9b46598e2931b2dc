"""Sites and a collector in one process: the real protocol, message by message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from core.secagg.collector import Collector
from core.secagg.messages import Confirmation, Session
from core.secagg.participant import Participant

Vectors = Mapping[str, NDArray[np.int64]]


def session(count: int, *, drop: int = 1, collude: int = 1, length: int = 7, bits: int = 20,
            **more: int) -> Session:  # fmt: skip
    return Session.model_validate(
        {
            "plan": "plan", "run_id": "run", "round_number": 0, "attempt": 1,
            "sites": [f"site-{at:03}" for at in range(count)],
            "drop": drop, "collude": collude, "length": length, "bits": bits, **more,
        }
    )  # fmt: skip


class World:
    """``identities`` are the sites' long-lived keys, which everybody knows."""

    def __init__(self, asked: Session) -> None:
        self.session = asked
        self.identities = {name: Ed25519PrivateKey.generate() for name in asked.sites}
        self.known = {
            name: key.public_key().public_bytes_raw() for name, key in self.identities.items()
        }
        self.sites = {name: self.participant(name) for name in asked.sites}
        self.collector = Collector(asked)

    def participant(self, name: str, asked: Session | None = None) -> Participant:
        return Participant(asked or self.session, name, self.identities[name], self.known)

    def advertise(self, names: Iterable[str]) -> None:
        for name in names:
            self.collector.advertise(self.sites[name].advert())

    def share(self, names: Iterable[str]) -> None:
        roster = self.collector.roster()
        for name in names:
            self.collector.share(name, self.sites[name].share(roster))

    def send(self, vectors: Vectors) -> None:
        for name, vector in vectors.items():
            body = self.sites[name].mask(
                self.collector.inbox(name), self.collector.sharers(), vector
            )
            self.collector.collect(name, body)

    def confirm(self, names: Iterable[str]) -> None:
        for name in names:
            self.collector.confirm(self.confirmed(name))

    def confirmed(self, name: str, survivors: Sequence[str] | None = None) -> Confirmation:
        """What a site signs if it is told these survivors (the collector's), and shown what each of
        them has attested.
        """
        listed = self.collector.survivors() if survivors is None else tuple(survivors)
        attested = {each.site: each for each in self.collector.attestations()}
        return self.sites[name].confirm(
            listed, [attested[other] for other in listed if other in attested]
        )

    def open(self, names: Iterable[str]) -> None:
        confirmations = self.collector.confirmations()
        for name in names:
            self.collector.open(self.sites[name].open(confirmations))

    def total(self, vectors: Vectors) -> NDArray[np.int64]:
        """All of it, with nobody missing."""
        self.advertise(vectors)
        self.share(vectors)
        self.send(vectors)
        self.confirm(vectors)
        self.open(vectors)
        return self.collector.total()


def some_vectors(asked: Session, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Signed vectors whose sum stays within the session's modulus."""
    limit = (1 << (asked.bits - 1)) // len(asked.sites) - 1
    random = np.random.default_rng(seed)
    return {
        name: random.integers(-limit, limit, asked.length, endpoint=True) for name in asked.sites
    }
