"""The site's judgement of a work order: pure, before its records are opened, trusting nobody.

The coordinator says what to train; whether that may be done with these records is decided here,
from the site's own configuration and its own ledger. Everything is recomputed from ``order.spec``.

Guarantee: if ``judge`` lets every order of an account pass that is then executed, the account's
epsilon at the configured ``delta`` stays at or below ``max_epsilon``, lost attempts included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from core.errors import BudgetExceeded, PlanRefused, UnknownPrivacyEvent
from core.federation.plan import digest_of
from core.federation.selection import selected
from core.privacy import accounting, budget
from core.privacy.events import PrivacyEvent
from core.wire.messages import WorkOrder
from worker.agent.records import AttemptKey, Entry, charged
from worker.config import ClientConfig

# Two builds of the accountant may differ in the last digits; a plan's promise is checked to this.
_TOLERANCE = 1e-3


def judge(order: WorkOrder, config: ClientConfig, entries: Sequence[Entry]) -> None:
    """Return if the order may be executed; raise ``PlanRefused`` naming what forbids it.

    ``entries`` are the rows of the client's population in the site's ledger, of all units.
    """
    _same_order(order, config)
    _same_run(order, entries)
    _turn(order, entries)
    _limits(order, config)
    _account(config, entries)
    _budget(order, config, entries)


def _refuse(message: str, field: str, mend: str | None = None) -> NoReturn:
    raise PlanRefused(message, field=field, mend=mend)


def _same_order(order: WorkOrder, config: ClientConfig) -> None:
    """The order's parts agree with each other and are meant for this client."""
    spec, privacy = order.spec, order.spec.plan.privacy
    if privacy.caveat:  # first: an order of this kind has no event that could be compared
        _refuse(
            f"a plan of mode {privacy.mode!r} has {privacy.caveat}",
            "plan.privacy.mode",
            "Ask for mode = 'joint'.",
        )
    if order.client != config.name:
        _refuse(f"the order is for {order.client!r}, not for {config.name!r}", "client")
    if order.spec_digest != spec.digest:
        _refuse("the spec does not have the digest that the order names", "spec_digest")
    if order.run_id != spec.run_id:
        _refuse("the order's run is not the run of its spec", "run_id")
    try:
        kind, planned = spec.kind(order.round_number), spec.event(order.round_number)
    except ValueError as error:
        _refuse(str(error), "round_number")
    if order.kind != kind:
        _refuse(f"round {order.round_number} is a {kind} round, not a {order.kind} one", "kind")
    if order.event != planned:
        _refuse(
            "the event that the coordinator booked is not the one that the plan implies "
            f"(noise multiplier {order.event.noise_multiplier:g} for "
            f"{planned.noise_multiplier:g}, sample rate {order.event.sample_rate:g} for "
            f"{planned.sample_rate:g}, steps {order.event.steps} for {planned.steps})",
            "event",
        )


def _same_run(order: WorkOrder, entries: Sequence[Entry]) -> None:
    """What was agreed at the first order of a run holds to its end."""
    for entry in entries:
        if entry.key.run_id == order.run_id and entry.spec_digest != order.spec_digest:
            _refuse("the run's spec is not the one with which the run began here", "spec")


def _turn(order: WorkOrder, entries: Sequence[Entry]) -> None:
    """Where rounds take a share of the clients: this site trains no more often than the noise was
    calibrated for, by its own ledger, and only in rounds that the public choice gives it.
    """
    spec = order.spec
    if order.kind != "train" or spec.founding_clients is None:
        return
    trained = {number for number in _asked(order, entries) if spec.kind(number) == "train"}
    if len(trained - {order.round_number}) >= spec.participations:
        _refuse(
            f"this client has trained in {len(trained)} rounds; the plan takes one client into "
            f"{spec.participations} at most",
            "round_number",
        )
    if order.position is None or order.position >= spec.founding_clients:
        _refuse(
            "the order does not say which of the run's "
            f"{spec.founding_clients} founding clients this is",
            "position",
        )
    if order.position not in selected(spec, spec.founding_clients, order.round_number):
        _refuse(
            f"the plan does not take client {order.position} into round {order.round_number}",
            "position",
        )


def _asked(order: WorkOrder, entries: Sequence[Entry]) -> set[int]:
    """Rounds of the order's run for which this client was charged here, whatever became of it."""
    mine = (order.run_id, order.client)
    return {
        entry.key.round_number
        for entry in entries
        if entry.kind == "reserve" and (entry.key.run_id, entry.key.client) == mine
    }


