"""Secret per-unit randomness: Poisson inclusion, the code-dropout coin, latent draws.

Every value is a keyed hash of (run, round, attempt, purpose, unit id) under the site's secret.
Removing a unit therefore changes no other unit's coins: what a unit contributes is a function of
that unit alone, which is what makes the clipped sum's sensitivity C. A stream by batch position
would reassign everybody behind the removed unit. Inclusion must stay secret and independent
across rounds and local steps, otherwise the amplification by sampling that the accountant books is
void.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

_WORDS = 8  # 64-bit words in one BLAKE2b digest


@dataclass(frozen=True)
class CoinStream:
    """The secret stream of one attempt at one round of one run.

    ``secret`` is at least 32 bytes that never leave the site. ``step`` counts local steps from 0:
    each has coins of its own.
    """

    secret: bytes
    run_id: str
    round_number: int
    attempt: int
    step: int = 0

    def at_step(self, step: int) -> CoinStream:
        """The independent stream of another local step of the same attempt."""
        return replace(self, step=step)

    def __post_init__(self) -> None:
        if len(self.secret) < 32:
            raise ValueError("the site's secret must have at least 32 bytes")

    def _words(self, purpose: str, unit_ids: Sequence[bytes], blocks: int) -> NDArray[np.uint64]:
        """[units, blocks * 8] uniform 64-bit words."""
        if self.step:  # no purpose has a slash, so no two streams share a scope
            purpose = f"step-{self.step}/{purpose}"
        scope = f"{self.run_id}\0{self.round_number}\0{self.attempt}\0{purpose}\0".encode()
        key = hashlib.blake2b(self.secret, person=b"fhv-coin-stream").digest()
        parts = []
        for unit in unit_ids:
            keyed = hashlib.blake2b(scope + unit, key=key)
            parts.append(keyed.digest())
            for block in range(1, blocks):
                more = keyed.copy()
                more.update(b"\0block" + block.to_bytes(4, "little"))
                parts.append(more.digest())
        words = np.frombuffer(b"".join(parts), dtype="<u8")
        return words.reshape(len(unit_ids), blocks * _WORDS)

    def bernoulli(
        self, purpose: str, unit_ids: Sequence[bytes], probability: float
    ) -> NDArray[np.bool_]:
        """One independent coin [units] for each unit; True with ``probability`` (to 2^-64)."""
        if probability >= 1.0:
            return np.ones(len(unit_ids), dtype=bool)
        words = self._words(purpose, unit_ids, 1)[:, 0]
        return np.asarray(words < np.uint64(int(probability * 2.0**64)))

    def normal(self, purpose: str, unit_ids: Sequence[bytes], width: int) -> NDArray[np.float64]:
        """Standard normal draws [units, width], by Box and Muller over the keyed hash."""
        pairs = (width + 1) // 2
        blocks = -(-2 * pairs // _WORDS)
        words = self._words(purpose, unit_ids, blocks)[:, : 2 * pairs]
        # 53 bits, shifted by half a step: never 0, so the logarithm is finite.
        uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(uniform[:, :pairs]))
        angle = 2.0 * np.pi * uniform[:, pairs:]
        draws = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return np.asarray(draws[:, :width])
