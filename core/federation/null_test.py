"""The null-coordinate test: does an update carry the noise that was promised?

Every update ends with n = 256 coordinates whose gradient is zero by construction and whose noise
is the same N(0, s^2) as everywhere else, s = sqrt(E) z S: E the local steps of the round (1 but in
training), z the noise multiplier, S the sensitivity. For a site that keeps the promise

    |null|^2 / s^2 is chi-square with n degrees of freedom,

and the update is refused if it lies outside the two quantiles with 0.5e-9 in each tail, moved
apart by what float32 can do. Then the probability of a false alarm is below 1e-9 for one update,
and below U * 1e-9 for all U updates of a coordinator's life (union bound). The derivation, the
rounding and the power are in docs/update-checks.md.

It finds broken sites (no noise, noise of another scale, of one step instead of E), not malicious
ones: a site that wants to can put honest noise here and none elsewhere.
"""

from __future__ import annotations

import math
from functools import lru_cache

from scipy import stats

from core.models.layout import NULL_COORDINATES

FALSE_ALARM = 1e-9
_UNIT_ROUNDOFF = 2.0**-24  # of float32


@lru_cache(maxsize=128)
def accepted(steps: int) -> tuple[float, float]:
    """(smallest, largest) accepted |null| / s of an update that sums ``steps`` releases."""
    low = math.sqrt(stats.chi2.ppf(FALSE_ALARM / 2, NULL_COORDINATES))
    high = math.sqrt(stats.chi2.isf(FALSE_ALARM / 2, NULL_COORDINATES))
    margin = 2.0 * rounding(steps)
    return low - margin, high + margin


def rounding(steps: int) -> float:
    """By how much float32 moves |null| / s at most, but for a chance of 1e-55.

    Each step's noise is rounded to float32, the float64 sum of them once more: relative errors of
    u = 2^-24 in each coordinate, so |null| moves by u (sum of the steps' norms + norm of the sum)
    at most. By Gaussian concentration the norms, over s, stay below 32 sqrt(E) together and 32.
    """
    return _UNIT_ROUNDOFF * 32.0 * (math.sqrt(steps) + 1.0)


def detection(ratio: float) -> float:
    """Probability that noise of ``ratio`` times the promised standard deviation is refused."""
    low, high = accepted(1)
    inside = stats.chi2.cdf((high / ratio) ** 2, NULL_COORDINATES)
    return float(1.0 - inside + stats.chi2.cdf((low / ratio) ** 2, NULL_COORDINATES))
