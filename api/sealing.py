"""Secrets that lie in the database leave it only under the token pepper.

HKDF-SHA256 derives a key for each purpose, ChaCha20-Poly1305 seals under it, and the id of the row
is associated data: what was sealed for one row opens for no other.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE = 12


class OtherPepper(Exception):
    """The bytes were sealed under another pepper, for another purpose or another row."""


def seal(secret: bytes, *, pepper: bytes, purpose: str, row: str) -> bytes:
    """12 bytes of nonce, then the sealed secret with its tag."""
    nonce = os.urandom(_NONCE)
    return nonce + _cipher(pepper, purpose).encrypt(nonce, secret, row.encode())


def opened(sealed: bytes, *, pepper: bytes, purpose: str, row: str) -> bytes:
    """The secret. Raises ``OtherPepper``."""
    try:
        return _cipher(pepper, purpose).decrypt(sealed[:_NONCE], sealed[_NONCE:], row.encode())
    except InvalidTag as error:
        raise OtherPepper(f"cannot open the {purpose} of {row}") from error


def _cipher(pepper: bytes, purpose: str) -> ChaCha20Poly1305:
    info = f"fedhypevae {purpose} 1".encode()
    return ChaCha20Poly1305(HKDF(SHA256(), 32, salt=None, info=info).derive(pepper))
