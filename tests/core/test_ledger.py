"""The ledger's arithmetic: nothing is refunded, epsilon comes from events alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BudgetExceeded
from core.privacy import ledger
from core.privacy.accounting import epsilon
from core.privacy.events import release
from core.privacy.ledger import Entry, LedgerInconsistent

EVENT = release(noise_multiplier=2.0, sample_rate=1.0, unit="record")


def reserve(name: str) -> Entry:
    return Entry(name, "reserve", EVENT)


def commit(of: str) -> Entry:
    return Entry(f"c-{of}", "commit", None, of)


def lose(of: str) -> Entry:
    return Entry(f"l-{of}", "lost", None, of)


def test_entries_are_sorted_by_what_became_of_them() -> None:
    entries = [reserve("1"), reserve("2"), reserve("3"), commit("1"), lose("2")]
    assert [len(f(entries)) for f in (ledger.committed, ledger.lost, ledger.outstanding)] == [
        1,
        1,
        1,
    ]
    assert len(ledger.worst_case(entries)) == 3


def test_a_lost_reservation_stays_spent() -> None:
    before = [reserve("1"), commit("1"), reserve("2")]
    after = [*before, lose("2")]
    assert ledger.epsilon_total(after, 1e-5) == ledger.epsilon_total(before, 1e-5)
    assert ledger.epsilon_committed(after, 1e-5) == ledger.epsilon_total(after, 1e-5)
    assert ledger.epsilon_committed(before, 1e-5) == epsilon([EVENT], 1e-5)


def test_an_empty_ledger_has_spent_nothing() -> None:
    assert ledger.epsilon_total([], 1e-5) == ledger.epsilon_committed([], 1e-5) == 0.0


@pytest.mark.parametrize(
    "entries",
    [
        [commit("1")],
        [reserve("1"), commit("1"), lose("1")],
        [reserve("1"), commit("1"), Entry("c2", "commit", None, "1")],
        [Entry("1", "reserve")],
        [reserve("1"), commit("1"), Entry("x", "lost", None, "c-1")],
    ],
)
def test_impossible_ledgers_are_refused(entries: list[Entry]) -> None:
    with pytest.raises(LedgerInconsistent):
        ledger.worst_case(entries)


def test_the_budget_is_exact() -> None:
    one, two = epsilon([EVENT], 1e-5), epsilon([EVENT, EVENT], 1e-5)
    assert ledger.check_budget([], [EVENT], epsilon_budget=one, delta=1e-5) == one
    with pytest.raises(BudgetExceeded) as caught:
        ledger.check_budget([EVENT], [EVENT], epsilon_budget=two - 1e-9, delta=1e-5)
    assert caught.value.facts["epsilon_after"] == two
    assert caught.value.facts["epsilon_budget"] == two - 1e-9


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["commit", "lost", "open"]), max_size=12))
def test_the_worst_case_does_not_depend_on_outcomes(outcomes: list[str]) -> None:
    entries: list[Entry] = []
    for index, outcome in enumerate(outcomes):
        entries.append(reserve(str(index)))
        if outcome != "open":
            entries.append({"commit": commit, "lost": lose}[outcome](str(index)))
    assert len(ledger.worst_case(entries)) == len(outcomes)
    parts = [*ledger.committed(entries), *ledger.lost(entries), *ledger.outstanding(entries)]
    assert ledger.worst_case(entries) == parts
