"""From targets to noise multipliers, by the accountant of ``core.privacy.accounting``."""

from __future__ import annotations

import math

from pydantic import Field

from core.federation.privacy_plan import PrivacyPlan
from core.federation.values import Frozen, omitted_if
from core.privacy import accounting
from core.privacy.events import PrivacyEvent, release


class Noise(Frozen):
    """Calibrated noise multipliers: standard deviation over sensitivity."""

    sketch_multiplier: float = Field(gt=0)
    spread_multiplier: float | None = Field(default=None, gt=0)
    train_multiplier: float | None = Field(default=None, gt=0)
    validate_multiplier: float | None = Field(default=None, gt=0)
    report_multiplier: float | None = Field(default=None, gt=0, exclude_if=omitted_if(None))

    @property
    def join_multiplier(self) -> float:
        """The one sketch of who joins later costs what both steps cost a founding client."""
        if self.spread_multiplier is None:
            return self.sketch_multiplier
        return 1.0 / math.hypot(1.0 / self.sketch_multiplier, 1.0 / self.spread_multiplier)


def calibrate(privacy: PrivacyPlan, participations: int | None = None) -> Noise:
    """Noise multipliers whose composition spends at most ``epsilon`` at ``delta`` (PLD).

    The sketch alone is calibrated to ``sketch_share * epsilon``; the training noise is then the
    smallest with which sketch and the E local steps of all T rounds together stay within
    ``epsilon``. ``participations``: training rounds of one client at most, where that is fewer than
    T; an average would not do, for the promise is each client's. Two sketch steps split the
    precision 1 / z^2 of one: Gaussian releases of full batches compose to exactly that. Raises
    ``ValueError`` for a plan whose split was not chosen.
    """
    alone = privacy.rounds == 0
    share = 1.0 if alone else privacy.sketch_share

    if share is None or not privacy.split_is_chosen:
        raise ValueError("the split of the sketch was not chosen: see core.federation.rule")
    first_share = privacy.mean_share

    def split(whole: float) -> tuple[float, float | None]:
        if first_share is None:
            return whole, None
        return whole / math.sqrt(first_share), whole / math.sqrt(1.0 - first_share)

    def sketches(whole: float) -> list[PrivacyEvent]:
        sigmas = [sigma for sigma in split(whole) if sigma is not None]
        if alone and privacy.reports:
            sigmas.append(whole / math.sqrt(privacy.report_precision))
        return [release(noise_multiplier=s, sample_rate=1.0, unit=privacy.unit) for s in sigmas]

    # On the events that will be booked: two discretised releases come out a shade above one.
    target = share * privacy.epsilon
    whole = accounting.calibrate(sketches, target=target, delta=privacy.delta)
    sketch, spread = split(whole)
    if alone:
        return Noise(
            sketch_multiplier=sketch,
            spread_multiplier=spread,
            report_multiplier=(
                whole / math.sqrt(privacy.report_precision) if privacy.reports else None
            ),
        )
    first = sketches(whole)

    rounds_of_one = privacy.rounds if participations is None else participations

    def composed(sigma: float) -> list[PrivacyEvent]:
        return [*first, *training_events(privacy, sigma, rounds_of_one)]

    train = accounting.calibrate(composed, target=privacy.epsilon, delta=privacy.delta)
    return Noise(
        sketch_multiplier=sketch,
        spread_multiplier=spread,
        train_multiplier=train,
        validate_multiplier=(
            train / _over(privacy, rounds_of_one, privacy.validation_precision)
            if privacy.validates
            else None
        ),
        report_multiplier=(
            train / _over(privacy, rounds_of_one, privacy.report_precision)
            if privacy.reports
            else None
        ),
    )


def training_events(privacy: PrivacyPlan, sigma: float, rounds: int) -> list[PrivacyEvent]:
    """One client's ``rounds`` training rounds with noise multiplier ``sigma``, as one event, and
    the validation and report rounds that follow them where the plan has such.
    """
    trained = release(
        noise_multiplier=sigma,
        sample_rate=privacy.sample_rate,
        unit=privacy.unit,
        steps=rounds * privacy.local_steps,
    )
    following = []
    if privacy.validates:
        following.append(privacy.validation_precision)
    if privacy.reports:
        following.append(privacy.report_precision)
    return [
        trained,
        *(
            release(
                noise_multiplier=sigma / _over(privacy, rounds, precision),
                sample_rate=1.0,
                unit=privacy.unit,
            )
            for precision in following
        ),
    ]


def _over(privacy: PrivacyPlan, rounds: int, precision: float) -> float:
    """Training noise over that of a round of full batches which has this share of its precision:
    that of T steps at rate q, roughly T q^2 / z^2.
    """
    steps = rounds * privacy.local_steps
    return privacy.sample_rate * math.sqrt(steps * precision)
