"""Epsilon from events, by privacy loss distributions (dp-accounting). The ledger's only truth.

Neighbouring relation: add or remove one privacy unit. Unknown events are refused. Every result
is a pessimistic (upper) bound: discretised losses are rounded up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from importlib import metadata

import dp_accounting
from dp_accounting import pld, rdp
from scipy import optimize

from core.errors import UnknownPrivacyEvent
from core.privacy.events import PrivacyEvent

# Privacy losses are discretised pessimistically: any interval gives an upper bound, a finer one a
# tighter bound. The interval is this share of a coarse epsilon, so that the work does not grow
# with epsilon (an attacker could otherwise ask for epsilon = 100 and keep a core busy for minutes)
# and the bound stays within about 0.05 % of that of the library's default interval.
_COARSE_INTERVAL = 1e-2
_RELATIVE_INTERVAL = 2e-4
_FINEST_INTERVAL = 2e-5
_LOG_STEP = 5e-4  # precision of a calibrated multiplier, relative
_LEAST_TARGET = 1e-9  # of a calibration: below it losses are too small to be told from 0
_MAX_MULTIPLIER, _MIN_MULTIPLIER = 1e6, 1e-2
# What a statement names, so that somebody else can recompute it.
ACCOUNTANT = "privacy loss distributions (PLDAccountant)"
PACKAGE = "dp-accounting"
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
        # Discrete noise is post-processing of the Gaussian (theorem 1 of docs/discrete-noise.md).
        if mechanism in ("poisson-subsampled-gaussian", "poisson-subsampled-discrete-gaussian"):
            one = dp_accounting.PoissonSampledDpEvent(rate, one)
        elif mechanism not in ("gaussian", "discrete-gaussian"):
            raise UnknownPrivacyEvent(f"no accountant here knows {mechanism!r}", field="mechanism")
        parts.append(dp_accounting.SelfComposedDpEvent(one, steps))
    return dp_accounting.ComposedDpEvent(parts)


@lru_cache(maxsize=4096)
def _epsilon(key: _Key, delta: float) -> float:
    event = _dp_event(key)
    coarse = _bound(event, delta, _COARSE_INTERVAL)
    return _bound(event, delta, max(_FINEST_INTERVAL, _RELATIVE_INTERVAL * coarse))


def _bound(event: dp_accounting.DpEvent, delta: float, interval: float) -> float:
    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    accountant.compose(event)
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


def package_version() -> str:
    """The version of the package that computes epsilon here."""
    return metadata.version(PACKAGE)


def epsilon_rdp(events: Iterable[PrivacyEvent], delta: float) -> float:
    """The same by Renyi orders: looser, computed by other code; the cross-check of ``epsilon``."""
    key = _key(events)
    if not key:
        return 0.0
    accountant = rdp.RdpAccountant()
    accountant.compose(_dp_event(key))
    return float(accountant.get_epsilon(delta))


def calibrate(
    events_of: Callable[[float], Sequence[PrivacyEvent]], *, target: float, delta: float
) -> float:
    """A noise multiplier whose events spend at most epsilon ``target`` at ``delta``.

    Root search on the accountant itself, to 0.05 %; the returned value has been checked to stay
    within the target. ``events_of`` must be monotone: more noise, less epsilon.
    """
    if not (target > 0 and math.isfinite(target)):
        raise ValueError(f"epsilon must be positive and finite, not {target}")
    if target < _LEAST_TARGET:
        raise ValueError(f"epsilon={target} at delta={delta} needs too much noise")

    def excess(log_sigma: float) -> float:
        """log(epsilon / target): nearly a straight line in log sigma, hence few evaluations."""
        try:
            spent = epsilon(events_of(math.exp(log_sigma)), delta)
        except ArithmeticError:  # a share of the noise beyond what float64 can square
            raise ValueError(f"epsilon={target} at delta={delta} needs too much noise") from None
        return math.log(max(spent, 1e-12) / target)

    low, high = math.log(0.5), math.log(2.0)
    while excess(high) > 0:
        low, high = high, high + math.log(4.0)
        if high > math.log(_MAX_MULTIPLIER):
            raise ValueError(f"epsilon={target} at delta={delta} needs too much noise")
    while excess(low) <= 0:
        low, high = low - math.log(4.0), low
        if low < math.log(_MIN_MULTIPLIER):
            return math.exp(high)  # more noise than needed, and little enough to stop at
    root = float(optimize.brentq(excess, low, high, xtol=_LOG_STEP))
    while excess(root) > 0:
        root += _LOG_STEP
    return math.exp(root)
