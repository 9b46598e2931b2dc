"""One cell: the real protocol over M sites and P coordinates; one site and the coordinator timed.

Beside it, in the same process and minute, what plain mode does with vectors of the same length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median

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
# Of a vector's work, by turns with the plain one: the first touch of fresh memory is in neither.
_TURNS = 3
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

    def median(self, name: str) -> float:
        """Of the turns of what was measured more than once."""
        return median(self.seconds[f"{name} {turn}"] for turn in range(_TURNS))


@dataclass(frozen=True)
class Cell:
    """Seconds of one site and of the coordinator, bytes of one site, secure and plain.
    ``client_steps_s``: of the site's seconds what its signatures, keys and shares take.
    """

    sites: int
    length: int
    neighbours: int
    bits: int
    client_s: float
    client_steps_s: float
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

    def beyond(self, shorter: Cell, length: int) -> Cell:
        """The same sites with longer vectors: steps cost what they cost whatever P is, the vector's
        work grows with it; the coordinator's on the line through this cell and a ``shorter`` one.
        """
        factor = length / self.length
        steps = (length - self.length) / (self.length - shorter.length)

        def at(here: float, before: float) -> float:
            return here + max(0.0, here - before) * steps

        return replace(
            self,
            length=length,
            client_s=self.client_steps_s + factor * (self.client_s - self.client_steps_s),
            client_plain_s=factor * self.client_plain_s,
            coordinator_s=at(self.coordinator_s, shorter.coordinator_s),
            coordinator_plain_s=at(self.coordinator_plain_s, shorter.coordinator_plain_s),
            bytes_secure=round(at(self.bytes_secure, shorter.bytes_secure)),
            bytes_plain=round(at(self.bytes_plain, shorter.bytes_plain)),
            extrapolated=True,
        )


class _Trusting(Participant):
    """A site whose time is not measured: it takes signatures for good. What it sends is real."""

    def _check(self, site: str, signature: str, signed: bytes, what: str) -> None:
        return


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
    me = Participant(session, timed, identities[timed], known)
    everybody = {
        name: me if name == timed else _Trusting(session, name, identities[name], known)
        for name in identities
    }
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
    zero, wanted, plain = np.zeros(length, np.int64), np.zeros(length, np.int64), b""
    for name in staying:
        with clock.of("coordinator"):
            inbox = collector.inbox(name)
        if name == timed:
            sharers = collector.sharers()
            for turn in range(_TURNS):
                # Masks once: what comes before the last turn is a copy's work.
                kept = me.state.model_copy(deep=True)
                mine = Participant(session, timed, identities[timed], known, kept)
                mine = me if turn == _TURNS - 1 else mine
                with clock.of(f"client {turn}"):
                    wanted = lattice.released(x, grid, gaussian.csprng())
                    body = mine.mask(inbox, sharers, wanted)
                    sha256_of(body)
                with clock.of(f"plain client {turn}"):
                    plain = _plain(x)
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
    with clock.of("plain coordinator"):
        _plain_sum(plain, length, sites - drop)
    neighbours = len(collector.neighbours(timed))
    seconds = clock.seconds
    return Cell(
        sites, length, neighbours, grid.bits, seconds["client"] + clock.median("client"),
        seconds["client"], clock.median("plain client"), seconds["coordinator"],
        seconds["plain coordinator"], sent, len(plain),
    )  # fmt: skip


def _plain(x: np.ndarray) -> bytes:
    """Noise, file and digest of one update."""
    update = noised(
        x, null_coordinates=NULL_COORDINATES, noise_multiplier=MULTIPLIER, bound=1.0,
        noise=csprng(),
    )  # fmt: skip
    body = tensors.pack({TENSOR: update}, {"layout": LAYOUT})
    sha256_of(body)
    return body


def _plain_sum(body: bytes, length: int, updates: int) -> None:
    """Checks and sum of so many."""
    expected = UpdateExpectation(
        layout=LAYOUT, size=length, length=length + NULL_COORDINATES, max_bytes=len(body),
        noise_std=MULTIPLIER, norm_limit=math.inf, steps=1,
    )  # fmt: skip
    total = np.zeros(expected.length)
    for _ in range(updates):
        check_update(body, expected)  # at the upload
        total += read_update(body, expected)  # in the worker that sums


def _bytes(messages: Sequence[BaseModel]) -> int:
    return sum(len(message.model_dump_json()) for message in messages)
