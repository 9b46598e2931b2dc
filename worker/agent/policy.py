"""The site's judgement of plans and orders: pure, before its records are opened, trusting nobody.

The coordinator says what to train; whether that may be done with these records is decided here,
from the site's own configuration and its own ledger. Everything is recomputed from the spec. A plan
is judged when it is put before the site, and each order of it again by the same rules.

Guarantee: if ``judge`` lets every order of an account pass that is then executed, the account's
epsilon at the configured ``delta`` stays at or below ``max_epsilon``, lost attempts included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from core.errors import BudgetExceeded, PlanRefused, UnknownPrivacyEvent
from core.federation.plan import RunSpec, digest_of
from core.federation.selection import selected
from core.privacy import accounting, budget
from core.privacy.events import PrivacyEvent
from core.wire.messages import WorkOrder
from core.wire.secure import SumStep
from worker.agent import join_policy, sum_policy
from worker.agent.price import ahead, committed, own
from worker.agent.records import AttemptKey, Decision, Entry, charged
from worker.config import ClientConfig

# Two builds of the accountant may differ in the last digits; a plan's promise is checked to this.
_TOLERANCE = 1e-3


def judge(
    order: WorkOrder,
    config: ClientConfig,
    entries: Sequence[Entry],
    word: Decision | None = None,
) -> None:
    """Return if the order may be executed; raise ``PlanRefused`` naming what forbids it.

    ``entries`` are the rows of the client's population in the site's ledger, of all units; ``word``
    is the word of this site on the run that counts under its configuration (``SiteLedger.word``).
    Where that says ``consent = "ask"``, an order is executed only if a person has approved this
    very spec.
    """
    joins = order.kind == "join"
    _same_order(order, config)
    _approved(order, config, word)
    _same_run(order.run_id, order.spec_digest, entries)
    if joins:
        join_policy.once(order.spec, order.client, order.round_number, entries)
    _turn(order, entries)
    _limits(order.spec, config, joins=joins)
    _account(config, entries)
    _budget(order.spec, config, entries, _remaining(order, entries))


def judge_plan(
    spec: RunSpec,
    config: ClientConfig,
    entries: Sequence[Entry],
    *,
    joins: bool = False,
    join_round: int | None = None,
    unpinned: Sequence[str] = (),
) -> None:
    """Return if a run's plan may be approved: what ``judge`` asks of its orders, as far as a spec
    tells, with the whole plan on top of what was spent. Raises ``PlanRefused``.

    ``joins``: the client executes one sketch of a completed run instead of the plan's rounds, in
    the round ``join_round`` where it is known; ``unpinned``: other clients of its secure sums whose
    keys are not pinned here.
    """
    _has_guarantee(spec)
    _same_run(spec.run_id, spec.digest, entries)
    if join_round is not None:
        join_policy.once(spec, config.name, join_round, entries)
    _limits(spec, config, joins=joins)
    if spec.plan.aggregation == "secure" and not joins:
        sum_policy.peers_pinned(spec, config, unpinned)
        sum_policy.without_premise(spec, config)
    _account(config, entries)
    _budget(spec, config, entries, ahead(spec, config, entries, joins=joins))


def judge_step(
    step: SumStep, config: ClientConfig, entries: Sequence[Entry], word: Decision | None = None
) -> None:
    """Return if this client may take part in a step of a secure sum. A step spends nothing, but who
    begins should be able to send a vector: what ``judge`` will ask of its order is asked now.
    """
    spec = step.spec
    _has_guarantee(spec)
    if step.client != config.name:
        _refuse(f"the step is for {step.client!r}, not for {config.name!r}", "client")
    if (step.spec_digest, step.run_id) != (spec.digest, spec.run_id):
        _refuse("the step's run is not that of its spec", "spec_digest")
    _agreed(step.run_id, step.spec_digest, config, word)
    _same_run(step.run_id, step.spec_digest, entries)
    _limits(spec, config, joins=False)
    sum_policy.without_premise(spec, config)
    _account(config, entries)
    if step.step == "keys":  # later steps open what was charged by then
        _budget(spec, config, entries, ahead(spec, config, entries, joins=False))


def _refuse(message: str, field: str, mend: str | None = None) -> NoReturn:
    raise PlanRefused(message, field=field, mend=mend)


def _has_guarantee(spec: RunSpec) -> None:
    privacy = spec.plan.privacy
    if privacy.caveat:
        _refuse(
            f"a plan of mode {privacy.mode!r} has {privacy.caveat}",
            "plan.privacy.mode",
            "Ask for mode = 'joint'.",
        )


def _approved(order: WorkOrder, config: ClientConfig, word: Decision | None) -> None:
    _agreed(order.run_id, order.spec_digest, config, word)
    if config.consent == "ask" and word is not None and word.joins and order.kind != "join":
        _refuse(
            f"a join was approved at this site, not a {order.kind} round", "consent",
            _look(order.run_id),
        )  # fmt: skip
    join_policy.wanted(order, word)


def _look(run_id: str) -> str:
    return f"Look at it with 'fedhypevae agent plans', then 'fedhypevae agent approve {run_id}'."


def _agreed(run_id: str, spec_digest: str, config: ClientConfig, word: Decision | None) -> None:
    """A person's no holds at once and in every mode; a yes is needed where the site asks one."""
    look = _look(run_id)
    if word is not None and word.decision == "refuse" and word.by == "person":
        _refuse("a person of this site has refused this run", "consent", look)
    if config.consent == "policy":
        return
    if word is None:
        _refuse("no person of this site has approved this run", "consent", look)
    if word.spec_digest != spec_digest:
        _refuse("what was approved at this site is another spec of this run", "consent", look)


