"""One cell: the real protocol over M sites and P coordinates; one site and the coordinator timed.

Beside it, in the same process and minute, what plain mode does with vectors of the same length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel

from core.federation.updates import TENSOR, UpdateExpectation, check_update, read_update
from core.models.layout import NULL_COORDINATES
from core.privacy.discrete import gaussian, lattice
from core.privacy.mechanism import noised
from core.privacy.noise import csprng
from core.secagg.collector import Collector
from core.secagg.messages import Session
from core.secagg.participant import Participant
from core.storage import sha256_of
from core.wire import tensors

DROPPING = 0.05
UNITS = 5_000
MULTIPLIER = 1.0
LAYOUT = "sha256:" + "0" * 64


@dataclass
class Clock:
    """Processor seconds under one name each; helpers of the measurement are not among them."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        begun = time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begun


@dataclass(frozen=True)
class Cell:
    """Seconds of one site and of the coordinator, bytes of one site, secure and plain."""

    sites: int
    length: int
    neighbours: int
    bits: int
    client_s: float
    client_plain_s: float
    coordinator_s: float
    coordinator_plain_s: float
    bytes_secure: int
    bytes_plain: int
    extrapolated: bool = False

    @property
    def ratios(self) -> dict[str, float]:
        return {
            "client": self.client_s / self.client_plain_s,
            "coordinator": self.coordinator_s / self.coordinator_plain_s,
            "bytes": self.bytes_secure / self.bytes_plain,
        }

    def stretched(self, length: int) -> Cell:
        """The same sites with longer vectors: everything that grows with P grows linearly."""
        factor = length / self.length
        return Cell(
            self.sites, length, self.neighbours, self.bits, self.client_s * factor,
            self.client_plain_s * factor, self.coordinator_s * factor,
            self.coordinator_plain_s * factor, round(self.bytes_secure * factor),
            round(self.bytes_plain * factor), extrapolated=True,
        )  # fmt: skip


def measure(sites: int, length: int, say: Callable[[str], None]) -> Cell:
    """Of one (M, P): every site runs the protocol, 5 % vanish after they have shared secrets."""
    drop = math.ceil(DROPPING * sites)
    collude = min(3, sites - 2 - drop)
    grid = lattice.design(
        bound=1.0, length=length, noise_multiplier=MULTIPLIER, shares=sites - drop - collude,
        contributions=sites, largest=float(UNITS),
    )  # fmt: skip
    session = Session(
        plan="bench", run_id="bench", round_number=1, attempt=1,
        sites=tuple(f"site-{at:04}" for at in range(sites)),
        drop=drop, collude=collude, length=length, bits=grid.bits,
    )  # fmt: skip
    identities = {name: Ed25519PrivateKey.generate() for name in session.sites}
    known = {name: key.public_key().public_bytes_raw() for name, key in identities.items()}
    clock, sent = Clock(), 0
    timed, collector = session.sites[0], Collector(session)
    everybody = {name: Participant(session, name, identities[name], known) for name in identities}
    me = everybody[timed]
    lattice.released(np.zeros(10), grid, gaussian.csprng())  # tables are made once a process
    x = np.random.default_rng(0).normal(size=length)

    say("keys and shares")
    with clock.of("client"):
        advert = me.advert()
    for name, site in everybody.items():
        collector.advertise(advert if name == timed else site.advert())
    with clock.of("coordinator"):
        roster = collector.roster()
    sent += _bytes([advert]) + _bytes(roster)
    for name, site in everybody.items():
        with clock.of("client" if name == timed else "others"):
            shared = site.share(roster)
        with clock.of("coordinator"):
            collector.share(name, shared)
        sent += _bytes(shared) if name == timed else 0
    say("vectors")
    staying = session.sites[: sites - drop]
    zero, wanted = np.zeros(length, np.int64), np.zeros(length, np.int64)
    for name in staying:
        with clock.of("coordinator"):
            inbox = collector.inbox(name)
        if name == timed:
            with clock.of("client"):
                wanted = lattice.released(x, grid, gaussian.csprng())
                body = me.mask(inbox, collector.sharers(), wanted)
                sha256_of(body)
            sent += _bytes(inbox) + len(body)
        else:
            body = everybody[name].mask(inbox, collector.sharers(), zero)
        with clock.of("coordinator"):
            collector.collect(name, body)
    say("opening")
    with clock.of("coordinator"):
        survivors, attestations = collector.survivors(), collector.attestations()
    for name in staying:
        with clock.of("client" if name == timed else "others"):
            confirmation = everybody[name].confirm(survivors, attestations)
        with clock.of("coordinator"):
            collector.confirm(confirmation)
    confirmations = collector.confirmations()
    sent += _bytes(attestations) + _bytes(confirmations) + len(str(survivors))
    for name in staying:
        with clock.of("client" if name == timed else "others"):
            opening = everybody[name].open(confirmations)
        with clock.of("coordinator"):
            collector.open(opening)
        sent += _bytes([opening]) if name == timed else 0
    with clock.of("coordinator"):
        total = collector.total()
    if not np.array_equal(total, wanted):
        raise AssertionError("the sum is wrong")
    say("plain")
    size = _plain(clock, x, sites - drop)
    neighbours = len(collector.neighbours(timed))
    seconds = clock.seconds
    return Cell(
        sites, length, neighbours, grid.bits, seconds["client"], seconds["plain client"],
        seconds["coordinator"], seconds["plain coordinator"], sent, size,
    )  # fmt: skip


def _plain(clock: Clock, x: np.ndarray, updates: int) -> int:
    """Noise, file and digest of one update; checks and sum of so many. Bytes of one."""
    with clock.of("plain client"):
        update = noised(
            x, null_coordinates=NULL_COORDINATES, noise_multiplier=MULTIPLIER, bound=1.0,
            noise=csprng(),
        )  # fmt: skip
        body = tensors.pack({TENSOR: update}, {"layout": LAYOUT})
        sha256_of(body)
    expected = UpdateExpectation(
        layout=LAYOUT, size=len(x), length=len(update), max_bytes=len(body),
        noise_std=MULTIPLIER, norm_limit=math.inf, steps=1,
    )  # fmt: skip
    total = np.zeros(len(update))
    with clock.of("plain coordinator"):
        for _ in range(updates):
            check_update(body, expected)  # at the upload
            total += read_update(body, expected)  # in the worker that sums
    return len(body)


def _bytes(messages: Sequence[BaseModel]) -> int:
    return sum(len(message.model_dump_json()) for message in messages)
