"""The long-lived key by which the other sites of a secure sum know a client."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_BYTES = 32
_GROUPS, _LETTERS = 8, 4


def identity_of(secret: bytes) -> Ed25519PrivateKey:
    """The key of a client out of 32 secret bytes that only its site has."""
    return Ed25519PrivateKey.from_private_bytes(secret[:KEY_BYTES])


def public_hex(identity: Ed25519PrivateKey) -> str:
    return identity.public_key().public_bytes_raw().hex()


def is_signed(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether who has the public ``key`` has signed ``message``; no for bytes that are no key."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(key: str) -> str:
    """128 bits of a public key's hash, in groups to read aloud. ``key``: 64 hexadecimal digits."""
    digest = hashlib.sha256(b"fhv-identity " + bytes.fromhex(key)).hexdigest()
    return " ".join(digest[at * _LETTERS :][:_LETTERS] for at in range(_GROUPS))
