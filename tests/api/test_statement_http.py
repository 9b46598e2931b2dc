"""The statement of an account: complete, recomputable, and in agreement with ledger and CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any
from uuid import uuid4

from api.clients.service import Budget
from api.ledger.service import AccountView, EntryView
from api.ledger.statement import Facts, Reservation, statement
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent
from core.wire.messages import LEASE_HEADER
from tests.api.support import Coordinator, problem
from tests.core.secure_world import secure_spec


async def give_back(coordinator: Coordinator, order: dict[str, Any]) -> None:
    await coordinator.ok(
        "POST",
        f"/v1/work/{order['work_id']}/fail",
        order["client"],
        json={"code": "site-not-ready"},
        headers={LEASE_HEADER: order["lease_token"]},
    )


async def spent(coordinator: Coordinator) -> dict[str, Any]:
    """site-a and its twin over one population: a run with a loss, then one that is under way."""
    await coordinator.enrol("site-a", "twin", "site-b", population="shared", site="hospital")
    first = await coordinator.run("site-a", "twin", start=True)
    order = await coordinator.poll("site-a")
    assert order is not None
    await give_back(coordinator, order)
    await coordinator.sweep()
    coordinator.pass_time(30)
    await coordinator.sweep()
    await coordinator.finish(first, "site-a", "twin")
    second = await coordinator.run("site-a", "site-b", name="run-2", privacy={"epsilon": 1.0})
    await coordinator.work("site-a")
    return {"first": first, "second": second}


def path_of(coordinator: Coordinator, name: str, what: str) -> str:
    return f"/v1/clients/{coordinator.clients[name]}/{what}"


async def statement_of(coordinator: Coordinator, name: str, who: str = "auditor") -> dict[str, Any]:
    return dict(await coordinator.ok("GET", path_of(coordinator, name, "statement"), who))


def events_in(run: dict[str, Any], *standings: str) -> list[PrivacyEvent]:
    return [
        PrivacyEvent.model_validate(each["event"])
        for each in run["events"]
        for _ in range(sum(each[standing] for standing in standings))
    ]


async def test_an_auditor_recomputes_the_statement_from_its_own_events(
    coordinator: Coordinator,
) -> None:
    runs = await spent(coordinator)
    statement = await statement_of(coordinator, "site-a")
    assert statement["clients"] == ["site-a", "site-b", "twin"]
    assert statement["accountant"]["version"] == version("dp-accounting")
    assert (statement["relation"], statement["account"]["unit"]) == (
        "add-remove-one-unit",
        "record",
    )
    first, second = statement["runs"]
    assert (first["run"], second["run"]) == ("run-1", "run-2")
    assert first["spec_digest"] == runs["first"]["spec_digest"]
    assert [first[k] for k in ("rounds", "attempts", "committed", "lost", "open")] == [
        2,
        5,
        4,
        1,
        0,
    ]
    assert [second[k] for k in ("rounds", "attempts", "committed", "lost", "open")] == [
        1, 2, 1, 0, 1,
    ]  # fmt: skip
    (lost,) = first["lost_reservations"]
    assert (lost["client"], lost["round"], lost["attempt"]) == ("site-a", 0, 1)
    assert lost["reason"] == "site-not-ready"
    whole = [*events_in(first, "committed", "lost", "open")]
    whole += events_in(second, "committed", "lost", "open")
    delta = statement["delta"]
    assert statement["epsilon"]["total"] == epsilon(whole, delta)
    for run in (first, second):
        assert run["epsilon"]["total"] == epsilon(
            events_in(run, "committed", "lost", "open"), delta
        )
        for part in ("committed", "lost", "open"):
            assert run["epsilon"][part] == epsilon(events_in(run, part), delta)
        assert run["epsilon"]["charged"] == epsilon(events_in(run, "committed", "lost"), delta)
    assert second["epsilon"]["open"] > 0
    assert (await statement_of(coordinator, "twin"))["runs"] == statement["runs"]


async def test_ledger_statement_and_csv_say_the_same(coordinator: Coordinator) -> None:
    await spent(coordinator)
    statement = await statement_of(coordinator, "site-a")
    ledger = await coordinator.ok("GET", path_of(coordinator, "site-a", "ledger"), "auditor")
    text = (await coordinator.call("GET", path_of(coordinator, "site-a", "ledger.csv"))).text
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(lines) == len(ledger["entries"])
    for line, entry in zip(lines, ledger["entries"], strict=True):
        assert (line["entry"], line["kind"], line["client"]) == (
            entry["id"], entry["kind"], entry["client"],
        )  # fmt: skip
        assert (line["run"], int(line["round"]), int(line["attempt"])) == (
            entry["run_id"], entry["round"], entry["attempt"],
        )  # fmt: skip
        assert line["reservation"] == entry["reserve_id"] or entry["kind"] == "reserve"
    read_back = [
        PrivacyEvent(
            mechanism=line["mechanism"],  # type: ignore[arg-type]
            noise_multiplier=float(line["noise_multiplier"]),
            sample_rate=float(line["sample_rate"]),
            steps=int(line["steps"]),
            relation=line["relation"],  # type: ignore[arg-type]
            unit=line["unit"],
        )
        for line in lines
        if line["kind"] == "reserve"
    ]
    assert epsilon(read_back, statement["delta"]) == statement["epsilon"]["total"]
    assert ledger["epsilon_total"] == statement["epsilon"]["total"]
    assert ledger["epsilon_committed"] == statement["epsilon"]["charged"]
    listed = Counter[PrivacyEvent]()
    for run in statement["runs"]:
        listed.update(events_in(run, "committed", "lost", "open"))
    assert listed == Counter(read_back)
    kinds = Counter(line["kind"] for line in lines)
    assert kinds["lost"] == sum(run["lost"] for run in statement["runs"])
    assert kinds["commit"] == sum(run["committed"] for run in statement["runs"])


async def test_who_may_read_a_statement(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    empty = await statement_of(coordinator, "site-a", "site-a")
    assert (empty["runs"], empty["epsilon"]["total"]) == ([], 0.0)
    other = await coordinator.call("GET", path_of(coordinator, "site-a", "statement"), "site-b")
    problem(other, 404, "not-found")
    for scope in ("worker", "scientist"):
        refused = await coordinator.call("GET", path_of(coordinator, "site-a", "statement"), scope)
        problem(refused, 403, "forbidden")


def test_a_secure_run_s_statement_says_who_could_infer_what() -> None:
    """By the ledger's own events, of both runs together and of each: only the secure one has more
    than one number, and the booked one is the epsilon that a budget limits.
    """
    spec, delta = secure_spec(drop=1, collude=1), 1e-5
    secure, plain = uuid4(), uuid4()
    at = datetime(2026, 1, 1, tzinfo=UTC)
    event = PrivacyEvent(mechanism="gaussian", noise_multiplier=2.0, sample_rate=1, steps=1,
                         unit="record")  # fmt: skip
    rows = [
        Reservation(
            EntryView(
                id=uuid4(), kind="reserve", client="a", event=each, reserve_id=None,
                run_id=run, round=number, attempt=1, at=at,
            ),
            each, "commit", at,
        )
        for run, number, each in [
            *((secure, n, spec.event(n)) for n in range(3)), (plain, 0, event),
        ]
    ]  # fmt: skip
    found = statement(
        Facts(
            client="a", clients=["a"],
            account=AccountView(site="s", population="p", unit="record"),
            budget=Budget(epsilon=50.0, delta=delta), rows=rows,
            runs={secure: ("secure", "d"), plain: ("plain", "e")}, reasons={},
            secure={secure: (spec, 6)}, read_at=at,
        )
    )  # fmt: skip
    whole = {view.who: view.epsilon for view in found.views}
    assert whole["booked"] == found.epsilon.total
    assert whole["coordinator"] < whole["booked"] < whole["everybody"]
    first, second = found.runs
    assert [view.who for view in first.views] == [view.who for view in found.views]
    assert first.views[0].epsilon == first.epsilon.total
    assert second.views == []
