"""Which runs are audited, and one audited run.

All are simulations of two sites with the production code: ``core.simulation`` releases and
aggregates as workers and coordinator do. Audited are the noised updates of one site, all rounds.

``many``      the sketch rounds alone, at epsilon = 8, with 16,000 canaries: so many that 8 could be
              refuted. Step 2 refines means only, as moments would need more memory than they prove.
``sketch``    the sketch rounds alone as the plan's rule has them, second moments included.
``run``       sketch and training rounds as the plan's defaults split the budget.
``training``  the same with most of the budget in the training rounds, all units in every batch, and
              a model that hides canaries as little as may be.

Controls: the same runs with noise ten times smaller than what the ledger books, in every round or
in the training rounds alone. 1,000 canaries cannot refute 8 whatever happens, so the controls with
training rounds claim less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.audit.attacker import Seen, attack
from benchmarks.audit.bound import Proof, ideal, most, prove
from benchmarks.audit.canaries import World, build_world
from core.federation.plan import ModelPlan, Plan, PrivacyPlan, RunSpec
from core.federation.rule import spec_for
from core.models.layout import layout_of
from core.privacy.accounting import epsilon
from core.privacy.discrete.gaussian import BitSource
from core.privacy.noise import NoiseSource
from core.simulation import SimulatedSite, simulate

SITE, OTHER = "audited", "other"
Broken = Literal["no", "all", "training"]
EPSILON = 8.0


@dataclass(frozen=True)
class Case:
    """One run to audit. ``target`` epsilon of the plan; ``many`` canaries in ``dim`` dimensions;
    ``broken``: in which rounds the noise is ``factor`` times what is booked.
    """

    name: str
    canaries: int
    dim: int
    target: float = EPSILON
    rounds: int = 0
    sketch_share: float = 0.8
    sample_rate: float = 0.25
    moments: bool = True
    model: ModelPlan = field(default_factory=ModelPlan)
    ordinary: int = 200
    delta: float = 1e-6
    broken: Broken = "no"
    factor: float = 0.1

    @property
    def n_max(self) -> int:
        """Public bound on the units of a site; delta is below 1 / (10 n_max)."""
        return self.canaries + self.ordinary

    def spec(self, world: World) -> RunSpec:
        two = {"sketch_steps": 2, "mean_share": 0.35, "refine_share": 1.0}
        privacy = PrivacyPlan.model_validate(
            {
                "epsilon": self.target, "delta": self.delta, "n_max": self.n_max,
                "rounds": self.rounds, "sketch_share": self.sketch_share,
                "sample_rate": self.sample_rate, **({} if self.moments else two),
            }
        )  # fmt: skip
        plan = Plan(
            name="audit", space=world.space.name, privacy=privacy,
            model=self.model, purpose="simulation",
        )  # fmt: skip
        return spec_for("audit", plan, world.space, 2)


@dataclass(frozen=True, eq=False)
class Audited:
    """What came out: the ledger's ``upper`` bound, the ``proof`` of a lower one, the ``most``
    that so many canaries prove if every guess is right, ``ideal`` for what perfect canaries would
    have proved of the noise that was booked, and the ``belief`` [m] of the attacker about the coins
    ``included`` [m].
    """

    case: Case
    upper: float
    proof: Proof
    most: float
    ideal: float
    belief: NDArray[np.float64]
    included: NDArray[np.bool_]

    @property
    def could_refute(self) -> bool:
        """Whether so many canaries, all guessed right, would have passed the ledger's bound."""
        return self.most > self.upper


class TooQuiet:
    """A defect made on purpose: a source whose noise is ``factor`` of what was asked for.

    ``lengths``: only updates of these many coordinates; None for all.
    """

    def __init__(self, source: NoiseSource, factor: float, lengths: set[int] | None = None) -> None:
        self._source, self._factor, self._lengths = source, factor, lengths

    @property
    def private(self) -> bool:
        return False

    def normal(self, size: int, std: float) -> NDArray[np.float64]:
        quiet = self._lengths is None or size in self._lengths
        return self._source.normal(size, std * (self._factor if quiet else 1.0))

    def bits(self) -> BitSource:
        return self._source.bits()  # the defect is of continuous noise


def audit(case: Case, noise: NoiseSource, coins: np.random.Generator, secret: bytes) -> Audited:
    """Run, attack and bound. ``coins`` include canaries; ``secret`` (32 bytes) is the sites'."""
    world = build_world(case.canaries, case.dim, case.ordinary, seed=0)
    spec = case.spec(world)
    included = coins.random(case.canaries) < 0.5
    sites = [
        SimulatedSite(SITE, world.site(included)),
        SimulatedSite(OTHER, world.elsewhere),
    ]
    sent: list[bytes] = []

    def observe(number: int, updates: Mapping[str, bytes]) -> None:
        sent.append(updates[SITE])

    found = simulate(spec, sites, noise=_noise(case, spec, noise), secret=secret, observe=observe)
    before: list[Mapping[str, bytes]] = [{}]
    before += [{"frame": r.frame, "weights": r.weights} for r in found.rounds[:-1]]
    pairs = zip(before, sent, strict=True)
    transcript = [Seen(number, inputs, update) for number, (inputs, update) in enumerate(pairs)]
    belief = attack(spec, SITE, transcript, world.canaries, world.ordinary)
    events = found.events[SITE]
    signal = math.sqrt(sum((e.sample_rate / e.noise_multiplier) ** 2 * e.steps for e in events))
    draws = np.random.default_rng(0)
    return Audited(
        case=case,
        upper=epsilon(events, case.delta),
        proof=prove(belief, included, case.delta),
        most=most(case.canaries, case.delta),
        ideal=ideal(case.canaries, signal, case.delta, draws),
        belief=belief,
        included=included,
    )


def _noise(case: Case, spec: RunSpec, noise: NoiseSource) -> NoiseSource:
    if case.broken == "no":
        return noise
    if case.broken == "all":
        return TooQuiet(noise, case.factor)
    rounds = range(spec.sketch_rounds, spec.last_round + 1)
    return TooQuiet(noise, case.factor, {layout_of(spec, n).update_length for n in rounds})


def cases(canaries: int, many: int) -> list[Case]:
    """What ``make audit`` does, with so many canaries."""
    large = Case("many", many, 512, moments=False)
    sketch = Case("sketch", canaries, 256)
    run = replace(sketch, name="run", rounds=6)
    # Latent draws, code coins and inclusion are secret too and hide a canary beyond what the ledger
    # books; so as little of them as a plan can have, and directions for every canary.
    visible = ModelPlan(
        basis_rank=128, latent_dim=1, hidden=16, encoder_hidden=16, code_dropout=0.0
    )
    training = replace(
        run, name="training", dim=128, rounds=4, sketch_share=0.2, sample_rate=1.0, model=visible
    )
    return [
        large,
        sketch,
        run,
        training,
        replace(large, name="many-broken", broken="all"),
        replace(run, name="run-broken", target=2.0, broken="all"),
        replace(training, name="training-broken", target=2.0, broken="training"),
    ]
