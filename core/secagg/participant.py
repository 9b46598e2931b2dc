"""A site's side of one secure sum.

What it guards, whatever the coordinator says:

* a vector is masked once;
* shares of a site's seed and of its key are never both given out;
* nothing is opened before enough sites have signed the same list of survivors over the same roster
  and the same list of those who shared, so that two stories cannot both be opened;
* nor before every survivor, whether it still answers or not, has attested that it masked by that
  roster and that list, so that nobody's masks can be kept among a few;
* keys count only with a signature of a site that is known.

Everything that must survive kill -9 is in ``state``: keep it before a message goes.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy import int64
from numpy.typing import NDArray
from pydantic import BaseModel

from core.secagg import masks, shamir
from core.secagg.graph import NoThresholds, quorum
from core.secagg.identity import is_signed
from core.secagg.messages import (
    Advert,
    Attestation,
    Confirmation,
    Key,
    Opened,
    Opening,
    Sealed,
    Session,
)
from core.secagg.neighbourhood import Neighbourhood

_NONCE = bytes(12)  # a sealing key seals one message


class Refused(ValueError):
    """This site does not go on: what it was told is wrong, or would say too much."""


class State(BaseModel):
    """Secrets of one session, and what was said. Stays at the site."""

    seed: Key
    sealing_key: Key
    masking_key: Key
    roster: tuple[Advert, ...] = ()
    shared: tuple[Sealed, ...] = ()
    inbox: tuple[Sealed, ...] = ()
    sharers: tuple[str, ...] = ()
    masked: bool = False
    survivors: tuple[str, ...] = ()


class Participant:
    """``identity``: the site's long-lived key. ``known``: the public keys of all sites that it may
    sum with, which it has from its own people and not from the coordinator.
    """

    def __init__(
        self,
        session: Session,
        site: str,
        identity: Ed25519PrivateKey,
        known: Mapping[str, bytes],
        state: State | None = None,
    ) -> None:
        if site not in session.sites:
            raise Refused(f"{site!r} is not among the session's sites")
        unknown = sorted(set(session.sites) - set(known))
        if unknown:
            raise Refused(f"no key of {', '.join(unknown)} is known here")
        self.session, self.site = session, site
        self._identity, self._known = identity, known
        self._agreed: dict[str, bytes] = {}
        self._hood: Neighbourhood | None = None
        self.state = state or State(
            seed=secrets.token_hex(masks.SEED_BYTES),
            sealing_key=X25519PrivateKey.generate().private_bytes_raw().hex(),
            masking_key=X25519PrivateKey.generate().private_bytes_raw().hex(),
        )

    # --- one: keys ---

    def advert(self) -> Advert:
        plain = Advert(
            site=self.site,
            sealing_key=_public(self.state.sealing_key),
            masking_key=_public(self.state.masking_key),
            signature="00" * 64,
        )
        signature = self._identity.sign(plain.signed(self.session))
        return plain.model_copy(update={"signature": signature.hex()})

    # --- two: shares ---

    def share(self, roster: Sequence[Advert]) -> tuple[Sealed, ...]:
        """Shares of this site's secrets for its neighbours among the sites that sent keys."""
        if self.state.roster:
            if tuple(roster) != self.state.roster:
                raise Refused("the roster is another one than before")
            return self.state.shared
        names = [advert.site for advert in roster]
        if len(set(names)) != len(names) or not set(names) <= set(self.session.sites):
            raise Refused("the roster names a site twice, or one that is not of the session")
        if self.advert() not in roster:
            raise Refused("the roster has not the keys that this site has sent")
        for advert in roster:
            self._check(advert.site, advert.signature, advert.signed(self.session), "keys")
        try:
            hood = Neighbourhood(self.session, tuple(roster))
        except NoThresholds as error:
            raise Refused(str(error)) from None
        every = hood.points
        points = {name: every[name] for name in hood.of(self.site)}
        for name in points:
            if not hood.adverts[name].usable:  # found out now, it costs nobody anything
                raise Refused(f"the keys of {name!r} are not of the curve")
        self.state.roster, self._hood = tuple(hood.roster), hood
        threshold = hood.thresholds.threshold
        keys = shamir.share(bytes.fromhex(self.state.masking_key), threshold, list(points.values()))
        seeds = shamir.share(bytes.fromhex(self.state.seed), threshold, list(points.values()))
        self.state.shared = tuple(
            Sealed(
                sender=self.site,
                receiver=name,
                box=self._sealer(self.site, name)
                .encrypt(_NONCE, keys[point] + seeds[point], self.session.digest)
                .hex(),
            )
            for name, point in points.items()
        )
        return self.state.shared

    def neighbours(self) -> list[str]:
        """With whom this site shares secrets and masks; once the roster is known."""
        return self._neighbourhood().of(self.site)

    def _neighbourhood(self) -> Neighbourhood:
        if self._hood is None or self._hood.roster is not self.state.roster:
            self._hood = Neighbourhood(self.session, self.state.roster)
        return self._hood

    # --- three: the vector ---

    def mask(
        self, inbox: Sequence[Sealed], sharers: Sequence[str], contribution: NDArray[int64]
    ) -> bytes:
        """The site's attestation (``SIGNATURE_BYTES``), then the packed, masked vector. Call it
        once: what was sent is kept and sent again as it is.

        ``sharers``: everybody who has shared secrets; masks are those with all neighbours of them.
        ``contribution`` [length] carries its noise already: if everything here failed, that is
        what remains.
        """
        if self.state.masked:
            raise Refused("a vector was masked already: a second one under the same masks would "
                          "show the difference")  # fmt: skip
        if len(contribution) != self.session.length:
            raise Refused(f"a vector of {len(contribution)} is not {self.session.length} long")
        self.accept(inbox, sharers)
        plus = [masks.seed_of(bytes.fromhex(self.state.seed), own_purpose(self.session, self.site))]
        minus: list[bytes] = []
        for name in self._partners():
            (plus if self.site < name else minus).append(self._pair_seed(name))
        vector = masks.encode(contribution, self.session.bits)
        masks.apply(vector, plus, minus)
        self.state.masked = True
        return self._identity.sign(self._attested()) + masks.pack(vector, self.session.bits)

    def accept(self, inbox: Sequence[Sealed], sharers: Sequence[str]) -> None:
        """Check what ``mask`` is given, before anything is spent. Raises ``Refused``.

        The vector is sent with this site's signature under the list (``mask``), and nobody confirms
        a sum whose vectors were masked by different lists (``confirm``): a coordinator that keeps
        some boxes back, so that a few sites mask among themselves only, can open nothing.
        """
        listed, senders = tuple(sorted(sharers)), [each.sender for each in inbox]
        roster = {advert.site for advert in self.state.roster}
        if len(set(listed)) != len(listed) or not set(listed) <= roster or self.site not in listed:
            raise Refused("the sharers name a site twice, one that sent no keys, or not this one")
        if len(listed) < self.session.survivors:
            raise Refused(f"{len(listed)} sites share, {self.session.survivors} are needed")
        if len(set(senders)) != len(senders) or not set(senders) <= set(self.neighbours()):
            raise Refused("shares came twice, or from a site that is no neighbour")
        if set(senders) != (set(self.neighbours()) & set(listed)):
            raise Refused("the shares are not those of all neighbours that have shared")
        for each in inbox:
            if each.receiver != self.site:
                raise Refused(f"shares for {each.receiver!r} were given to {self.site!r}")
            self._unseal(each)
        if len(inbox) < self._neighbourhood().thresholds.threshold:
            raise Refused("too few neighbours have shared their secrets to open the sum")
        self.state.inbox, self.state.sharers = tuple(inbox), listed

    def _partners(self) -> list[str]:
        return sorted(each.sender for each in self.state.inbox)

    # --- four and five: which vectors count, and the shares that open their sum ---

    def confirm(
        self, survivors: Sequence[str], attestations: Sequence[Attestation]
    ) -> Confirmation:
        """Sign the list of vectors that are to be summed; one list only.

        ``attestations``: one of each survivor. Quorums alone would not do: a site that was told
        another list than everybody else need not be among those who sign.
        """
        listed = tuple(sorted(survivors))
        if self.state.survivors and listed != self.state.survivors:
            raise Refused("another list of survivors was signed before")
        if not self.state.masked or self.site not in listed:
            raise Refused("this site's own vector is not among the survivors")
        if len(set(listed)) != len(listed) or not set(listed) <= set(self.session.sites):
            raise Refused("the list names a site twice, or one that is not of the session")
        if not set(listed) <= set(self.state.sharers):
            raise Refused("the list names a site that has shared no secrets")
        if len(listed) < self.session.survivors:
            raise Refused(
                f"{len(listed)} vectors carry less noise than was promised: "
                f"{self.session.survivors} are needed"
            )
        if sorted(each.site for each in attestations) != list(listed):
            raise Refused("there is not one attestation of each survivor")
        attested = self._attested()
        for each in attestations:
            self._check(each.site, each.signature, attested, "masks")
        self.state.survivors = listed
        signature = self._identity.sign(self._confirmed(listed))
        return Confirmation(site=self.site, signature=signature.hex())

    def open(self, confirmations: Sequence[Confirmation]) -> Opening:
        """Shares of survivors' seeds and of missing sites' keys, once enough have signed the same
        list. For each neighbour one of the two, for ever the same one.
        """
        listed = self.state.survivors
        if not listed:
            raise Refused("no list of survivors was signed yet")
        signed = self._confirmed(listed)
        who = [each.site for each in confirmations]
        if len(set(who)) != len(who) or not set(who) <= set(listed):
            raise Refused("a confirmation came twice, or from a site that is no survivor")
        for each in confirmations:
            self._check(each.site, each.signature, signed, "confirmation")
        needed = quorum(len(self.session.sites), self.session.collude)
        if len(who) < needed:
            raise Refused(f"{len(who)} confirmations of {needed} that are needed")
        return Opening(
            site=self.site, shares=tuple(self._opened(each, listed) for each in self.state.inbox)
        )

    def _attested(self) -> bytes:
        return Attestation.signed(self.session, self.state.roster, self.state.sharers)

    def _confirmed(self, listed: tuple[str, ...]) -> bytes:
        return Confirmation.signed(self.session, self.state.roster, self.state.sharers, listed)

    def _opened(self, sealed: Sealed, listed: tuple[str, ...]) -> Opened:
        key, seed = self._unseal(sealed)
        if sealed.sender in listed:
            return Opened(about=sealed.sender, kind="seed", share=seed.hex())
        return Opened(about=sealed.sender, kind="key", share=key.hex())

    # --- keys ---

    def _check(self, site: str, signature: str, signed: bytes, what: str) -> None:
        if not is_signed(self._known[site], bytes.fromhex(signature), signed):
            raise Refused(
                f"the {what} of {site!r} are not signed by {site!r} as they are known here"
            )

    def _advert(self, site: str) -> Advert:
        return self._neighbourhood().adverts[site]

    def _sealer(self, sender: str, receiver: str) -> ChaCha20Poly1305:
        other = receiver if sender == self.site else sender
        if other not in self._agreed:
            key = bytes.fromhex(self.state.sealing_key)
            self._agreed[other] = _agreed(key, self._advert(other).sealing_key)
        secret = self._agreed[other]
        purpose = b"box\0" + self.session.digest + f"{sender}\0{receiver}".encode()
        return ChaCha20Poly1305(masks.seed_of(secret, purpose))

    def _unseal(self, sealed: Sealed) -> tuple[bytes, bytes]:
        """(share of the key, share of the seed) of the sender."""
        sealer = self._sealer(sealed.sender, self.site)
        try:
            plain = sealer.decrypt(_NONCE, bytes.fromhex(sealed.box), self.session.digest)
        except InvalidTag:
            raise Refused(f"the shares of {sealed.sender!r} were not sealed by it") from None
        return plain[: shamir.SHARE_BYTES], plain[shamir.SHARE_BYTES :]

    def _pair_seed(self, name: str) -> bytes:
        return pair_seed(
            self.session, bytes.fromhex(self.state.masking_key), self.site, self._advert(name)
        )


def own_purpose(session: Session, site: str) -> bytes:
    return b"self\0" + session.digest + site.encode()


def pair_seed(session: Session, own_key: bytes, own: str, other: Advert) -> bytes:
    """The seed of the mask that ``own`` and ``other`` share, from either side's private key."""
    first, second = sorted((own, other.site))
    purpose = b"pair\0" + session.digest + f"{first}\0{second}".encode()
    return masks.seed_of(_agreed(own_key, other.masking_key), purpose)


def _public(private: str) -> str:
    return (
        X25519PrivateKey.from_private_bytes(bytes.fromhex(private))
        .public_key()
        .public_bytes_raw()
        .hex()
    )


def _agreed(private: bytes, public: str) -> bytes:
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(bytes.fromhex(public))
        )
    except ValueError:
        raise Refused("a public key is not one of the curve") from None
