"""What a site says to a plan: by its policy at once, or by a person who asks for it.

Every word is written to the site's own ledger first and then sent. The coordinator needs it to hand
out work; the site itself goes by what it has written, never by what the coordinator says.
"""

from __future__ import annotations

from typing import Literal

from core.errors import PlanRefused
from core.federation.plan import RunSpec
from core.privacy.premise import NONE, premise
from core.wire.messages import ConsentDecision, PlanOffer
from core.wire.protocol import CONSENT
from worker import logs
from worker.agent.policy import judge_plan
from worker.agent.premise import members
from worker.agent.records import Decision
from worker.agent.spend import SiteLedger
from worker.client import CoordinatorClient
from worker.config import ClientConfig
from worker.errors import ApiProblem, ConfigError

_log = logs.get("worker.consent")
Verb = Literal["approve", "refuse"]


def consider(
    plan: PlanOffer, config: ClientConfig, ledger: SiteLedger, coordinator: CoordinatorClient
) -> bool:
    """Answer a plan that the coordinator has put before this client; False if a person must.

    Raises ``ClientError`` if the word could not be sent: the plan is then put again.
    """
    log = _log.bind(client=plan.client, run_id=plan.run_id, run=plan.run)
    if plan.spec.digest != plan.spec_digest or plan.spec.run_id != plan.run_id:
        log.error("plan_refused", field="spec_digest", reason="the plan is not what it says it is")
        return False
    closed = _closed(plan, ledger)
    word = ledger.word(plan.run_id, config.name)
    if word is not None and _is_about(word, plan) and (closed is None or word.decision == "refuse"):
        _send(word, coordinator, log)  # said before, and not heard
        return True
    if closed is not None:
        log.error("plan_refused", field=closed.field, reason=closed.message, mend=closed.mend)
        if config.consent == "ask" or not ledger.sums.forgotten(plan.run_id):
            return False  # the word is a person's; or a clock may be wrong, and a no is for good
        why = f"the site's policy forbids it: {closed.field} (its ledger was restored)"
        say(plan.spec, config, "refuse", "policy", ledger, coordinator, joins=plan.joins, why=why)
        return True
    if config.consent == "ask":
        log.warning(
            "plan_awaits_consent", epsilon_plan=round(plan.epsilon_plan, 4),
            premise=NONE if plan.joins else premise(e.collude for e in plan.spec.events()),
            mend=f"See 'fedhypevae agent plans', then 'fedhypevae agent approve {plan.run_id}' "
            "or 'refuse'.",
        )  # fmt: skip
        return False
    try:
        sums = members(plan.spec, config, joins=plan.joins)
    except ConfigError as error:
        log.error("keys_unreadable", reason=error.message, mend=error.mend)
        return False
    if sums is not None and sums.unpinned and config.peers is not None:
        # A refusal would be for good, and these keys only wait for somebody to compare them.
        log.warning(
            "plan_awaits_keys", unpinned=sums.unpinned,
            mend="Compare fingerprints with their people: 'fedhypevae agent identity peers "
            f"{plan.run_id}', then 'fedhypevae agent approve {plan.run_id}'.",
        )  # fmt: skip
        return False
    verb: Verb = "approve"
    why = ""
    try:
        judge_plan(
            plan.spec, config, ledger.entries(config.population),
            joins=plan.joins, join_round=plan.round_number if plan.joins else None,
        )  # fmt: skip
    except PlanRefused as refusal:
        # The site's limits and what it has spent are its own: the coordinator learns the field.
        verb, why = "refuse", f"the site's policy forbids it: {refusal.field}"
        log.error("plan_refused", field=refusal.field, reason=refusal.message, mend=refusal.mend)
    say(plan.spec, config, verb, "policy", ledger, coordinator, joins=plan.joins, why=why)
    return True


def _closed(plan: PlanOffer, ledger: SiteLedger) -> PlanRefused | None:
    """Why this site takes no part in the plan's secure sums, whatever it says to the plan."""
    if plan.joins or plan.spec.plan.aggregation != "secure":
        return None
    try:
        ledger.sums.require_open(plan.run_id)
    except PlanRefused as refusal:
        return refusal
    return None


def _is_about(word: Decision, plan: PlanOffer) -> bool:
    """Whether the word was said to this plan. Who approved all rounds of a run has approved one
    sketch of it, too; but not of a run of secure sums, whose rounds show nobody a sketch.
    """
    if word.spec_digest != plan.spec_digest:
        return False
    if plan.spec.plan.aggregation == "secure" and word.decision == "approve":
        return word.joins == plan.joins
    return word.joins <= plan.joins


def say(
    spec: RunSpec,
    config: ClientConfig,
    verb: Verb,
    by: Literal["person", "policy"],
    ledger: SiteLedger,
    coordinator: CoordinatorClient,
    *,
    joins: bool,
    why: str = "",
) -> None:
    """Write a word down, then send it. Raises ``ClientError`` if it was not heard; what was
    written stays. A coordinator of protocol 1 asks nobody: for it the site's own record is all.
    """
    word = Decision(spec.run_id, config.name, spec.digest, joins, verb, by, why)
    ledger.decide(word)
    if coordinator.protocol >= CONSENT:
        log = _log.bind(client=config.name, run_id=spec.run_id, run=spec.plan.name)
        _send(word, coordinator, log)


def _send(word: Decision, coordinator: CoordinatorClient, log: logs.Logger) -> None:
    said = ConsentDecision(
        client=word.client,
        spec_digest=word.spec_digest,
        decision=word.decision,
        by=word.by,
        why=word.why,
    )
    try:
        coordinator.decide(word.run_id, said)
    except ApiProblem as problem:
        if problem.status != 409 or word.by == "person":
            raise
        log.warning("plan_was_decided", problem=problem.problem, reason=problem.detail)
    else:
        log.info("plan_decided", decision=word.decision, by=word.by)