def _limits(order: WorkOrder, config: ClientConfig) -> None:
    """The configured limits, one by one. Who joins executes one sketch of all its units: what the
    plan asked of its founding clients besides (sample rate, other noise) is not asked of it.
    """
    spec, privacy, joins = order.spec, order.spec.plan.privacy, order.kind == "join"
    if spec.plan.purpose != "production":
        _refuse(f"a {spec.plan.purpose} run has no place at a site", "plan.purpose")
    if privacy.unit != config.unit:
        _refuse(f"unit {privacy.unit!r}, configured {config.unit!r}", "plan.privacy.unit")
    if privacy.delta > config.delta:
        _refuse(
            f"delta {privacy.delta:g} is above the configured {config.delta:g}",
            "plan.privacy.delta",
        )
    if config.space_digest is not None and digest_of(spec.space) != config.space_digest:
        _refuse("the embedding space is not the pinned one", "space")
    if privacy.sample_rate > config.max_sample_rate and not joins:
        _refuse(
            f"sample rate {privacy.sample_rate:g} is above the configured "
            f"{config.max_sample_rate:g}",
            "plan.privacy.sample_rate",
        )
    noises = {"sketch_multiplier": spec.noise.sketch_multiplier}
    if joins:
        noises = {"join_multiplier": spec.noise.join_multiplier}
    if spec.sketch_rounds > 1 and not joins:
        if spec.noise.spread_multiplier is None:
            _refuse("a second sketch step without a noise multiplier", "noise.spread_multiplier")
        noises["spread_multiplier"] = spec.noise.spread_multiplier
    if privacy.rounds > 0 and not joins:
        if spec.noise.train_multiplier is None:
            _refuse("training rounds without a noise multiplier", "noise.train_multiplier")
        noises["train_multiplier"] = spec.noise.train_multiplier
    if privacy.validates and not joins:
        if spec.noise.validate_multiplier is None:
            _refuse("a validation round without a noise multiplier", "noise.validate_multiplier")
        noises["validate_multiplier"] = spec.noise.validate_multiplier
    for name, sigma in noises.items():
        if sigma < config.min_noise_multiplier:
            _refuse(
                f"noise multiplier {sigma:g} is below the configured "
                f"{config.min_noise_multiplier:g}",
                f"noise.{name}",
            )


def _account(config: ClientConfig, entries: Sequence[Entry]) -> None:
    """Units are never mixed: renaming the unit must not open a fresh budget."""
    other = next((entry.unit for entry in entries if entry.unit != config.unit), None)
    if other is not None:
        _refuse(
            f"the population {config.population!r} was charged per {other!r} before, "
            f"now per {config.unit!r}",
            "unit",
            "Configure the unit with which this population began.",
        )


def _budget(order: WorkOrder, config: ClientConfig, entries: Sequence[Entry]) -> None:
    """What was spent here, and what this run will still ask for, must fit together."""
    spec, privacy = order.spec, order.spec.plan.privacy
    try:
        promised = accounting.epsilon(spec.events(), privacy.delta)
        if promised > privacy.epsilon * (1 + _TOLERANCE):
            _refuse(
                f"the plan promises epsilon {privacy.epsilon:g} but its noise gives {promised:.4g}",
                "plan.privacy.epsilon",
            )
        own = (order.run_id, order.client)
        budget.require_within_budget(
            own=charged(e for e in entries if (e.key.run_id, e.key.client) == own),
            others=charged(e for e in entries if (e.key.run_id, e.key.client) != own),
            wanted=_remaining(order, entries),
            planned=(),  # the rest of the run is asked for as a whole
            epsilon_budget=config.max_epsilon,
            delta=config.delta,
        )
    except UnknownPrivacyEvent as error:
        _refuse(error.message, "event")
    except BudgetExceeded as error:
        _refuse(
            f"with {len(charged(entries))} events charged before and the rest of this run, the "
            f"account would reach epsilon {error.facts['epsilon_after']:.4g} at delta "
            f"{config.delta:g}, above {config.max_epsilon:g}",
            "plan.privacy.epsilon",
        )


def _remaining(order: WorkOrder, entries: Sequence[Entry]) -> list[PrivacyEvent]:
    """This attempt, unless it is charged already, and each later round not yet committed here;
    of the training rounds among them no more than the plan takes one client into.
    """
    spec, key = order.spec, AttemptKey.of(order)
    own = [e for e in entries if (e.key.run_id, e.key.client) == (key.run_id, key.client)]
    done = {entry.key.round_number for entry in own if entry.kind == "commit"}
    later = [n for n in range(key.round_number + 1, spec.last_round + 1) if n not in done]
    begun = {n for n in _asked(order, entries) if n < key.round_number}
    settled = begun | done | {key.round_number}
    room = spec.participations - sum(spec.kind(n) == "train" for n in settled)
    training = [n for n in later if spec.kind(n) == "train"]
    events = [spec.event(n) for n in later if spec.kind(n) != "train"]
    events += [spec.event(n) for n in training[: max(0, room)]]
    if not any(entry.kind == "reserve" and entry.key == key for entry in own):
        events.append(order.event)
    return events
