"""What a site asks of a join beyond what it asks of every order. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import PlanRefused
from core.federation.plan import RunSpec
from core.wire.messages import WorkOrder
from worker.agent.records import Decision, Entry


def wanted(order: WorkOrder, word: Decision | None) -> None:
    """Raises ``PlanRefused`` for a join of a run of secure sums that this site has not approved as
    a join: its own sketch would be sent in the clear, where the plan promised that only sums are
    seen. ``word``: the last word of this site on the run.
    """
    if order.kind != "join" or order.spec.plan.aggregation != "secure":
        return
    said = word is not None and word.decision == "approve" and word.joins
    if word is None or not said or word.spec_digest != order.spec_digest:
        raise PlanRefused(
            "the run's sums are secure ones, and this site has not approved that its own sketch "
            "is sent in the clear",
            field="consent",
            mend="If it wants a code of its own: 'fedhypevae agent approve "
            f"{order.run_id}' once the run is completed and before the join is asked for, or "
            f"'fedhypevae agent join {order.run_id}'.",
        )


def once(spec: RunSpec, client: str, round_number: int | None, entries: Sequence[Entry]) -> None:
    """Raises ``PlanRefused`` for the join of ``round_number`` (None: a new one) if the client has
    joined the run by another round: a second sketch is a second release of the same statistic.

    ``entries``: of the client's population.
    """
    if sent := sketched(spec, client, entries) - {round_number}:
        raise PlanRefused(
            f"{client!r} has joined this run already, by its sketch of round {min(sent)}: another "
            "one would be a second release of the same",
            field="round_number",
            mend="Join another run; what was spent on this one stays spent.",
        )


def sketched(spec: RunSpec, client: str, entries: Sequence[Entry]) -> set[int]:
    """Join rounds of which the client's sketch was released, or may have been. What was lost here
    was never sent; what was charged as lost after a backup was restored may have been.
    """
    mine = [e for e in entries if (e.key.run_id, e.key.client) == (spec.run_id, client)]
    lost = {e.key for e in mine if e.kind == "lost" and not e.restored}
    return {
        e.key.round_number
        for e in mine
        if e.key.round_number > spec.last_round and e.key not in lost
    }
