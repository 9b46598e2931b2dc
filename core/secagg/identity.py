"""How people compare the keys by which sites know one another."""

from __future__ import annotations

import hashlib

_BYTES = 16


def fingerprint(key_hex: str) -> str:
    """Of an Ed25519 public key in hexadecimal: 128 bits of its hash in eight groups, to be read
    aloud. Nobody finds a second key of the same fingerprint.
    """
    digest = hashlib.sha256(b"fhv-identity " + bytes.fromhex(key_hex)).hexdigest()[: 2 * _BYTES]
    return " ".join(digest[at : at + 4] for at in range(0, len(digest), 4))
