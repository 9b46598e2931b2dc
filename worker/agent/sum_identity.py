"""The key by which other sites know a client of this one: made here, told to the coordinator."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from core.secagg.identity import fingerprint, identity_of, public_hex
from worker import logs
from worker.agent import peers
from worker.agent.site import Site
from worker.agent.sums import purpose
from worker.answers import JsonObject
from worker.client import CoordinatorClient
from worker.config import ClientConfig
from worker.errors import ApiProblem, ConfigError

_log = logs.get("worker.sum_identity")


def key_of(site: Site, client: str) -> str:
    """The client's public key in hexadecimal. It comes from the site's secret: a backup of the
    state folder has it, and whoever restores that is the same client.
    """
    return public_hex(identity_of(site.key(purpose(client))))


def register(coordinator: CoordinatorClient, me: JsonObject, site: Site) -> None:
    """Tell the coordinator this client's key. ``me``: the client as it is there. Raises
    ``ApiProblem`` if it knows another one.
    """
    coordinator.put_identity_key(str(me["id"]), key_of(site, str(me["name"])))


def register_softly(coordinator: CoordinatorClient, me: JsonObject, site: Site) -> None:
    """The same at an agent's start: plain runs do not need it."""
    try:
        register(coordinator, me, site)
    except ApiProblem as problem:
        if problem.needs_person:
            raise
        if problem.status in (404, 405):
            return  # a coordinator of before secure sums
        _log.error("identity_not_registered", client=me["name"], problem=problem.problem,
                   reason=problem.detail, mend=problem.mend)  # fmt: skip


@dataclass(frozen=True)
class Offered:
    """A client of a run as the coordinator shows it, and whether its key is pinned here."""

    client: str
    key: str
    fingerprint: str
    pinned: bool


def offered(coordinator: CoordinatorClient, run: str, config: ClientConfig) -> list[Offered]:
    """The other clients of a run. Raises ``ConfigError`` for one without a key, or with another
    than is pinned here.
    """
    known = peers.pinned(config)
    found = []
    for peer in coordinator.peers(run):
        if peer.client == config.name:
            continue
        if peer.key is None:
            raise ConfigError(
                f"{peer.client!r} has told the coordinator no key yet.",
                field="peers",
                mend="Its site runs 'fedhypevae agent identity register', or for a managed client "
                "the administrator 'fedhypevae admin clients identity-key'; then try again.",
            )
        if known.get(peer.client, peer.key) != peer.key:
            raise ConfigError(
                f"the coordinator shows another key of {peer.client!r} ({fingerprint(peer.key)}) "
                f"than the one that is pinned here ({fingerprint(known[peer.client])}).",
                field="peers",
                mend="Ask its people which is theirs. If it is the new one, take the old one out "
                f"of {config.peers}.",
            )
        found.append(
            Offered(peer.client, peer.key, fingerprint(peer.key), pinned=peer.client in known)
        )
    return found


def trusted(
    found: Collection[Offered], told: Mapping[str, str], *, everybody: bool
) -> dict[str, str]:
    """Keys to pin: those whose fingerprints somebody was ``told`` by their people, or all. Raises
    ``ConfigError`` for a fingerprint that is another one, or of nobody here.
    """
    names = {peer.client for peer in found}
    if strangers := sorted(set(told) - names):
        raise ConfigError(
            f"{', '.join(strangers)}: no other client of this run.",
            field="--trust",
            mend=f"Its other clients are {', '.join(sorted(names))}.",
        )
    chosen = {}
    for peer in found:
        given = told.get(peer.client)
        if given is not None and _letters(given) != _letters(peer.fingerprint):
            raise ConfigError(
                f"{peer.client!r} has the fingerprint {peer.fingerprint}, not {given}: somebody "
                "may stand between. Nothing was pinned.",
                field="--trust",
                mend="Ask its people again; tell the coordinator's administrator.",
            )
        if given is not None or everybody:
            chosen[peer.client] = peer.key
    return chosen


def _letters(text: str) -> str:
    return "".join(text.split()).lower()
