"""From right guesses to a lower bound on epsilon, in one run.

Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run", theorem 5.2: m units
are included by independent fair coins, the mechanism is (epsilon, delta)-private for adding or
removing any ONE of them, and at most r of m guesses are made from its output. Then, W being
Binomial(r, 1 / (1 + e^-epsilon)), the chance of v or more right guesses is at most

    P[W >= v] + 2 m delta max over i = 1..m of P[v - i <= W < v] / i.

How the guesses are made is free, as long as they are made from the output: a poor attacker gives a
poor bound, never a wrong one.

How many guesses are made must not depend on how well they turn out. Three numbers are fixed in
advance (``SHARES`` of the canaries), each is tested at a third of the error (Bonferroni), and the
best counts: together they are wrong no more often than the error says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95  # one-sided
SHARES = (1.0, 0.25, 0.0625)  # of the canaries that are guessed; the others are abstained from
_PRECISION = 1e-3  # of a bound, in epsilon
_HIGHEST = 64.0  # far beyond what any number of canaries proves


@dataclass(frozen=True)
class Proof:
    """A lower bound and what it rests on.

    ``epsilon`` is below the true one with the confidence asked for; ``guesses`` were made and
    ``right`` of them were.
    """

    epsilon: float
    canaries: int
    guesses: int
    right: int


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Chance, at most, of ``right`` or more right guesses if (epsilon, delta) held."""
    if not 0 <= right <= guesses <= canaries:
        raise ValueError("0 <= right <= guesses <= canaries does not hold")
    if not (epsilon >= 0.0 and 0.0 <= delta <= 1.0):
        raise ValueError("epsilon must not be negative and delta lies in [0, 1]")
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(stats.binom.sf(right - 1, guesses, chance))
    if delta == 0.0 or right == 0:
        return min(1.0, tail)
    # Right guesses that an event of probability delta adds: i of them cost delta / i each. More
    # than ``right`` cannot be added, so i ends there.
    added = np.arange(1, right + 1)
    missing = np.cumsum(stats.binom.pmf(right - added, guesses, chance))
    return min(1.0, tail + 2.0 * canaries * delta * float(np.max(missing / added)))


@lru_cache(maxsize=4096)  # simulated audits ask for the same counts again and again
def lower_bound(
    canaries: int, guesses: int, right: int, delta: float, *, confidence: float = CONFIDENCE
) -> float:
    """The largest epsilon, to 1e-3, that so many right guesses refute; 0 if they refute none.

    The returned value itself is refuted (checked, not interpolated). That is enough even where
    ``p_value`` does not rise in epsilon everywhere: what is (epsilon, delta)-private is so for any
    larger epsilon too, so refuting one refutes all below it.
    """
    error = 1.0 - confidence
    if p_value(canaries, guesses, right, 0.0, delta) > error:
        return 0.0
    low, high = 0.0, _HIGHEST
    while high - low > _PRECISION:
        middle = 0.5 * (low + high)
        if p_value(canaries, guesses, right, middle, delta) <= error:
            low = middle
        else:
            high = middle
    return low


def prove(
    belief: NDArray[np.float64],
    included: NDArray[np.bool_],
    delta: float,
    *,
    confidence: float = CONFIDENCE,
) -> Proof:
    """The best of the bounds at the ``SHARES`` of guesses, with ``confidence`` for all together.

    ``belief`` [m] is the attacker's, above 0.5 for "in"; the surest are guessed. ``included`` [m]
    the coins.
    """
    canaries = len(included)
    surest = np.argsort(-np.abs(belief - 0.5), kind="stable")
    hits = (belief > 0.5) == included
    single = 1.0 - (1.0 - confidence) / len(SHARES)
    proofs = []
    for share in SHARES:
        guesses = max(1, round(share * canaries))
        right = int(hits[surest[:guesses]].sum())
        epsilon = lower_bound(canaries, guesses, right, delta, confidence=single)
        proofs.append(Proof(epsilon, canaries, guesses, right))
    return max(proofs, key=lambda proof: proof.epsilon)


def most(canaries: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The bound of ``prove`` if every guess is right: what so many canaries can prove at most."""
    single = 1.0 - (1.0 - confidence) / len(SHARES)
    counts = [max(1, round(share * canaries)) for share in SHARES]
    return max(lower_bound(canaries, n, n, delta, confidence=single) for n in counts)


def ideal(
    canaries: int, signal: float, delta: float, draws: np.random.Generator, *, runs: int = 25
) -> float:
    """Median bound of a perfect attacker on perfect canaries, over ``runs`` simulated audits.

    Perfect: no canary disturbs another, each has the full length that clipping leaves, and all
    else is known. What is seen of one is then N(signal * coin, 1), ``signal`` the root of the sum
    over releases of (sample rate / noise multiplier)^2.
    """
    bounds = []
    for _ in range(runs):
        included = draws.random(canaries) < 0.5
        seen = signal * (included - 0.5) + draws.standard_normal(canaries)
        belief = 1.0 / (1.0 + np.exp(-np.clip(signal * seen, -500.0, 500.0)))
        bounds.append(prove(belief, included, delta).epsilon)
    return float(np.median(bounds))
