"""From one noised vector of the report round to figures with standard errors.

Every figure is a function of the vector. Its standard error is the standard deviation of that
function over replicates: the vector, plus fresh noise of the known size, plus what drawing other
units of the same distribution would change (multinomial in each histogram). So noise and sampling
pass through ratios, medians and sums of squares alike. Replicates are drawn from a fixed seed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from core.federation.plan import RunSpec
from core.models.layout import report_layout
from core.report import blocks
from core.report.blocks import HELD_OUT, MEMBERS
from core.report.neighbours import row_count
from core.report.reference import Reference
from core.report.site import Estimate, Shares, SiteStatistics

Vector = NDArray[np.float64]

REPLICATES = 400
CONFIDENCE = 0.95
_SEED = 20261126
_CLOSE = blocks.QUANTILES.index(0.05) + 1  # bins below that quantile
_SEEN = 3.0  # standard deviations of noise above which a cell of the map holds records
_ONE_SD = (0.1587, 0.8413)  # quantiles one standard deviation below and above, of a Gaussian
_ONE_HOT = ("confusion", "nearest", "ratio", "map")


class SiteEstimator:
    """Of one vector [R] whose coordinates carry noise of standard deviation ``noise_std``."""

    def __init__(
        self, spec: RunSpec, reference: Reference, vector: Vector, noise_std: float
    ) -> None:
        self._spec, self._reference = spec, reference
        self._others = row_count(spec) - 1
        layout = report_layout(spec)
        self._shapes = dict(layout.blocks)
        self._noise = {name: noise_std / weight for name, weight in blocks.weights().items()}
        sums = {
            name: np.asarray(block, np.float64).ravel() / blocks.weights()[name]
            for name, block in layout.split(vector).items()
        }
        self._units = {part: self._counted(part, sums)[0] for part in (HELD_OUT, MEMBERS)}
        self._draw = np.random.default_rng(_SEED)
        self._drawn_right: Vector = np.zeros((REPLICATES, 1))
        self._sums = {name: self._replicated(name, block) for name, block in sums.items()}
        # [k] the number of units, in each replicate as it would have been estimated there.
        self._counts = {
            part: np.maximum(self._counted(part, self._sums)[0], 1.0)
            for part in (HELD_OUT, MEMBERS)
        }

    def _counted(self, part: str, sums: dict[str, Vector]) -> tuple[Vector, float]:
        """(units [...] of a part, their noise): the count and the sums of one-hot blocks, which
        count the same units, weighted by their precision.
        """
        total, precision = np.zeros(()), 0.0
        for name in ("count", "nearest", "ratio"):
            block = f"{part}.{name}"
            size = math.prod(self._shapes[block])
            weight = 1.0 / (size * self._noise[block] ** 2)
            total = total + weight * sums[block].sum(axis=-1)
            precision += weight
        return np.asarray(total / precision), math.sqrt(1.0 / precision)

    def _number(self, part: str) -> int:
        """How many units a part has, as far as is known; one at least."""
        return max(1, round(float(self._units[part])))

    def _replicated(self, name: str, block: Vector) -> Vector:
        """[1 + REPLICATES, size] the block, then its replicates."""
        part, _, kind = name.partition(".")
        shape = (REPLICATES, block.size)
        change = self._noise[name] * self._draw.standard_normal(shape)
        number = self._number(part)
        if kind in _ONE_HOT:
            expected = np.maximum(block, 0.0)
            if (total := expected.sum()) > 0:
                shares = expected / total
                drawn = self._draw.multinomial(number, shares, REPLICATES) - number * shares
                change += drawn
                if kind == "confusion":  # the same units answer rightly in the block ``right``
                    cells = drawn.reshape(-1, *self._shapes[name])
                    self._drawn_right = self._right(cells).sum(axis=1, keepdims=True)
        elif kind == "right":
            change += self._drawn_right
        elif kind in ("inside", "domains"):
            unit = self._domain_unit() if kind == "domains" else 1.0
            shares = np.clip(block / (number * unit), 0.0, 1.0)
            change += unit * (self._draw.binomial(number, shares, shape) - number * shares)
        elif kind == "features":
            change += math.sqrt(number) * self._features_of_one(REPLICATES)
            return np.concatenate([block[None], self._likely(name, block, number) + change])
        return np.concatenate([block[None], block + change])

    def _likely(self, name: str, block: Vector, number: int) -> Vector:
        """[F] features as far from the synthetic ones as they are without the noise in them: in so
        many coordinates, noise on top of noise would make a square much longer.
        """
        made = number * self._reference.features
        apart = block - made
        total = float(apart @ apart)
        true = max(0.0, total - block.size * self._noise[name] ** 2)
        return np.asarray(made + math.sqrt(true / max(total, 1e-300)) * apart)

    def _features_of_one(self, count: int) -> Vector:
        """[count, F] Gaussian with the covariance of synthetic rows: that of records is not
        released, and much of it lies along few axes.
        """
        axes, mean = self._reference.spread, self._reference.features
        rest = max(0.0, 1.0 - float(mean @ mean) - float(np.sum(axes**2))) / len(mean)
        along = self._draw.standard_normal((count, len(axes))) @ axes
        other = self._draw.standard_normal((count, len(mean)))
        return np.asarray(along + math.sqrt(rest) * other)

    def _domain_unit(self) -> float:
        return 1.0 / math.sqrt(max(len(self._reference.domains), 1))

    # --- figures ---

    def all(self, client: str) -> SiteStatistics:
        spec, held = self._spec, f"{HELD_OUT}."
        confusion = self._confusion()
        truth = confusion.sum(axis=2)
        right = self._right(confusion)
        near = {part: self._histogram(f"{part}.nearest") for part in (HELD_OUT, MEMBERS)}
        close = {part: self._histogram(f"{part}.ratio") for part in (HELD_OUT, MEMBERS)}
        shares = self._histogram(held + "map")
        whole = confusion.shape[1] == confusion.shape[2] == len(spec.space.classes)
        pairs = len(spec.space.classes) <= blocks.MOST_CONFUSED and whole
        rates = right / np.maximum(truth, 1.0 / self._counts[HELD_OUT][:, None])
        grid = shares.reshape(-1, blocks.CELLS, blocks.CELLS)
        return SiteStatistics(
            client=client,
            held_out=self._count(HELD_OUT),
            members=self._count(MEMBERS),
            accuracy=_estimate(self._accuracy(right)),
            recall=tuple(_of_ratio(rates[:, c]) for c in range(truth.shape[1])),
            class_shares=_shares(truth),
            confusion=_shares(confusion) if pairs else None,
            domains={
                name: _estimate(self._of_units(held + "domains")[:, place] / self._domain_unit())
                for place, name in enumerate(self._reference.domains)
            },
            mmd2=self._mmd2(),
            inside=_estimate(self._of_units(held + "inside")[:, 0]),
            coverage=self._coverage(shares),
            nearest=_shares(near[HELD_OUT]),
            nearest_members=_shares(near[MEMBERS]),
            ratio=_shares(close[HELD_OUT]),
            ratio_members=_shares(close[MEMBERS]),
            closer=_estimate(near[HELD_OUT][:, :_CLOSE].sum(axis=1)),
            closer_members=_estimate(near[MEMBERS][:, :_CLOSE].sum(axis=1)),
            median_ratio=_estimate(_median(close[HELD_OUT])),
            median_ratio_members=_estimate(_median(close[MEMBERS])),
            attack_auc=_estimate(_auc(near[MEMBERS], near[HELD_OUT])),
            attack_null_sd=_null_sd(self._number(MEMBERS), self._number(HELD_OUT)),
            epsilon_lower=self._epsilon_lower(near[MEMBERS], near[HELD_OUT]),
            map=_shares(grid),
        )

    def _of_units(self, name: str) -> Vector:
        """[k, size] a block over the number of its part's units."""
        return np.asarray(self._sums[name] / self._counts[name.partition(".")[0]][:, None])

    _histogram = _of_units

    def _confusion(self) -> Vector:
        """[k, C, width] shares of all held-out units."""
        shape = self._shapes[f"{HELD_OUT}.confusion"]
        return self._of_units(f"{HELD_OUT}.confusion").reshape(-1, *shape)

    def _right(self, confusion: Vector) -> Vector:
        """[k, C] shares of units of each class that are labelled rightly."""
        if len(self._spec.space.classes) <= blocks.MOST_CONFUSED:
            return np.asarray(np.diagonal(confusion, axis1=1, axis2=2))
        return np.asarray(confusion[:, :, 1])

    def _accuracy(self, right: Vector) -> Vector:
        """[k] from the number of right answers and from their numbers by class [k, C], weighted by
        the precision of their noise.
        """
        alone = self._of_units(f"{HELD_OUT}.right")[:, 0]
        by_class = right.shape[1] * self._noise[f"{HELD_OUT}.confusion"] ** 2
        once = self._noise[f"{HELD_OUT}.right"] ** 2
        return np.asarray((by_class * alone + once * right.sum(axis=1)) / (by_class + once))

    def _count(self, part: str) -> Estimate:
        block = {name: value[0] for name, value in self._sums.items()}
        value, sd = self._counted(part, block)
        return Estimate(float(value), sd)

    def _mmd2(self) -> Estimate:
        """|mean of features - synthetic mean|^2, less what noise and both samples add to it."""
        name = f"{HELD_OUT}.features"
        mean, count = self._of_units(name), self._counts[HELD_OUT]
        made = self._reference.features
        noise = mean.shape[1] * (self._noise[name] / count) ** 2
        length = np.clip(np.sum(mean**2, axis=1) - noise, 0.0, 1.0)
        sd = self._count(HELD_OUT).se
        by_count = length * (sd / count) ** 2  # the mean is divided by a noised number
        real, synthetic = (1.0 - length) / count, (1.0 - float(made @ made)) / self._others
        gap = np.sum((mean - made) ** 2, axis=1)
        return _estimate(gap - noise - by_count - real - synthetic)

    def _coverage(self, shares: Vector) -> Estimate:
        """What noise hides counts as not covered: a lower bound on average."""
        noise = self._noise[f"{HELD_OUT}.map"] / self._counts[HELD_OUT][:, None]
        return _estimate((shares > _SEEN * noise) @ self._reference.map.ravel())

    def _epsilon_lower(self, members: Vector, held_out: Vector) -> float:
        """The largest epsilon that the attack "nearer than a threshold: a member" rules out.

        (epsilon, delta) implies P(A) <= e^epsilon P'(A) + delta for members and others either way
        round. Rates are bounded at 95 % for all thresholds and directions together (Bonferroni),
        with sampling and noise in their standard errors.
        """
        delta = self._spec.plan.privacy.delta
        tests = 4 * blocks.DISTANCES
        quantile = float(ndtri(1.0 - (1.0 - CONFIDENCE) / (2 * tests)))
        best = 0.0
        rates = [np.cumsum(each, axis=1)[:, :-1] for each in (members, held_out)]
        numbers = (self._number(MEMBERS), self._number(HELD_OUT))
        bounds = []
        for rate, number in zip(rates, numbers, strict=True):
            # The last term: a rate of 0 of n units still has an upper bound above 0.
            reach = quantile * rate[1:].std(axis=0) + quantile**2 / number
            bounds.append((rate[0] - reach, rate[0] + reach))
        for one, other in ((0, 1), (1, 0)):
            (low, high), (below, above) = bounds[one], bounds[other]
            for numerator, denominator in ((low, above), (1.0 - high, 1.0 - below)):
                shown = (numerator - delta > 0) & (denominator > 0)
                ratio = (numerator - delta)[shown] / np.minimum(denominator[shown], 1.0)
                best = max(best, float(np.log(ratio).max(initial=0.0)))
        return best


