"""Which cells are measured: methods, epsilons and seeds, and the rows that a job fills.

A job is what is run once: a method at one epsilon and seed. It fills the cells of one or more
rows: our generator is trained once and scored in several ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.evaluation.baselines.linear import LEARNING_RATES
from core.evaluation.baselines.methods import METHODS
from core.federation.rule import NoiseMode

# The whole method, and the generator of its sketch rounds alone; beside local noise, either with
# noise added once, to the sum.
OURS, OURS_AGGREGATED = "ours", "ours-aggregated"
SKETCH, SKETCH_AGGREGATED = "sketch", "sketch-aggregated"
OUR_METHODS = (OURS, OURS_AGGREGATED, SKETCH, SKETCH_AGGREGATED)
AGGREGATED_METHODS = (OURS_AGGREGATED, SKETCH_AGGREGATED)
# Rows of ours: labels by the trained classifier, but for UNGUIDED, whose labels are the
# generator's; CLASSIFIER is that classifier itself on real test records, without any synthesis.
NEUTRAL, CODES, UNGUIDED = "ours-neutral", "ours-codes", "ours-unguided"
CLASSIFIER = "ours-classifier"
SKETCH_NEUTRAL, SKETCH_CODES = "sketch-neutral", "sketch-codes"
OUR_ROWS = (
    SKETCH_NEUTRAL, SKETCH_CODES, SKETCH_AGGREGATED,
    UNGUIDED, CLASSIFIER, NEUTRAL, CODES, OURS_AGGREGATED,
)  # fmt: skip
LINEAR = "dp-sgd-linear"
NOT_PRIVATE = ("real", "local-only")
PAPER = "paper"  # has noise, set by an epsilon, but no guarantee for a record
SYNTHETIC_BASELINES = ("class-means", "shared-gaussian", "class-diagonal", "dp-merf", "dp-cvae")
ALL_METHODS = (*METHODS, *OUR_METHODS)

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
# Distances between thousands of rows and an attack: at these cells only.
FIDELITY_EPSILONS = (1.0, 8.0)
FIDELITY_SEEDS = (0, 1)
DOMAIN_EPSILON = 4.0  # where a site's own code is compared with the neutral one, on all seeds
RUN_COST = "run-cost"  # the cell of time and memory of one run

# Seconds of a job on one core, roughly: the progress bar's weights, and which jobs come first.
_COST = {
    "dp-cvae": 40.0, "dp-merf": 30.0, PAPER: 30.0, OURS: 22.0, OURS_AGGREGATED: 13.0, SKETCH: 12.0,
    SKETCH_AGGREGATED: 7.0, "shared-gaussian": 6.0,
}  # fmt: skip
_COST_OF_OTHERS, _COST_OF_FIDELITY = 3.0, 8.0


@dataclass(frozen=True)
class Tier:
    """Methods that are measured at the same epsilons on the same number of seeds."""

    methods: tuple[str, ...]
    epsilons: tuple[float, ...]
    seeds: int


def standard(methods: Sequence[str]) -> tuple[Tier, ...]:
    """The standard plan over the registered baselines ``methods``."""
    few = ("class-diagonal", "dp-merf", "dp-cvae", PAPER)
    return (
        Tier(NOT_PRIVATE, EPSILONS, 5),
        Tier(("class-means", "shared-gaussian", LINEAR, *OUR_METHODS), EPSILONS, 5),
        Tier(tuple(m for m in few if m in methods), (1.0, 8.0), 2),
    )


STANDARD = standard(tuple(METHODS))


def tiers(
    methods: Sequence[str] | None,
    epsilons: Sequence[float] | None,
    seeds: int | None,
    noise: NoiseMode,
) -> tuple[Tier, ...]:
    """The standard plan; whatever is given takes the place of its part in every tier.

    With aggregated noise "ours" and "sketch" are what "ours-aggregated" and "sketch-aggregated" are
    beside local noise.
    """
    chosen = []
    for tier in STANDARD:
        kept = tuple(
            m
            for m in tier.methods
            if (methods is None or m in methods)
            and (m not in AGGREGATED_METHODS or noise == "local")
        )
        if kept:
            chosen.append(
                replace(
                    tier,
                    methods=kept,
                    epsilons=tier.epsilons if epsilons is None else tuple(sorted(set(epsilons))),
                    seeds=tier.seeds if seeds is None else seeds,
                )
            )
    return tuple(chosen)


@dataclass(frozen=True)
class Job:
    """One run of one method. ``epsilon`` None: the method is not private.

    ``rate`` is the learning rate where several are compared.
    """

    method: str
    epsilon: float | None
    seed: int
    rate: float | None = None

    @property
    def name(self) -> str:
        """Seeds the noise; two jobs never share it."""
        return key(rated(self.method, self.rate), self.epsilon, self.seed)

    @property
    def cost(self) -> float:
        extra = _COST_OF_FIDELITY if self.measures_fidelity else 0.0
        return _COST.get(self.method, _COST_OF_OTHERS) + extra

    @property
    def measures_fidelity(self) -> bool:
        """Whether distances to real records and the attack are measured, too."""
        at = self.epsilon is None or self.epsilon in FIDELITY_EPSILONS
        makes_records = self.method not in ("local-only", LINEAR)
        return makes_records and at and self.seed in FIDELITY_SEEDS

    def rows(self, noise: NoiseMode) -> tuple[str, ...]:
        """Rows of the tables that this job fills."""
        rows: tuple[str, ...] = (rated(self.method, self.rate),)
        if self.method == OURS:
            rows = (NEUTRAL, CODES, UNGUIDED, CLASSIFIER)
        if self.method == SKETCH:
            rows = (SKETCH_NEUTRAL, SKETCH_CODES)
        # Noise added once leaves one pooled client: its code and the neutral one are the same.
        return (
            rows if noise == "local" else tuple(r for r in rows if r not in (CODES, SKETCH_CODES))
        )

    def keys(self, noise: NoiseMode) -> tuple[str, ...]:
        """Cells that this job fills."""
        return tuple(key(row, self.epsilon, self.seed) for row in self.rows(noise))


def rated(method: str, rate: float | None) -> str:
    return method if rate is None else f"{method}/{rate:g}"


RATED_ROWS = tuple(rated(LINEAR, rate) for rate in LEARNING_RATES)


def key(row: str, epsilon: float | None, seed: int) -> str:
    """The cell's name in the store."""
    return f"{row}|{'-' if epsilon is None else f'{epsilon:g}'}|{seed}"


def jobs(plan: Sequence[Tier]) -> list[Job]:
    """All jobs, seed by seed; within a seed the long ones first, so that no worker idles."""
    found = [
        Job(method, epsilon, seed, rate)
        for tier in plan
        for method in tier.methods
        for epsilon in ((None,) if method in NOT_PRIVATE else tier.epsilons)
        for seed in range(tier.seeds)
        for rate in (LEARNING_RATES if method == LINEAR else (None,))
    ]
    return sorted(found, key=lambda job: (job.seed, -job.cost))
