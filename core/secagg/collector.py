"""The coordinator's side of one secure sum: it keeps messages, and opens the sum if it may.

Every site may send each message once; the same again is accepted, another one is refused. It checks
what it can (who sent what, to whom, how many), for a broken site should be named rather than spoil
the sum. What it is told it keeps; what it can infer is the sum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from core.secagg import masks, shamir
from core.secagg.graph import NoThresholds
from core.secagg.messages import (
    SIGNATURE_BYTES,
    Advert,
    Attestation,
    Confirmation,
    Opened,
    Opening,
    Sealed,
    Session,
    Transcript,
)
from core.secagg.neighbourhood import Neighbourhood
from core.secagg.participant import own_purpose, pair_seed

T = TypeVar("T")


def parted(body: bytes) -> tuple[bytes, bytes]:
    """What a site has sent as its vector: its signature, and the packed vector."""
    return body[:SIGNATURE_BYTES], body[SIGNATURE_BYTES:]


class Rejected(ValueError):
    """A message that does not count; the round goes on without it."""


class TooFew(RuntimeError):
    """So few sites are left that the sum must not, and cannot, be opened."""


class Collector:
    def __init__(self, session: Session) -> None:
        self.session = session
        self._adverts: dict[str, Advert] = {}
        self._roster: tuple[Advert, ...] | None = None
        self._hood: Neighbourhood | None = None
        self._sealed: dict[str, tuple[Sealed, ...]] = {}
        self._sharers: tuple[str, ...] | None = None
        self._masked: dict[str, bytes] = {}
        self._attested: dict[str, Attestation] = {}
        self._survivors: tuple[str, ...] | None = None
        self._confirmed: dict[str, Confirmation] = {}
        self._openings: dict[str, Opening] = {}

    @classmethod
    def of(cls, transcript: Transcript, masked: Mapping[str, bytes]) -> Collector:
        """As it stood when the sum could be opened. Raises ``Rejected`` for a transcript that no
        collector can have written, ``TooFew`` for vectors that are missing.
        """
        known = cls.before(transcript.session, transcript.adverts, transcript.sharers)
        for name, body in masked.items():
            known.collect(name, body)
        for opening in transcript.openings:
            known.open(opening)
        return known

    @classmethod
    def before(
        cls,
        session: Session,
        adverts: Sequence[Advert] = (),
        sharers: Sequence[str] = (),
        survivors: Sequence[str] = (),
    ) -> Collector:
        """As it stands when these have answered the steps so far; whose vectors count is told, the
        vectors are not here. Raises ``Rejected``, ``TooFew`` for what no collector can have kept.
        """
        known = cls(session)
        for advert in adverts:
            known.advertise(advert)
        for name in sharers:
            known._of_roster(name)
        if sharers:
            known._enough(len(sharers), "shared their secrets")
            known._sharers = tuple(sorted(sharers))
        if survivors:
            if not set(survivors) <= set(sharers):
                raise Rejected("a survivor has shared no secrets")
            known._enough(len(survivors), "sent vectors")
            known._survivors = tuple(sorted(survivors))
        return known

    # --- one: keys ---

    def advertise(self, advert: Advert) -> None:
        self._of_session(advert.site)
        self._once(self._adverts, advert.site, advert, closed=self._roster is not None)

    def roster(self) -> tuple[Advert, ...]:
        """Who takes part; from the first call on nobody else. Raises ``TooFew``."""
        if self._roster is None:
            self._enough(len(self._adverts), "sent keys")
            roster = tuple(self._adverts[name] for name in sorted(self._adverts))
            try:
                self._hood = Neighbourhood(self.session, roster)
            except NoThresholds as error:
                raise TooFew(str(error)) from None
            self._roster = roster
        return self._roster

    def neighbours(self, site: str) -> list[str]:
        return self._neighbourhood().of(site)

    def _neighbourhood(self) -> Neighbourhood:
        self.roster()
        if self._hood is None:
            raise RuntimeError("a roster has its neighbourhood")
        return self._hood

    # --- two: shares ---

    def share(self, site: str, sealed: Sequence[Sealed]) -> None:
        self.must_take_shares(site, sealed)
        self._once(self._sealed, site, tuple(sealed), closed=self._sharers is not None)

    def must_take_shares(self, site: str, sealed: Sequence[Sealed]) -> None:
        """Raises ``Rejected`` for boxes that are not the site's for its neighbours."""
        self._of_roster(site)
        if any(each.sender != site for each in sealed):
            raise Rejected(f"{site!r} sends shares in another's name")
        if sorted(each.receiver for each in sealed) != sorted(self.neighbours(site)):
            raise Rejected(f"the shares of {site!r} are not for its neighbours")

    def inbox(self, site: str) -> tuple[Sealed, ...]:
        """What others have sealed for ``site``; from the first call on nobody else shares."""
        self._of_roster(site)
        boxes = (each for name in self.sharers() for each in self._sealed[name])
        return tuple(each for each in boxes if each.receiver == site)

    def sharers(self) -> tuple[str, ...]:
        """Who has shared secrets; from the first call of this or ``inbox`` on nobody else."""
        if self._sharers is None:
            self._enough(len(self._sealed), "shared their secrets")
            self._sharers = tuple(sorted(self._sealed))
        return self._sharers

    # --- three: vectors ---

    def collect(self, site: str, body: bytes) -> None:
        if self._sharers is None or site not in self._sharers:
            raise Rejected(f"{site!r} has shared no secrets: its vector could not be unmasked")
        signature, vector = parted(body)
        try:
            masks.unpack(vector, self.session.length, self.session.bits)
        except ValueError as error:
            raise Rejected(str(error)) from None
        self._once(self._masked, site, vector, closed=self._survivors is not None)
        attestation = Attestation(site=site, signature=signature.hex())
        self._once(self._attested, site, attestation, closed=False)

    def attestations(self) -> tuple[Attestation, ...]:
        """What the survivors have signed of their masks."""
        return tuple(self._attested[name] for name in self.survivors())

    def survivors(self) -> tuple[str, ...]:
        """Whose vectors count; from the first call on nobody else's. Raises ``TooFew``."""
        if self._survivors is None:
            self._enough(len(self._masked), "sent vectors")
            self._survivors = tuple(sorted(self._masked))
        return self._survivors

    # --- four and five: the same list for all, then shares ---

    def confirm(self, confirmation: Confirmation) -> None:
        self.must_be_survivor(confirmation.site)
        self._once(self._confirmed, confirmation.site, confirmation, closed=False)

    def confirmations(self) -> tuple[Confirmation, ...]:
        return tuple(self._confirmed[name] for name in sorted(self._confirmed))

    def must_be_survivor(self, site: str) -> None:
        """Raises ``Rejected`` for a site whose vector does not count."""
        if site not in self.survivors():
            raise Rejected(f"{site!r} is no survivor")

    def open(self, opening: Opening) -> None:
        self.must_take_opening(opening)
        self._once(self._openings, opening.site, opening, closed=False)

    def must_take_opening(self, opening: Opening) -> None:
        """Raises ``Rejected`` unless it is one share of each neighbour, of the kind to open."""
        self.must_be_survivor(opening.site)
        listed = set(self.survivors())
        wanted = {
            (name, "seed" if name in listed else "key")
            for name in self.neighbours(opening.site)
            if name in (self._sharers or ())
        }
        if {(each.about, each.kind) for each in opening.shares} != wanted or len(
            opening.shares
        ) != len(wanted):
            raise Rejected(f"{opening.site!r} opens something else than it was asked for")

    def can_open(self) -> bool:
        """Whether ``total`` has the shares that it needs (of honest sites: values are not looked
        at). Costs a look at each share.
        """
        shares, threshold = self._shares(), self._neighbourhood().thresholds.threshold
        return all(len(shares[name]) >= threshold for name in self._sharers or ())

    def total(self) -> NDArray[int64]:
        """The survivors' sum [length]. Raises ``TooFew`` while shares are missing."""
        total = np.zeros(self.session.length, masks.word(self.session.bits))
        for name in self.survivors():
            total += masks.unpack(self._masked[name], self.session.length, self.session.bits)
        plus, minus = self._masks_left()
        masks.apply(total, plus, minus)
        return masks.decode(total, self.session.bits)

    def _masks_left(self) -> tuple[list[bytes], list[bytes]]:
        """Seeds of masks to be added, and to be taken off."""
        shares = self._shares()
        threshold = self._neighbourhood().thresholds.threshold
        adverts = self._neighbourhood().adverts
        plus: list[bytes] = []
        minus: list[bytes] = []
        for name in self._sharers or ():
            secret = self._secret(name, shares[name], threshold)
            if name in self.survivors():
                minus.append(masks.seed_of(secret, own_purpose(self.session, name)))
                continue
            for other in self.neighbours(name):
                if other not in self.survivors():
                    continue
                # The survivor added it if its name comes first.
                seed = pair_seed(self.session, secret, name, adverts[other])
                (minus if other < name else plus).append(seed)
        return plus, minus

    def _shares(self) -> dict[str, list[tuple[str, Opened]]]:
        found: dict[str, list[tuple[str, Opened]]] = defaultdict(list)
        for opening in self._openings.values():
            for each in opening.shares:
                found[each.about].append((opening.site, each))
        return found

    def _secret(self, name: str, shares: list[tuple[str, Opened]], threshold: int) -> bytes:
        points = self._neighbourhood().points
        try:
            return shamir.combine(
                {points[site]: bytes.fromhex(each.share) for site, each in shares}, threshold
            )
        except shamir.NotEnoughShares as error:
            raise TooFew(f"of {name!r}: {error}") from None

    # --- rules of messages ---

    def _of_session(self, site: str) -> None:
        if site not in self.session.sites:
            raise Rejected(f"{site!r} is not among the session's sites")

    def _of_roster(self, site: str) -> None:
        if site not in self._neighbourhood().adverts:
            raise Rejected(f"{site!r} has sent no keys in time")

    def _enough(self, present: int, what: str) -> None:
        if present < self.session.survivors:
            raise TooFew(f"{present} sites {what}, {self.session.survivors} are needed")

    @staticmethod
    def _once(kept: dict[str, T], site: str, message: T, *, closed: bool) -> None:
        before = kept.get(site)
        if before is not None:
            if before != message:
                raise Rejected(f"{site!r} has said something else before")
            return
        if closed:
            raise Rejected(f"{site!r} comes too late for this step")
        kept[site] = message