def _estimate(values: Vector) -> Estimate:
    """From [k] values of the vector and its replicates."""
    return Estimate(float(values[0]), float(values[1:].std()))


def _of_ratio(values: Vector) -> Estimate:
    """The same by quantiles: a few replicates have a denominator near 0."""
    low, high = np.quantile(values[1:], _ONE_SD)
    return Estimate(float(values[0]), float(high - low) / 2.0)


def _shares(values: Vector) -> Shares:
    return Shares(values[0], values[1:].std(axis=0))


def _auc(members: Vector, held_out: Vector) -> Vector:
    """[k] chance that a member lies nearer than a held-out unit; within one bin, one half."""
    farther = held_out.sum(axis=1, keepdims=True) - np.cumsum(held_out, axis=1)
    wins = np.sum(members * (farther + held_out / 2.0), axis=1)
    # Rates that are not quite 1 in sum would count as an attack.
    totals = members.sum(axis=1) * held_out.sum(axis=1)
    return np.asarray(wins / np.where(totals > 0.25, totals, 1.0))


def _null_sd(members: int, held_out: int) -> float:
    return math.sqrt((members + held_out + 1) / (12.0 * members * held_out))


def _median(shares: Vector) -> Vector:
    """[k] medians of ratio histograms [k, bins], as if shares were spread evenly within a bin.

    Negative shares are not cut off, which would move the median to the emptier side; what they do
    to the order of the cumulative shares is averaged out from both ends.
    """
    edges = np.array([0.0, *blocks.RATIOS, 1.0])
    raw = np.cumsum(shares, axis=1)
    raw = np.clip(raw / np.maximum(raw[:, -1:], 0.25), 0.0, 1.0)
    rising = np.maximum.accumulate(raw, axis=1)
    falling = np.minimum.accumulate(raw[:, ::-1], axis=1)[:, ::-1]
    cumulative = (rising + falling) / 2.0
    place = np.minimum((cumulative < 0.5).sum(axis=1), shares.shape[1] - 1)
    row = np.arange(len(shares))
    before = np.where(place > 0, cumulative[row, np.maximum(place - 1, 0)], 0.0)
    inside = (0.5 - before) / np.maximum(cumulative[row, place] - before, 1e-12)
    return np.asarray(edges[place] + np.clip(inside, 0.0, 1.0) * np.diff(edges)[place])
