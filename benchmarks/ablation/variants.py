"""The rows: the default plan, and what differs from it by one thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from benchmarks.utility.ours import Changes
from benchmarks.utility.plan import PAPER, key
from benchmarks.utility.records import Unit
from core.evaluation.baselines.methods import METHODS
from core.federation.rule import NoiseMode

DEFAULT = "default"
PAIRS, NOISE_ONCE = "pairs-as-units", "noise-once"
EPSILONS, SEEDS = (1.0, 8.0), 2
_SECONDS = 14.0  # of a run on one core, roughly


@dataclass(frozen=True)
class Variant:
    """``changes`` to the plan; ``part`` is the subject of the sentence on what it is worth.

    ``removes``: the row lacks a part of the default, whose worth is the default minus the row.
    Otherwise the row has something else, and its worth is the row minus ``base``. ``terms``: the
    row keeps another promise than the default (another unit, another trust model, none at all),
    so it is no alternative that a default could lose to.
    """

    name: str
    part: str
    changes: Changes = field(default_factory=dict)
    removes: bool = False
    base: str = DEFAULT
    terms: bool = False


def _removes(name: str, part: str, **changes: Mapping[str, Any]) -> Variant:
    return Variant(name, part, changes, removes=True)


def _instead(name: str, part: str, base: str = DEFAULT, **changes: Mapping[str, Any]) -> Variant:
    return Variant(name, part, changes, base=base)


_FEATURES = {"feature_weight": 0.3}
_ALL = (
    Variant(DEFAULT, "the default plan"),
    # the classifier
    _removes("no-guidance", "labels by the trained classifier", guidance={"labels": "none"}),
    _removes("no-classifier", "the classifier (without it: the CVAE's rounds alone, C = 1)",
             model={"classifier": "none"}, privacy={"clip_norm": 1.0}),
    _instead("widen-1", "guidance.widen = 1 instead of 2", guidance={"widen": 1.0}),
    _instead("widen-4", "guidance.widen = 4 instead of 2", guidance={"widen": 4.0}),
    _instead("classifier-noise-0.25", "optimiser.classifier_noise = 0.25 instead of 0.5",
             optimiser={"classifier_noise": 0.25}),
    _instead("classifier-noise-1", "optimiser.classifier_noise = 1 instead of 0.5",
             optimiser={"classifier_noise": 1.0}),
    # the generator
    _removes("untrained-generator", "training the generator", privacy={"clip_norm": 0.0}),
    _instead("clip-norm-1", "the generator's C = 1 instead of 0.25", privacy={"clip_norm": 1.0}),
    _instead("lowrank", "the form lowrank instead of film", model={"form": "lowrank"}),
    _instead("full", "the form full instead of film", model={"form": "full"}),
    _instead("local-encoder", "an encoder at each client", model={"encoder": "local"}),
    _instead("trained-codes", "trained codes", model={"codes": "trained"}),
    _removes("standard-prior", "priors by class and code", model={"prior": "standard"}),
    _removes("no-code-dropout", "code dropout", model={"code_dropout": 0.0}),
    _instead("features", "releasing random features (weight 0.3)", sketch=_FEATURES),
    _instead("mmd", "MMD to the released features (beside the row features)", "features",
             sketch=_FEATURES, regulariser={"mmd_weight": 10.0}),
    _instead("lipschitz", "the Lipschitz penalty (weight 1, limit 0.1)",
             regulariser={"lipschitz_weight": 1.0, "lipschitz_limit": 0.1}),
    _instead("momentum", "momentum instead of Adam", optimiser={"kind": "momentum"}),
    _removes("no-ema", "the moving average of the generator", optimiser={"ema_decay": 0.0}),
    # the budget
    _instead("sketch-share-0.9", "0.9 of epsilon for the sketch", privacy={"sketch_share": 0.9}),
    _instead("sketch-share-0.5", "0.5 of epsilon for the sketch", privacy={"sketch_share": 0.5}),
    _removes("one-sketch-step", "the second sketch step", privacy={"sketch_steps": 1}),
    _removes("sketch-alone", "all training rounds", privacy={"rounds": 0}),
    _instead("rounds-10", "10 rounds instead of 20", privacy={"rounds": 10}),
    _instead("rounds-40", "40 rounds instead of 20", privacy={"rounds": 40}),
    _instead("sample-rate-0.25", "a quarter of the units a round", privacy={"sample_rate": 0.25}),
    _instead("local-steps-2", "two local steps a round", privacy={"local_steps": 2}),
    _instead("automatic-clipping", "automatic instead of fixed clipping",
             privacy={"clipping": "automatic"}),
    # other promises
    Variant(PAIRS, "protecting two records at once (pairs as patients)",
            {"privacy": {"unit": "patient"}}, terms=True),
    Variant(NOISE_ONCE, "noise once, in the sum over clients", terms=True),
    Variant(PAPER, "the paper's mode, which guarantees nothing for a record,", terms=True),
)  # fmt: skip
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {v.name: v for v in _ALL if v.name != PAPER or PAPER in METHODS}
)


def for_unit(unit: Unit) -> tuple[str, ...]:
    """Rows that data with this unit can fill: patients are not grouped once more."""
    return tuple(name for name in VARIANTS if unit == "record" or name != PAIRS)


@dataclass(frozen=True)
class Run:
    """One variant at one epsilon and seed: one cell."""

    variant: str
    epsilon: float
    seed: int

    @property
    def cost(self) -> float:
        return _SECONDS * {"rounds-40": 1.5, "local-steps-2": 1.5, "rounds-10": 0.8}.get(
            self.variant, 1.0
        )

    @property
    def name(self) -> str:
        return key(self.variant, self.epsilon, self.seed)

    def keys(self, _: NoiseMode) -> tuple[str, ...]:
        """Its cell, by the name in the store."""
        return (self.name,)


def runs(names: Sequence[str], epsilons: Sequence[float], seeds: int) -> list[Run]:
    """All of them, seed by seed."""
    return [Run(name, e, s) for s in range(seeds) for e in epsilons for name in names]
