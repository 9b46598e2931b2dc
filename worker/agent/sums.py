"""A client's part in secure sums: judged here, kept before it goes, the same for ever.

Steps (``keys``, ``shares``, ``confirm``, ``open``) touch no records and spend nothing; the vector
itself is an order like any other (``worker.execution``). Killed anywhere, a step that is offered
again gets the same answer again, from the state that was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from core.errors import PlanRefused
from core.federation.plan import RunSpec
from core.federation.secure_sum import bound, check_session
from core.secagg.identity import identity_of
from core.secagg.messages import Session
from core.secagg.participant import Participant, Refused
from core.wire.messages import WorkOrder
from core.wire.secure import StepAnswer, StepDecline, SumStep
from worker import logs
from worker.agent import peers
from worker.agent.policy import judge_step
from worker.agent.site import Site
from worker.config import ClientConfig
from worker.delivery import Workplace
from worker.errors import ApiProblem, ConfigError, SumOver

_log = logs.get("worker.sums")


def purpose(client: str) -> str:
    """Of the site's key (``Site.key``) out of which a client's identity is made."""
    return f"identity/{client}"


def answer(step: SumStep, config: ClientConfig, place: Workplace) -> bool:
    """Answer a step or decline it; False if it was declined, or came too late. The caller holds
    ``site.lock(client)``.

    Raises ``ClientError`` if the coordinator could not be reached (the step is offered again) and
    ``SiteStateError`` if the ledger cannot be written.
    """
    log = _log.bind(
        client=step.client, run_id=step.run_id, round_number=step.round_number, step=step.step
    )
    ledger = place.site.ledger
    ledger.require_reconciled(config.population)
    try:
        judge_step(
            step, config, ledger.entries(config.population), ledger.word(step.run_id, config.name)
        )
        me = participant(step.session, step.spec, step.round_number, config, place.site)
        if step.step != "keys" and not me.begun:
            raise Refused("this site has sent no keys for this session")
        said = _said(step, me.participant)
        ledger.sums.keep(step.session, config.name, me.participant.state)
    except (PlanRefused, Refused, ConfigError, SumOver) as refusal:
        # Why stays here: the coordinator learns that it need not wait.
        log.error("step_refused", reason=str(refusal))
        mendable = isinstance(refusal, ConfigError)
        _decline(step, place, log, "site-not-ready" if mendable else "plan-refused")
        return False
    try:
        place.coordinator.answer_step(step.step_id, said)
    except ApiProblem as problem:
        if not problem.final:
            raise
        log.warning("step_not_taken", problem=problem.problem, reason=problem.detail)
        if step.step == "open":
            ledger.sums.wipe(step.run_id, step.round_number, config.name)
        return False
    if step.step == "open":
        ledger.sums.wipe(step.run_id, step.round_number, config.name)
    log.info("step_answered")
    return True


def _said(step: SumStep, me: Participant) -> StepAnswer:
    match step.step:
        case "keys":
            return StepAnswer(advert=me.advert())
        case "shares":
            return StepAnswer(shares=me.share(step.roster))
        case "confirm":
            return StepAnswer(confirmation=me.confirm(step.survivors, step.attestations))
        case "open":
            return StepAnswer(opening=me.open(step.confirmations))


def _decline(
    step: SumStep,
    place: Workplace,
    log: logs.Logger,
    code: Literal["site-not-ready", "plan-refused"],
) -> None:
    try:
        place.coordinator.decline_step(step.step_id, StepDecline(code=code))
    except ApiProblem as problem:
        if not problem.final:
            raise
        log.info("step_was_over", problem=problem.problem)


class Member:
    """``participant`` as this site has kept it; ``begun``: it had begun before."""

    def __init__(self, participant: Participant, begun: bool) -> None:
        self.participant = participant
        self.begun = begun


def participant(
    session: Session, spec: RunSpec, round_number: int, config: ClientConfig, site: Site
) -> Member:
    """This client in the session. Raises ``PlanRefused`` for a session that the plan does not
    imply, a client in it that is not pinned here or a run that a restored ledger may have
    forgotten, ``SumOver`` for one with which it does not go on.
    """
    check_session(spec, round_number, session)
    require_pinned(config, session.sites)
    site.ledger.sums.require_open(spec.run_id)
    kept = site.ledger.sums.find(spec.run_id, round_number, config.name)
    if kept is not None and (kept.session != session.digest.hex() or kept.state is None):
        raise SumOver(
            f"{config.name!r} has taken part in "
            + ("another session of this round." if kept.state is not None else "this sum already."),
        )
    known = {name: bytes.fromhex(key) for name, key in peers.pinned(config).items()}
    identity = identity_of(site.key(purpose(config.name)))
    known[config.name] = identity.public_key().public_bytes_raw()
    state = None if kept is None else kept.state
    return Member(Participant(session, config.name, identity, known, state), state is not None)


def require_pinned(config: ClientConfig, names: Sequence[str]) -> None:
    """Raises ``PlanRefused`` if a client of the sum is not known here by its own people's word."""
    if unknown := peers.unknown_of(config, list(names)):
        raise PlanRefused(
            f"no key of {', '.join(unknown)} is pinned here: whoever answers in their place "
            "could be the coordinator",
            field="peers",
            mend="Compare fingerprints with their people: 'fedhypevae agent identity peers'.",
        )


def ready_to_mask(order: WorkOrder, config: ClientConfig, site: Site) -> Participant:
    """Before anything is spent: the participant that can mask this order's vector. Raises
    ``PlanRefused``, also for a second vector in one session.
    """
    if order.sum is None:
        raise PlanRefused("the order names no secure sum", field="sum")
    try:
        me = participant(order.sum.session, order.spec, order.round_number, config, site)
        if not me.begun:
            raise Refused("this site has sent no keys for this session")
        if me.participant.state.masked:
            raise Refused("a vector was masked in this session already")
        if bound(order.inputs) != order.sum.session.inputs:
            raise Refused("the order's model is not the one that the session's clients work on")
        me.participant.accept(order.sum.inbox, order.sum.sharers)
    except (SumOver, ConfigError, ValueError) as refusal:  # Refused, or a role that comes twice
        raise PlanRefused(str(refusal), field="sum") from None
    return me.participant
