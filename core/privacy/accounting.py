"""Epsilon from events, by privacy loss distributions (dp-accounting). The ledger's only truth.

Neighbouring relation: add or remove one privacy unit. Unknown events are refused. Every result
is a pessimistic (upper) bound: discretised losses are rounded up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import dp_accounting
from dp_accounting import pld, rdp

from core.errors import UnknownPrivacyEvent
from core.privacy.events import PrivacyEvent

# Losses are rounded up to multiples of this; composition of k events adds at most about
# sqrt(k) * interval to epsilon. 1e-4 is the library's default.
_DISCRETISATION = 1e-4
_Key = tuple[tuple[str, float, float, int], ...]


def _key(events: Iterable[PrivacyEvent]) -> _Key:
    """Events as a sorted multiset: composition of these mechanisms does not depend on order."""
    counts: Counter[tuple[str, float, float]] = Counter()
    for event in events:
        if event.relation != "add-remove-one-unit":
            raise UnknownPrivacyEvent(
                f"no accountant here knows the relation {event.relation!r}", field="relation"
            )
        counts[(event.mechanism, event.noise_multiplier, event.sample_rate)] += event.steps
    return tuple(sorted((*kind, steps) for kind, steps in counts.items()))


def _dp_event(key: _Key) -> dp_accounting.DpEvent:
    parts: list[dp_accounting.DpEvent] = []
    for mechanism, sigma, rate, steps in key:
        one: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(sigma)
        if mechanism == "poisson-subsampled-gaussian":
            one = dp_accounting.PoissonSampledDpEvent(rate, one)
        elif mechanism != "gaussian":
            raise UnknownPrivacyEvent(f"no accountant here knows {mechanism!r}", field="mechanism")
        parts.append(dp_accounting.SelfComposedDpEvent(one, steps))
    return dp_accounting.ComposedDpEvent(parts)


@lru_cache(maxsize=4096)
def _epsilon(key: _Key, delta: float) -> float:
    accountant = pld.PLDAccountant(value_discretization_interval=_DISCRETISATION)
    accountant.compose(_dp_event(key))
    return float(accountant.get_epsilon(delta))


def epsilon(events: Iterable[PrivacyEvent], delta: float) -> float:
    """Upper bound on epsilon of the composition of ``events`` at ``delta`` (0 for no events).

    The cache is keyed by the events themselves, so it cannot disagree with a recomputation.
    Raises ``UnknownPrivacyEvent`` for an event that the accountant does not know.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must lie in (0, 1), not {delta}")
    key = _key(events)
    return _epsilon(key, delta) if key else 0.0


def epsilon_rdp(events: Iterable[PrivacyEvent], delta: float) -> float:
    """The same by Renyi orders: looser, computed by other code; the cross-check of ``epsilon``."""
    key = _key(events)
    if not key:
        return 0.0
    accountant = rdp.RdpAccountant()
    accountant.compose(_dp_event(key))
    return float(accountant.get_epsilon(delta))


def calibrate(
    events_of: Callable[[float], Sequence[PrivacyEvent]], *, epsilon: float, delta: float
) -> float:
    """Smallest noise multiplier (to 0.1 %) whose events spend at most ``epsilon`` at ``delta``.

    Bisection on the accountant itself; the returned value has been checked to stay within the
    target. ``events_of`` must be monotone: more noise, less epsilon.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon must be positive and finite, not {epsilon}")
    target = epsilon
    spend = globals()["epsilon"]
    high = 1.0
    while spend(events_of(high), delta) > target:
        high *= 2.0
        if high > 1e6:
            raise ValueError(f"epsilon={target} at delta={delta} needs a noise multiplier > 1e6")
    low = high / 2.0
    while low > 1e-2 and spend(events_of(low), delta) <= target:
        high, low = low, low / 2.0
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        if spend(events_of(middle), delta) <= target:
            high = middle
        else:
            low = middle
    return high
