"""The comparison of two ledgers: honest histories are clean, and each way to cheat is found.

Histories are generated event by event as the protocol writes them on both sides; what must be found
is what no such history can leave behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent, release
from worker.agent.records import ACCEPTED, AttemptKey, OurAttempt
from worker.agent.theirs import TheirLedger, read_ledger
from worker.agent.verify import HARMLESS, Comparison, compare, lasting
from worker.errors import UnexpectedAnswer

DELTA = 1e-5
TRAIN = release(noise_multiplier=3.0, sample_rate=0.5, unit="record")
SKETCH = release(noise_multiplier=4.0, sample_rate=1.0, unit="record")


@dataclass(frozen=True)
class History:
    """How far one attempt came. The order of a real one: reserved there, begun here, executed
    here, sent, and settled there (by its update or by the end of its lease)."""

    ours: str | None  # None, open, commit, lost
    theirs: str  # open, commit, lost
    delivery: str | None = None


# Everything that an honest site and an honest coordinator can leave behind, also after crashes.
HONEST = [
    History(None, "open"),
    History(None, "lost"),
    History("open", "open"),
    History("open", "lost"),  # the lease ended while it worked, or it died
    History("commit", "open"),  # not sent yet
    History("commit", "open", "update-noise-implausible"),  # refused; the lease still runs
    History("commit", "commit"),  # sent, the answer was lost
    History("commit", "commit", ACCEPTED),
    History("commit", "lost"),  # too late, not sent yet
    History("commit", "lost", "round-closed"),
    History("lost", "open"),
    History("lost", "lost"),
]


def key(index: int, client: str = "site-a") -> AttemptKey:
    return AttemptKey("run-1", index, 1, client)


def both(histories: Sequence[History], **account: Any) -> tuple[list[OurAttempt], dict[str, Any]]:
    """The site's attempts and the coordinator's answer, as these histories leave them."""
    ours: list[OurAttempt] = []
    entries: list[dict[str, Any]] = []
    events = []
    for index, history in enumerate(histories):
        event = TRAIN if index else SKETCH
        client = "site-a" if index % 3 else "site-b"
        where = key(index, client)
        events.append(event)
        common = {"client": client, "run_id": "run-1", "round": index, "attempt": 1, "at": "then"}
        reserve = {"id": f"r{index}", "kind": "reserve", "event": event.model_dump(mode="json")}
        entries.append({**common, **reserve, "reserve_id": None})
        if history.theirs != "open":
            outcome = {"id": f"o{index}", "kind": history.theirs, "reserve_id": f"r{index}"}
            entries.append({**common, **outcome, "event": None})
        if history.ours is not None:
            ours.append(
                OurAttempt(where, event, "sha256:x", history.ours, history.delivery)  # type: ignore[arg-type]
            )
    total = epsilon(events, DELTA)
    raw = {
        "client": "site-a",
        "account": {"site": "a", "population": "a/all", "unit": "record"},
        "budget": {"epsilon": 8.0, "delta": DELTA},
        "epsilon_committed": total, "epsilon_reserved": 0.0, "epsilon_total": total,
        "delta": DELTA, "entries": entries, **account,
    }  # fmt: skip
    return ours, raw


def judged(ours: Sequence[OurAttempt], raw: dict[str, Any], **changes: Any) -> Comparison:
    how: dict[str, Any] = {"unit": "record", "delta": DELTA, "clients": {"site-a", "site-b"}}
    return compare(ours, read_ledger(raw), **(how | changes))


def kinds(found: Comparison) -> list[str]:
    return [finding.kind for finding in found.discrepancies]


histories = st.lists(st.sampled_from(HONEST), max_size=12)


@settings(max_examples=60, deadline=None)
@given(histories, st.randoms(use_true_random=False))
def test_honest_histories_are_clean_and_the_excess_is_listed(
    past: list[History], shuffle: Any
) -> None:
    ours, raw = both(past)
    # Outcomes come at any time after their reservation, so their order says nothing.
    shuffle.shuffle(ours)
    found = judged(ours, raw)
    assert found.discrepancies == ()
    assert found.epsilon_there >= found.epsilon_here
    assert found.epsilon_there == raw["epsilon_total"]
    assert found.executed == sum(one.ours == "commit" for one in past)
    excess = [f for f in found.findings if f.kind in ("lost-unexecuted", "not-begun")]
    assert len(excess) == found.charged_there - found.charged_here
    assert {finding.kind for finding in found.findings} <= HARMLESS


def _drop(raw: dict[str, Any], entry_id: str) -> None:
    raw["entries"] = [entry for entry in raw["entries"] if entry["id"] != entry_id]


def _entry(raw: dict[str, Any], entry_id: str) -> dict[str, Any]:
    return next(entry for entry in raw["entries"] if entry["id"] == entry_id)


def _no_commit(raw: dict[str, Any]) -> None:
    _drop(raw, "o1")


def _nothing_of_it(raw: dict[str, Any]) -> None:
    _drop(raw, "o1")
    _drop(raw, "r1")


def _lost_instead(raw: dict[str, Any]) -> None:
    _entry(raw, "o1")["kind"] = "lost"


def _altered(change: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    def alter(raw: dict[str, Any]) -> None:
        _entry(raw, "r1")["event"].update(change)

    return alter


def _twice(raw: dict[str, Any]) -> None:
    raw["entries"].append({**_entry(raw, "r1"), "id": "again"})


def _two_outcomes(raw: dict[str, Any]) -> None:
    raw["entries"].append({**_entry(raw, "o1"), "id": "again", "kind": "lost"})


def _outcome_of_nothing(raw: dict[str, Any]) -> None:
    raw["entries"].append({**_entry(raw, "o1"), "id": "again", "reserve_id": "nobody"})


def _outcome_of_another(raw: dict[str, Any]) -> None:
    _entry(raw, "o1")["round"] = 7


def _no_event(raw: dict[str, Any]) -> None:
    _entry(raw, "r1")["event"] = {"mechanism": "laplace"}


def _claims_less(raw: dict[str, Any]) -> None:
    raw["epsilon_total"] *= 0.9


def _other_unit(raw: dict[str, Any]) -> None:
    raw["account"]["unit"] = "patient"


@pytest.mark.parametrize(
    ("tamper", "kind"),
    [
        (_no_commit, "missing-commit"),
        (_nothing_of_it, "unknown-there"),
        (_lost_instead, "missing-commit"),
        (_altered({"noise_multiplier": 3.0000001}), "event-differs"),
        (_altered({"sample_rate": 0.4}), "event-differs"),
        (_altered({"steps": 2}), "event-differs"),
        (_altered({"unit": "patient"}), "event-differs"),
        (_altered({"mechanism": "gaussian", "sample_rate": 1.0}), "event-differs"),
        (_twice, "their-ledger"),
        (_two_outcomes, "their-ledger"),
        (_outcome_of_nothing, "their-ledger"),
        (_outcome_of_another, "their-ledger"),
        (_no_event, "their-ledger"),
        (_claims_less, "their-epsilon"),
        (_other_unit, "unit-differs"),
    ],
)
@settings(max_examples=10, deadline=None)
@given(more=histories)
def test_a_tampered_ledger_is_found_among_any_honest_entries(
    tamper: Callable[[dict[str, Any]], None], kind: str, more: list[History]
) -> None:
    accepted = History("commit", "commit", ACCEPTED)
    ours, raw = both([accepted, accepted, *more])
    assert judged(ours, raw).discrepancies == ()
    tamper(raw)
    found = judged(ours, raw)
    assert kind in kinds(found)
    first = next(finding for finding in found.discrepancies if finding.kind == kind)
    assert first.mend
    if kind in ("missing-commit", "unknown-there", "event-differs"):
        assert first.key == key(1)


@pytest.mark.parametrize(
    ("history", "kind"),
    [
        (History(None, "commit"), "never-executed"),
        (History("open", "commit"), "never-executed"),
        (History("lost", "commit"), "never-executed"),
        (History("commit", "lost", ACCEPTED), "missing-commit"),
        (History("commit", "open", ACCEPTED), "missing-commit"),
    ],
)
def test_what_no_honest_history_leaves_behind(history: History, kind: str) -> None:
    ours, raw = both([*HONEST, history])
    assert kinds(judged(ours, raw)) == [kind]


def test_every_pair_of_standings_is_judged_and_only_the_honest_ones_are_harmless() -> None:
    for mine in (None, "open", "commit", "lost"):
        for other in ("open", "commit", "lost"):
            deliveries = (None, ACCEPTED, "round-closed") if mine == "commit" else (None,)
            for delivery in deliveries:
                history = History(mine, other, delivery)
                clean = judged(*both([history])).discrepancies == ()
                # A refusal of one answer and a commit can both be true: what counts is counted.
                honest = history in HONEST or (mine, other) == ("commit", "commit")
                honest = honest or (mine, other, delivery) == ("commit", "open", "round-closed")
                assert clean == honest, history


def test_a_ledger_that_holds_less_than_was_charged_here_is_found() -> None:
    """The known wrong version: comparing commits alone would call this clean."""
    ours, raw = both([History("commit", "commit", ACCEPTED), History("lost", "lost")])
    _drop(raw, "o1")
    _drop(raw, "r1")
    raw["epsilon_total"] = epsilon([SKETCH], DELTA)
    found = judged(ours, raw)
    assert kinds(found) == ["unknown-there", "too-little-there"]
    assert found.epsilon_there < found.epsilon_here


def test_a_client_of_the_population_elsewhere_is_named() -> None:
    ours, raw = both([History("commit", "commit", ACCEPTED), History(None, "lost")])
    assert judged(ours, raw).discrepancies == ()
    found = judged(ours, raw, clients={"site-b"})  # entry 1 is site-a's
    assert kinds(found) == ["elsewhere"]
    assert found.discrepancies[0].key == key(1)


def test_what_was_booked_after_a_restore_is_no_discrepancy() -> None:
    ours, raw = both([History("lost", "commit"), History("lost", "lost")])
    restored = [replace(attempt, restored=True) for attempt in ours]
    assert kinds(judged(ours, raw)) == ["never-executed"]
    found = judged(restored, raw)
    assert found.discrepancies == ()
    assert [finding.kind for finding in found.findings] == ["booked-after-restore"]


def test_only_what_two_looks_find_is_a_discrepancy() -> None:
    """Between two looks an agent moves on; a discrepancy of the second alone has just begun."""
    accepted = History("commit", "commit", ACCEPTED)
    clean = judged(*both([accepted, accepted]))
    ours, raw = both([accepted, accepted])
    _no_commit(raw)
    racing = judged(ours, raw)
    assert kinds(lasting(racing, racing)) == ["missing-commit"]
    assert kinds(lasting(racing, clean)) == []
    passing = lasting(clean, racing)
    assert kinds(passing) == []
    assert [finding.kind for finding in passing.findings] == ["in-flight"]
    other_ours, other_raw = both([accepted, accepted, accepted])
    _drop(other_raw, "o2")
    other = judged(other_ours, other_raw)
    assert kinds(lasting(racing, other)) == []  # another attempt each time


@pytest.mark.parametrize(
    "broken", [{}, {"entries": 3}, {"client": "a", "account": {}, "delta": 0.1, "entries": []}]
)
def test_an_answer_that_is_no_ledger(broken: dict[str, Any]) -> None:
    with pytest.raises(UnexpectedAnswer):
        read_ledger(broken)


def test_a_newer_coordinator_may_say_more() -> None:
    ours, raw = both([History("commit", "commit", ACCEPTED)], colour="blue")
    ledger: TheirLedger = read_ledger(raw)
    assert ledger.population == "a/all"
    assert judged(ours, raw).discrepancies == ()
    assert isinstance(ledger.attempts[key(0, "site-b")].event, PrivacyEvent)
