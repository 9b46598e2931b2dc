"""The rule that splits a sketch's budget, fixed in advance: public quantities in, no data.

Step 1 releases class counts and sums, step 2 residuals around the released means: sums that refine
the means, and second moments that say how records spread. One question is left: how much of step 2
goes to the means? The answer looks at

    x = z sqrt(K) C / N,

the noise of one coordinate of a pooled class mean if it got the whole sketch: z the noise
multiplier that (epsilon, delta) allow one release, K draws of noise in the sum over sites, C
classes, N units of all sites. Little noise: a third. Much noise: everything to the means, for
the larger eigenvalues of the spread would not be seen, and means are not yet good.
docs/decisions/0014-budget-rule.md has the argument and the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from core.federation.plan import (
    MAX_COORDINATES,
    EmbeddingSpace,
    Plan,
    PrivacyPlan,
    RunSpec,
    calibrate,
)
from core.federation.selection import participations
from core.models.candidates import candidates
from core.models.layout import NULL_COORDINATES
from core.privacy.accounting import epsilon
from core.privacy.events import release

NoiseMode = Literal["local", "aggregated"]

SKETCH_PRECISION = 0.5  # where training rounds follow: they get as much as the sketch
VALIDATION_SHARE = 0.1
_TELLING = 0.01  # noise of an estimated accuracy below which a validation round is worth its units
MEAN_SHARE = 0.35
_LITTLE_NOISE = 0.004  # x up to which the means get the least share of step 2
_LEAST = 0.35
_PER_OCTAVE = 0.28  # how much more they get for each doubling of x
_ALMOST_ALL = 0.9  # above this the rest would be lost in noise: no moments at all


def spec_for(
    run_id: str,
    plan: Plan,
    space: EmbeddingSpace,
    clients: int,
    noise_mode: NoiseMode = "local",
    names: Sequence[str] | None = None,
) -> RunSpec:
    """The specification of a run: what the plan leaves to the rule is chosen, noise calibrated.

    ``clients`` take part; ``names``: who they are, for a run of secure sums. Raises ``ValueError``
    if no noise meets the plan, or for a plan that does not fit the space.
    """
    privacy = resolved(plan.privacy, space, clients, noise_mode)
    if privacy.rounds > 0 and privacy.validation_share is None:
        share = validation_share(plan, privacy, clients, noise_mode)
        privacy = privacy.model_copy(update={"validation_share": share})
    chosen = plan.model_copy(update={"privacy": privacy})
    selects = plan.round.client_fraction < 1.0
    return RunSpec(
        run_id=run_id,
        plan=chosen,
        space=space,
        noise=calibrate(
            privacy, participations(plan.round, privacy.rounds, clients) if selects else None
        ),
        founding_clients=clients if selects else None,
        founding_names=None if names is None else tuple(names),
    )


def resolved(
    privacy: PrivacyPlan, space: EmbeddingSpace, clients: int, noise_mode: NoiseMode = "local"
) -> PrivacyPlan:
    """The plan with the split of its sketch chosen wherever it was left open.

    Whether to validate is left to ``validation_share``, which looks at the whole plan.
    """
    if privacy.rounds > 0 and privacy.sketch_share is None:
        privacy = privacy.model_copy(update={"sketch_share": sketch_share(privacy)})
    if privacy.split_is_chosen:
        return privacy
    chosen: dict[str, float] = {"sketch_steps": 2}
    if privacy.mean_share is None:
        chosen["mean_share"] = MEAN_SHARE
    if privacy.refine_share is None:
        draws = clients if noise_mode == "local" else 1
        units = privacy.units_expected or max(1, clients * privacy.n_max // 3)
        chosen["refine_share"] = refine_share(
            _multiplier_of_one_release(privacy), draws, units, space
        )
    return privacy.model_copy(update=chosen)


def sketch_share(privacy: PrivacyPlan) -> float:
    """The share of epsilon that buys the sketch ``SKETCH_PRECISION`` of the precision 1 / z^2."""
    everything = _multiplier_of_one_release(privacy.model_copy(update={"sketch_share": 1.0}))
    alone = release(
        noise_multiplier=everything / math.sqrt(SKETCH_PRECISION), sample_rate=1.0,
        unit=privacy.unit,
    )  # fmt: skip
    return round(epsilon([alone], privacy.delta) / privacy.epsilon, 3)


def validation_share(
    plan: Plan, privacy: PrivacyPlan, clients: int, noise_mode: NoiseMode = "local"
) -> float:
    """``VALIDATION_SHARE`` where the noise of a candidate's accuracy is small enough, else 0."""
    compared = len(candidates(plan))
    if compared < 2:
        return 0.0
    draws = clients if noise_mode == "local" else 1
    units = privacy.units_expected or max(1, clients * privacy.n_max // 3)
    everything = _multiplier_of_one_release(privacy.model_copy(update={"sketch_share": 1.0}))
    precision = (1.0 - SKETCH_PRECISION) * privacy.validation_precision
    noise = everything / math.sqrt(precision) * math.sqrt(draws * compared)
    return VALIDATION_SHARE if noise <= _TELLING * VALIDATION_SHARE * units else 0.0


def refine_share(multiplier: float, draws: int, units: int, space: EmbeddingSpace) -> float:
    """The share of step 2 that refines the means; 1 also where moments would be too many."""
    classes, dim = len(space.classes), space.dim
    if dim * (dim + 1) // 2 + classes * dim + NULL_COORDINATES > MAX_COORDINATES:
        return 1.0
    noise = multiplier * math.sqrt(draws) * classes / units
    share = _LEAST + _PER_OCTAVE * max(0.0, math.log2(noise / _LITTLE_NOISE))
    return round(share, 3) if share <= _ALMOST_ALL else 1.0


def _multiplier_of_one_release(privacy: PrivacyPlan) -> float:
    """z if the whole sketch were a single release."""
    one: dict[str, float | None] = {"sketch_steps": 1, "mean_share": None, "refine_share": None}
    one |= {"rounds": 0, "report_precision": 0.0}
    share = privacy.sketch_share if privacy.rounds > 0 else 1.0
    whole = privacy.epsilon if share is None else share * privacy.epsilon
    alone = privacy.model_copy(update={**one, "epsilon": whole})
    return calibrate(alone).sketch_multiplier
