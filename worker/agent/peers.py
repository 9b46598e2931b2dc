"""The keys by which this site knows the other clients of its secure sums.

A file of names and public keys, written once the fingerprints were compared with the people of each
other site. What the coordinator says about keys never changes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from core.federation.plan import Name
from core.files import keep_private
from core.secagg.messages import Key
from worker.config import ClientConfig
from worker.errors import ConfigError

_FILE = TypeAdapter(dict[Name, Key])
_FIELD = "client.peers"


def pinned(config: ClientConfig) -> dict[str, str]:
    """Public keys in hexadecimal by client; empty if none are pinned. Raises ``ConfigError``."""
    if config.peers is None or not config.peers.exists():
        return {}
    try:
        found = _FILE.validate_json(config.peers.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{config.peers} is no file of pinned keys ({type(error).__name__}).",
            field=_FIELD,
            mend="Pin the keys again with 'fedhypevae agent identity peers'.",
        ) from None
    _once(found, f"Ask their people which of them it is, and mend {config.peers}.")
    return found


def _once(known: Mapping[str, str], mend: str) -> None:
    """Two names with one key are one party that counts twice."""
    twice = sorted(name for name, key in known.items() if list(known.values()).count(key) > 1)
    if twice:
        raise ConfigError(f"{', '.join(twice)} have one and the same key.", field=_FIELD, mend=mend)


def pin(config: ClientConfig, keys: Mapping[str, str]) -> None:
    """Add keys that a person has compared. Raises ``ConfigError`` for one that is pinned otherwise:
    it may be that somebody stands between, so a person must take the old one out first.
    """
    if config.peers is None:
        raise ConfigError(
            f"the site configuration names no file for the keys that {config.name!r} knows.",
            field=_FIELD,
            mend='Add peers = "peers.json" to this [[client]].',
        )
    known = pinned(config)
    changed = sorted(name for name, key in keys.items() if known.get(name, key) != key)
    if changed:
        raise ConfigError(
            f"{', '.join(changed)}: another key is pinned already.",
            field=_FIELD,
            mend=f"If its people confirm the new fingerprint, take it out of {config.peers} first.",
        )
    _once({**known, **keys}, "Ask their people. Nothing was pinned.")
    body = json.dumps({**known, **keys}, indent=2, sort_keys=True).encode() + b"\n"
    keep_private(config.peers, body, replace=True)


def unknown_of(config: ClientConfig, names: list[str]) -> list[str]:
    """Which of these clients, this one aside, have no pinned key."""
    known = pinned(config)
    return sorted(name for name in names if name != config.name and name not in known)
