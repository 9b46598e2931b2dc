"""What participants and collector say to one another, and what all of it is bound to.

Bytes travel as lower-case hexadecimal in JSON; vectors travel apart, as plain bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.secagg.graph import Thresholds
from core.secagg.masks import MOST_BITS
from core.secagg.shamir import SHARE_BYTES


def _hexadecimal(size: int) -> str:
    return rf"^[0-9a-f]{{{2 * size}}}$"


Key = Annotated[str, Field(pattern=_hexadecimal(32))]
SIGNATURE_BYTES = 64
Signature = Annotated[str, Field(pattern=_hexadecimal(SIGNATURE_BYTES))]
Share = Annotated[str, Field(pattern=_hexadecimal(SHARE_BYTES))]
Site = Annotated[str, Field(min_length=1, max_length=63)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Session(_Message):
    """One sum. Every key, share and signature is bound to its digest, so that nothing of another
    run, round or attempt can be played back into it.

    ``sites``: who was asked, in order. At most ``drop`` of them may be missing from the sum; at
    most ``collude`` work with the coordinator, whoever looks at the sum among them. ``plan`` is the
    digest of what they have agreed to, ``inputs`` name what they compute on, each object with its
    role: who was shown another plan, or given another model, is in another session, and no
    signature of it counts here.
    """

    plan: str = Field(min_length=1, max_length=71)
    inputs: tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] = ()

    run_id: str = Field(min_length=1, max_length=64)
    round_number: int = Field(ge=0)
    attempt: int = Field(ge=1)
    sites: tuple[Site, ...]
    drop: int = Field(ge=0)
    collude: int = Field(ge=0)
    length: int = Field(ge=1)
    bits: int = Field(ge=1, le=MOST_BITS)

    @model_validator(mode="after")
    def _distinct(self) -> Session:
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("sites: a site is named twice")
        Thresholds.of(len(self.sites), self.drop, self.collude)
        return self

    @property
    def survivors(self) -> int:
        """Vectors without which nothing is opened: the noise of so many is in the sum."""
        return len(self.sites) - self.drop

    @property
    def digest(self) -> bytes:
        return _digest(self)

    def thresholds(self, present: int) -> Thresholds:
        """Of the ``present`` sites that advertised keys. Raises ``NoThresholds``."""
        return Thresholds.of(present, present - self.survivors, self.collude)


@lru_cache(maxsize=64)
def _digest(session: Session) -> bytes:
    """By value: a changed copy has a digest of its own."""
    text = json.dumps(session.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(b"fhv-secagg session 2 " + text.encode()).digest()


class Advert(_Message):
    """A site's keys for one session, signed by the key by which others know the site."""

    site: Site
    sealing_key: Key
    masking_key: Key
    signature: Signature

    def signed(self, session: Session) -> bytes:
        """The bytes under the signature."""
        parts = (self.site.encode(), self.sealing_key.encode(), self.masking_key.encode())
        return b"fhv-secagg advert\0" + session.digest + b"\0".join(parts)

    @property
    def usable(self) -> bool:
        """Whether secrets can be agreed on with both keys: a point of low order gives none."""
        anybody = X25519PrivateKey.generate()
        try:
            for key in (self.sealing_key, self.masking_key):
                anybody.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(key)))
        except ValueError:
            return False
        return True


class Sealed(_Message):
    """Shares of ``sender``'s two secrets that only ``receiver`` can read."""

    sender: Site
    receiver: Site
    box: str = Field(pattern=_hexadecimal(2 * SHARE_BYTES + 16))


class Attestation(_Message):
    """``site`` has masked its vector with all its neighbours among these sharers of this roster,
    and with nobody else. It goes with the vector: nothing is opened of a sum in which one vector
    was masked by another list, for its masks could be kept among a few.
    """

    site: Site
    signature: Signature

    @staticmethod
    def signed(session: Session, roster: Sequence[Advert], sharers: Sequence[str]) -> bytes:
        """The bytes under the signature."""
        return b"fhv-secagg masks\0" + session.digest + _digest_of(_masks(roster, sharers))


class Confirmation(_Message):
    """``site`` has seen that exactly these vectors are to be summed, and who is behind the masks on
    them: one roster, one list of those who shared.
    """

    site: Site
    signature: Signature

    @staticmethod
    def signed(
        session: Session,
        roster: Sequence[Advert],
        sharers: Sequence[str],
        survivors: Sequence[str],
    ) -> bytes:
        """The bytes under the signature."""
        view = [*_masks(roster, sharers), sorted(survivors)]
        return b"fhv-secagg view\0" + session.digest + _digest_of(view)


def _masks(roster: Sequence[Advert], sharers: Sequence[str]) -> list[object]:
    adverts = sorted(roster, key=lambda advert: advert.site)
    return [[advert.model_dump(mode="json") for advert in adverts], sorted(sharers)]


def _digest_of(view: list[object]) -> bytes:
    return hashlib.sha256(json.dumps(view, sort_keys=True, separators=(",", ":")).encode()).digest()


class Opened(_Message):
    """One share: of the seed of a site whose vector counts, or of the key of one that is missing.
    Never both of one site.
    """

    about: Site
    kind: Literal["seed", "key"]
    share: Share


class Opening(_Message):
    site: Site
    shares: tuple[Opened, ...]


class Transcript(_Message):
    """What opens a round's sum beside the masked vectors: kept by the coordinator as an object, so
    that a replay of the round finds the same sum. Survivors are those whose vectors are there.
    """

    session: Session
    adverts: tuple[Advert, ...]
    sharers: tuple[str, ...]
    openings: tuple[Opening, ...]
