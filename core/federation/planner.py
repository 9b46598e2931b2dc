"""What a plan would cost an account, and how far its budget reaches. Pure; nothing is booked.

Every answer is a search on the accountant over monotone questions: more rounds or more lost
attempts never cost less, more noise never more. So what is returned fits (it was evaluated), and
the next larger number does not. Epsilon is for adding or removing one unit, at the account's delta.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.federation.calibration import training_events
from core.federation.plan import RoundKind, RunSpec
from core.federation.privacy_plan import MAX_STEPS
from core.federation.selection import participations
from core.privacy import accounting, budget
from core.privacy.events import PrivacyEvent

MOST_ROUNDS = 10_000
MOST_LOST = 100  # lost attempts that are counted: more need no planning


@dataclass(frozen=True)
class Purse:
    """An account before the run: the worst case of what it has spent, and its budget.

    ``sharing``: how many clients of the planned run spend from it.
    """

    spent: tuple[PrivacyEvent, ...]
    epsilon: float
    delta: float
    sharing: int = 1

    def after(self, events: Sequence[PrivacyEvent], once: Sequence[PrivacyEvent] = ()) -> float:
        """Epsilon if each sharing client executes ``events``, and one of them ``once`` besides."""
        more = budget.steps_of([*self.spent, *once])
        for kind, count in budget.steps_of(events).items():
            more[kind] += count * self.sharing
        return accounting.epsilon(budget.events_of(more), self.delta)

    def allows(self, events: Sequence[PrivacyEvent], once: Sequence[PrivacyEvent] = ()) -> bool:
        return self.after(events, once) <= self.epsilon


@dataclass(frozen=True)
class Needed:
    """The training noise with which ``rounds`` rounds fit: None for no rounds, and where no noise
    helps (``possible`` is False), which ``why`` says. ``participations``: rounds of one client.
    """

    rounds: int
    participations: int
    possible: bool
    train_multiplier: float | None
    why: str = ""


@dataclass(frozen=True)
class Forecast:
    """``rounds_left``: training rounds of this client with the plan's noise, beside the plan's
    other rounds; None if not even those fit, or the plan has no training noise.
    """

    epsilon_spent: float
    epsilon_after: float
    fits: bool
    rounds_left: int | None
    lost_attempts: dict[RoundKind, int]
    noise: tuple[Needed, ...]


def forecast(spec: RunSpec, purse: Purse, rounds: Sequence[int], clients: int) -> Forecast:
    """What ``spec`` would do to the purse; noise for each T of ``rounds`` in a run of ``clients``.

    Some seconds of work. Raises ``ValueError`` for a T beyond what can be accounted for.
    """
    events = spec.events()
    return Forecast(
        epsilon_spent=purse.after([]),
        epsilon_after=purse.after(events),
        fits=purse.allows(events),
        rounds_left=rounds_left(spec, purse),
        lost_attempts=lost_attempts(spec, purse),
        noise=tuple(noise_for(spec, purse, number, clients) for number in rounds),
    )


def rounds_left(spec: RunSpec, purse: Purse) -> int | None:
    """The largest number of training rounds, 0 to 10,000, that fits with the plan's noise."""
    sigma = spec.noise.train_multiplier
    if sigma is None:
        return None
    privacy = spec.plan.privacy
    train = training_events(privacy, sigma, 1)[0]
    beyond = range(spec.last_training_round + 1, spec.last_round + 1)
    others = [*_sketches(spec), *(spec.event(number) for number in beyond)]
    most = min(MOST_ROUNDS, MAX_STEPS // privacy.local_steps)

    def fits(number: int) -> bool:
        repeated = [train.model_copy(update={"steps": train.steps * number})] if number else []
        return purse.allows([*others, *repeated])

    return _largest(fits, most, guess=spec.participations)


def lost_attempts(spec: RunSpec, purse: Purse) -> dict[RoundKind, int]:
    """Per kind of round: how many attempts of that kind alone may be lost, up to 100.

    All zero if the plan does not fit even without a loss.
    """
    events = spec.events()
    allowed: dict[RoundKind, int] = {}
    for number in range(spec.last_round + 1):
        kind = spec.kind(number)
        if kind in allowed:
            continue
        event = spec.event(number)

        def fits(lost: int, event: PrivacyEvent = event) -> bool:
            return purse.allows(events, [event] * lost)

        allowed[kind] = _largest(fits, MOST_LOST, guess=1) or 0
    return allowed


def noise_for(spec: RunSpec, purse: Purse, rounds: int, clients: int) -> Needed:
    """The smallest training noise with which T = ``rounds`` training rounds fit what is left.

    Sketches keep the plan's noise. Raises ``ValueError`` for more releases than can be accounted
    for.
    """
    privacy = spec.plan.privacy
    if not 0 <= rounds <= MOST_ROUNDS or rounds * privacy.local_steps > MAX_STEPS:
        raise ValueError(
            f"{rounds} rounds of {privacy.local_steps} local steps are more than {MOST_ROUNDS:,} "
            f"rounds or {MAX_STEPS:,} releases"
        )
    own = rounds
    if spec.founding_clients is not None:
        own = participations(spec.plan.round, rounds, clients)
    first = _sketches(spec)
    if not purse.allows(first):
        return Needed(rounds, own, False, None, "not even the sketch fits the budget")
    if rounds == 0:
        report = [] if spec.report_round is None else [spec.event(spec.report_round)]
        if not purse.allows([*first, *report]):
            return Needed(0, own, False, None, "the sketch leaves nothing for the report round")
        return Needed(rounds, own, True, None, "no training round, no training noise")

    def events(sigma: float) -> list[PrivacyEvent]:
        mine = [*first, *training_events(privacy, sigma, own)]
        return [*purse.spent, *(mine * purse.sharing)]

    try:
        sigma = accounting.calibrate(events, target=purse.epsilon, delta=purse.delta)
    except ValueError:
        return Needed(rounds, own, False, None, "the sketch leaves nothing for training rounds")
    return Needed(rounds, own, True, sigma)


def _sketches(spec: RunSpec) -> list[PrivacyEvent]:
    return [spec.event(number) for number in range(spec.sketch_rounds)]


def _largest(fits: Callable[[int], bool], most: int, *, guess: int) -> int | None:
    """The largest n in 0..most that fits, None if 0 does not; ``fits`` must be monotone.

    Gallops from the guess, then halves: few evaluations where the guess is near.
    """
    if not fits(0):
        return None
    low, step = 0, max(1, min(guess, most))
    while low + step <= most and fits(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, most + 1)  # the smallest known not to fit, or out of range
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
