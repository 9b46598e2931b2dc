"""Masks: pseudorandom vectors modulo 2^bits from a 256-bit seed (ChaCha20), and how they add up.

A pair of sites adds and subtracts the same mask; a site's own mask is taken off by the collector
once it knows that the site's vector counts. All vectors are uint32 where 32 bits suffice and uint64
otherwise: arithmetic wraps at the word, which 2^bits divides, so the remainder comes last.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

SEED_BYTES = 32
MOST_BITS = 64
Vector = NDArray[np.unsignedinteger[Any]]
_PIECE = 1 << 16  # coordinates: a piece of a mask stays in a core's cache


def word(bits: int) -> type[np.uint32] | type[np.uint64]:
    """The type of vectors modulo 2^bits."""
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"bits must lie in 1..{MOST_BITS}, not {bits}")
    return np.uint32 if bits <= 32 else np.uint64


def seed_of(secret: bytes, purpose: bytes) -> bytes:
    """A 256-bit seed for one purpose out of an agreed or random secret (HKDF-SHA256)."""
    return HKDF(hashes.SHA256(), SEED_BYTES, salt=None, info=b"fhv-secagg " + purpose).derive(
        secret
    )


def apply(total: Vector, plus: Iterable[bytes] = (), minus: Iterable[bytes] = ()) -> None:
    """Add the masks of the seeds in ``plus`` to ``total`` in place, and take off those in
    ``minus``. Each seed is used for one vector only: its stream is the mask.
    """
    streams = [(_stream(seed), 1) for seed in plus] + [(_stream(seed), -1) for seed in minus]
    width = total.dtype.itemsize
    zeros = bytes(min(_PIECE, len(total)) * width)
    # A cipher writes up to a block less one byte beyond its input's end.
    buffer = bytearray(len(zeros) + 128)
    for start in range(0, len(total), _PIECE):
        piece = total[start : start + _PIECE]
        size = len(piece) * width
        for stream, sign in streams:
            stream.update_into(memoryview(zeros)[:size], buffer)
            mask = np.frombuffer(buffer, total.dtype.newbyteorder("<"), len(piece))
            if sign > 0:
                np.add(piece, mask, out=piece)
            else:
                np.subtract(piece, mask, out=piece)


def _stream(seed: bytes) -> Any:
    return Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()


def encode(values: NDArray[np.int64], bits: int) -> Vector:
    """Signed integers [P] as numbers modulo 2^bits, in its words."""
    kind = word(bits)
    return values.astype(np.uint64, copy=False).astype(kind)


def decode(total: Vector, bits: int) -> NDArray[np.int64]:
    """The signed integers in [-2^(bits-1), 2^(bits-1)) that ``total`` is congruent to."""
    shift = np.uint64(MOST_BITS - bits)
    moved = total.astype(np.uint64) << shift
    return moved.astype(np.int64) >> shift.astype(np.int64)


def width(bits: int) -> int:
    """Bytes of a packed coordinate."""
    return -(-bits // 8)


def pack(vector: Vector, bits: int) -> bytes:
    """``ceil(bits / 8)`` bytes for each coordinate, little-endian: what goes over the wire."""
    size = width(bits)
    whole = vector.astype(vector.dtype.newbyteorder("<"), copy=False)
    if size == whole.dtype.itemsize:
        return whole.tobytes()
    return whole.view(np.uint8).reshape(len(vector), -1)[:, :size].tobytes()


def unpack(body: bytes, length: int, bits: int) -> Vector:
    """The packed vector [length]. Raises ``ValueError`` for another number of bytes."""
    size = width(bits)
    if len(body) != length * size:
        raise ValueError(f"{len(body)} bytes are not {length} coordinates of {size} bytes")
    kind = np.dtype(word(bits)).newbyteorder("<")
    if size == kind.itemsize:
        return np.frombuffer(body, kind).astype(word(bits))
    whole = np.zeros((length, kind.itemsize), np.uint8)
    whole[:, :size] = np.frombuffer(body, np.uint8).reshape(length, size)
    return whole.view(kind).ravel().astype(word(bits))