def _same_order(order: WorkOrder, config: ClientConfig) -> None:
    """The order's parts agree with each other and are meant for this client."""
    spec = order.spec
    _has_guarantee(spec)  # first: an order without one has no event that could be compared
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
    if spec.is_secure(order.round_number) != (order.sum is not None):
        _refuse(
            "the plan's sums are secure ones, and the order is for an update that the coordinator "
            "would see"
            if order.sum is None
            else "the order is for a secure sum, which the plan does not have",
            "sum",
        )
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


def _same_run(run_id: str, spec_digest: str, entries: Sequence[Entry]) -> None:
    """What was agreed at the first order of a run holds to its end."""
    for entry in entries:
        if entry.key.run_id == run_id and entry.spec_digest != spec_digest:
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


def _limits(spec: RunSpec, config: ClientConfig, *, joins: bool) -> None:
    """The configured limits, one by one. Who joins executes one sketch of all its units: what the
    plan asked of its founding clients besides (sample rate, other noise) is not asked of it.
    """
    privacy = spec.plan.privacy
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
    if privacy.reports and not joins:
        if spec.noise.report_multiplier is None:
            _refuse("a report round without a noise multiplier", "noise.report_multiplier")
        noises["report_multiplier"] = spec.noise.report_multiplier
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


def _budget(
    spec: RunSpec, config: ClientConfig, entries: Sequence[Entry], left: Sequence[PrivacyEvent]
) -> None:
    """What was spent here, and what this run will still ask for, must fit together."""
    privacy = spec.plan.privacy
    try:
        promised = accounting.epsilon(spec.events(), privacy.delta)
        if promised > privacy.epsilon * (1 + _TOLERANCE):
            _refuse(
                f"the plan promises epsilon {privacy.epsilon:g} but its noise gives {promised:.4g}",
                "plan.privacy.epsilon",
            )
        mine = (spec.run_id, config.name)
        budget.require_within_budget(
            own=charged(own(entries, *mine)),
            others=charged(e for e in entries if (e.key.run_id, e.key.client) != mine),
            wanted=left,
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
    mine = own(entries, key.run_id, key.client)
    done = committed(mine)
    later = [n for n in range(key.round_number + 1, spec.last_round + 1) if n not in done]
    begun = {n for n in _asked(order, entries) if n < key.round_number}
    settled = begun | done | {key.round_number}
    room = spec.participations - sum(spec.kind(n) == "train" for n in settled)
    training = [n for n in later if spec.kind(n) == "train"]
    events = [spec.event(n) for n in later if spec.kind(n) != "train"]
    events += [spec.event(n) for n in training[: max(0, room)]]
    if not any(entry.kind == "reserve" and entry.key == key for entry in mine):
        events.append(order.event)
    return events
