"""The site's judgement where rounds take a share of the clients: its own ledger decides."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import PlanRefused
from core.federation.plan import RoundPlan, RunSpec
from core.federation.selection import selected
from core.privacy import accounting
from core.wire.messages import WorkOrder
from tests.worker.support import make_config, make_order, make_spec
from worker.agent.policy import judge
from worker.agent.records import AttemptKey, Entry, charged

CLIENTS, ROUNDS = 5, 6
CONFIG = make_config(Path("never-opened.npz"))


def selecting() -> RunSpec:
    """Each of 6 training rounds takes 2 of 5 clients: each client 2 or 3 times."""
    spec = make_spec(rounds=ROUNDS)
    plan = spec.plan.model_copy(update={"round": RoundPlan(client_fraction=0.4)})
    return RunSpec.model_validate(
        spec.model_dump() | {"plan": plan.model_dump(), "founding_clients": CLIENTS}
    )


SPEC = selecting()
OFTEN = next(  # a client that is chosen as often as any
    position
    for position in range(CLIENTS)
    if sum(position in selected(SPEC, CLIENTS, n) for n in range(1, ROUNDS + 1)) == 3
)
TURNS = [n for n in range(1, ROUNDS + 1) if OFTEN in selected(SPEC, CLIENTS, n)]


def order(number: int, position: int | None = OFTEN, attempt: int = 1) -> WorkOrder:
    made = make_order(SPEC, round_number=number, attempt=attempt)
    return made.model_copy(update={"position": position})


def rows(*orders: WorkOrder, outcome: str = "commit") -> list[Entry]:
    return [
        Entry(0, kind, "a/all", "record", AttemptKey.of(o), o.event, o.spec_digest, "now")  # type: ignore[arg-type]
        for o in orders
        for kind in ("reserve", outcome)
    ]


def refused(asked: WorkOrder, before: list[Entry], **limits: float) -> PlanRefused:
    with pytest.raises(PlanRefused) as caught:
        judge(asked, CONFIG.model_copy(update=limits), before)
    return caught.value


def test_the_budget_of_its_own_turns_is_enough_for_a_site() -> None:
    assert SPEC.participations == 3
    exact = CONFIG.model_copy(
        update={"max_epsilon": accounting.epsilon(SPEC.events(), CONFIG.delta)}
    )
    done: list[WorkOrder] = []
    for number in [0, *TURNS]:
        judge(order(number), exact, rows(*done))
        done.append(order(number))
    assert accounting.epsilon(charged(rows(*done)), CONFIG.delta) == exact.max_epsilon
    less = exact.model_copy(update={"max_epsilon": exact.max_epsilon * 0.999})
    with pytest.raises(PlanRefused, match="would reach epsilon"):
        judge(order(0), less, [])


def test_a_round_in_which_the_site_is_not_chosen_is_refused() -> None:
    for number in range(1, ROUNDS + 1):
        if number in TURNS:
            judge(order(number), CONFIG, [])
        else:
            assert refused(order(number), []).field == "position"
    assert refused(order(TURNS[0], None), []).field == "position"
    assert refused(order(TURNS[0], CLIENTS), []).field == "position"


def test_too_many_turns_are_refused_whatever_the_coordinator_calls_the_site() -> None:
    """It names another position each time, so that each order looks like the site's turn."""
    done: list[WorkOrder] = []
    for number in range(1, ROUNDS + 1):
        asked = order(number, selected(SPEC, CLIENTS, number)[0])
        if len(done) < SPEC.participations:
            judge(asked, CONFIG, rows(*done))
            done.append(asked)
        else:
            assert refused(asked, rows(*done)).field == "round_number"
            assert refused(asked, rows(*done, outcome="lost")).field == "round_number"
    assert len(done) == 3


def test_another_attempt_at_a_turn_is_judged_by_the_budget() -> None:
    """A round's second attempt is no further turn; it is one more event."""
    last = TURNS[-1]
    before = rows(*(order(number) for number in [0, *TURNS]), outcome="lost")
    judge(order(last, attempt=2), CONFIG, before)
    need = accounting.epsilon([*charged(before), SPEC.event(last)], CONFIG.delta)
    judge(order(last, attempt=2), CONFIG.model_copy(update={"max_epsilon": need}), before)
    assert refused(order(last, attempt=2), before, max_epsilon=need * 0.999).field == (
        "plan.privacy.epsilon"
    )


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_no_order_of_orders_brings_the_account_above_its_limit(data: st.DataObject) -> None:
    """Any rounds, in any order, under any position, with any outcome."""
    plain = accounting.epsilon(SPEC.events(), CONFIG.delta)
    limit = plain * data.draw(st.sampled_from([1.0, 1.1, 1.4]))
    config = CONFIG.model_copy(update={"max_epsilon": limit})
    entries: list[Entry] = []
    attempts = dict.fromkeys(range(SPEC.last_round + 1), 0)
    for _ in range(data.draw(st.integers(1, 14))):
        number = data.draw(st.integers(0, SPEC.last_round))
        position = data.draw(st.integers(0, CLIENTS - 1))
        attempts[number] += 1
        asked = order(number, position, attempts[number])
        try:
            judge(asked, config, entries)
        except PlanRefused:
            continue
        entries += rows(asked, outcome=data.draw(st.sampled_from(["commit", "lost"])))
    assert accounting.epsilon(charged(entries), CONFIG.delta) <= limit
    trained = {e.key.round_number for e in entries if e.key.round_number > 0}
    assert len(trained) <= SPEC.participations


def test_an_agent_of_before_reads_orders_of_plans_without_selection() -> None:
    """It refuses unknown keys; a plan that it could not carry out must not pass silently."""
    plain = make_order(make_spec()).model_dump(mode="json")
    assert "position" not in plain
    assert "founding_clients" not in plain["spec"]
    assert "client_fraction" not in plain["spec"]["plan"]["round"]
    selects = order(TURNS[0]).model_dump(mode="json")
    assert selects["position"] == OFTEN
    assert selects["spec"]["founding_clients"] == CLIENTS
