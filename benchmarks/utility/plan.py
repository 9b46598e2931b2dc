"""Which cells are measured: methods, epsilons and seeds, and the rows that a job fills.

A job is what is run once: a method at one epsilon and seed. It fills the cells of one or more
rows: our generator is trained once and scored from the neutral code and from all codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.evaluation.baselines.linear import LEARNING_RATES
from core.evaluation.baselines.methods import METHODS
from core.federation.rule import NoiseMode

OURS = "ours"
OURS_AGGREGATED = "ours-aggregated"  # beside local noise: ours with noise added once, to the sum
NEUTRAL, CODES, AGGREGATED = "sketch-neutral", "sketch-codes", "sketch-aggregated"
OUR_ROWS = (NEUTRAL, CODES, AGGREGATED)
LINEAR = "dp-sgd-linear"
NOT_PRIVATE = ("real", "local-only")
SYNTHETIC_BASELINES = ("class-means", "shared-gaussian", "class-diagonal", "dp-merf", "dp-cvae")
ALL_METHODS = (*METHODS, OURS, OURS_AGGREGATED)

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
# Distances between thousands of rows and an attack: at these cells only.
FIDELITY_EPSILONS = (1.0, 8.0)
FIDELITY_SEEDS = (0, 1)
RUN_COST = "run-cost"  # the cell of time and memory of one run

# Seconds of a job on one core, roughly: the progress bar's weights, and which jobs come first.
_COST = {"dp-cvae": 40.0, "dp-merf": 30.0, OURS: 8.0, OURS_AGGREGATED: 5.0, "shared-gaussian": 5.0}
_COST_OF_OTHERS, _COST_OF_FIDELITY = 3.0, 8.0


@dataclass(frozen=True)
class Tier:
    """Methods that are measured at the same epsilons on the same number of seeds."""

    methods: tuple[str, ...]
    epsilons: tuple[float, ...]
    seeds: int


STANDARD = (
    Tier(NOT_PRIVATE, EPSILONS, 5),
    Tier(("class-means", "shared-gaussian", LINEAR, OURS, OURS_AGGREGATED), EPSILONS, 5),
    Tier(("class-diagonal", "dp-merf", "dp-cvae"), (1.0, 8.0), 2),
)


def tiers(
    methods: Sequence[str] | None,
    epsilons: Sequence[float] | None,
    seeds: int | None,
    noise: NoiseMode,
) -> tuple[Tier, ...]:
    """The standard plan; whatever is given takes the place of its part in every tier.

    With aggregated noise "ours" is what "ours-aggregated" is beside local noise.
    """
    chosen = []
    for tier in STANDARD:
        kept = tuple(
            m
            for m in tier.methods
            if (methods is None or m in methods) and (m != OURS_AGGREGATED or noise == "local")
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
        if self.method == OURS:
            # Noise added once leaves one pooled client: its code and the neutral one are the same.
            return (NEUTRAL, CODES) if noise == "local" else (NEUTRAL,)
        if self.method == OURS_AGGREGATED:
            return (AGGREGATED,)
        return (rated(self.method, self.rate),)

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
